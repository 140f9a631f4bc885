"""State dicts with metadata: found, read, written, brought into another form."""
