"""What packets did, on file: the trace, its journeys, and what other programs read."""
