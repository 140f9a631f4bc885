"""Proof that a port computes what TensorFlow computed: inputs, references, comparison, verdict."""
