"""Mapping files, the network they describe, and the plan that turns variables into a state dict."""
