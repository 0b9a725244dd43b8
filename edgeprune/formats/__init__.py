"""Model files: what reads and writes them, what they record, and what of that may be believed."""
