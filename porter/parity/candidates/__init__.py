"""What is checked: our network with a port's weights, any other module, exported file or TensorFlow source."""
