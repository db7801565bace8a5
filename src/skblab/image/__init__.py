"""Images: a kernel, its debug info, its sources, the index of its functions."""
