"""MobileNetV3 in PyTorch: SAME padding, blocks, model and TensorFlow's endpoint names."""
