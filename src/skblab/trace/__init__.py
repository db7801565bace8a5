"""Where packets went: followed in the kernel, written to a file, and read back as journeys."""
