"""Training: from cases to a run folder."""
