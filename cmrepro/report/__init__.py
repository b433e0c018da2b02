"""Tables, verdicts, figures and pages from records and the paper (no torch)."""
