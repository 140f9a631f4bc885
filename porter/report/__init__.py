"""Output of verdicts and checkpoints: tables, JSON, JUnit, HTML."""
