"""MobileNetV3 in PyTorch, as people read it, and opening one with weights."""
