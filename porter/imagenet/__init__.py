"""Photos and class names."""
