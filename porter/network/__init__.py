"""The network as a table says it: channels, layers, endpoints, cost. Needs no torch."""
