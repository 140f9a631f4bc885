"""Writers of TensorFlow's checkpoint format."""
