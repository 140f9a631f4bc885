"""References: what a port is checked against. TensorFlow is imported only here."""
