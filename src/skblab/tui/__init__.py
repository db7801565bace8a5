"""The screen of ``skblab hold``: packets held inside a running kernel, and the keys that decide on them."""
