"""The guest: how it boots, what it says, how it ends."""
