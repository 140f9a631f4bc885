"""A folder to publish: artifacts, model card, checksums, the proof of parity; and the check of one."""
