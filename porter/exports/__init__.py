"""What a port is written as, and what it runs in."""
