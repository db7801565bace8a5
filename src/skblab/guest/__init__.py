"""The guest: its boot, its console, its programs, its end."""
