"""Ways to show a verdict and a checkpoint: tables, JSON, JUnit."""
