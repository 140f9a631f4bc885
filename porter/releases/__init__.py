"""A folder to publish: artifacts, model card, checksums and proof of parity; and checks of such folders."""
