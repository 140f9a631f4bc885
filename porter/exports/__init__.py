"""The network as other runtimes take it. Nothing here needs torch."""
