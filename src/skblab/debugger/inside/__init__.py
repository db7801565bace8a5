"""What gdb itself loads; the standard library and gdb alone."""
