"""gdb: attach to the guest's kernel, stop it, evaluate expressions in it."""
