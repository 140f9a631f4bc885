"""Writing and reading ``.pth`` and ``.safetensors`` with metadata, whole or not at all."""
