"""Candidates: our network with a port's weights, other modules, exported files and TensorFlow sources."""
