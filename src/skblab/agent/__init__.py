"""The agent in the guest, seen from the host: its commands, its events, its rules and its held packets."""
