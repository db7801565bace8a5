"""The screen: packets that are held inside a running kernel, and a person's keys."""
