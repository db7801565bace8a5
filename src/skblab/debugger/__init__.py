"""gdb: attach to the guest kernel, stop it, ask it."""
