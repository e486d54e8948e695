"""New cases from real ones."""
