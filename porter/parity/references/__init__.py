"""What a port is checked against. TensorFlow is imported here and nowhere else."""
