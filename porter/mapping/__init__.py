"""Mapping files, the network they describe, and the plan that brings variables into a state dict."""
