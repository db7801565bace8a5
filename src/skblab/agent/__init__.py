"""The agent in the guest, from outside: what it is told, what it tells."""
