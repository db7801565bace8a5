"""The modules that gdb loads; they import only gdb and the standard library."""
