"""The machine the lab runs on: programs, namespaces, the link."""
