"""Whole experiments as programs."""
