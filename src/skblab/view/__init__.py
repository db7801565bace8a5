"""What a trace looks like: as text, as a page, and as the files of other programs."""
