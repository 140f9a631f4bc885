"""The network as a table describes it: its numbers, its nodes, and what follows from them. Needs no torch."""
