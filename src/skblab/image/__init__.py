"""Images: a kernel with its debug info, its sources and the index of its functions."""
