"""Heatmap regression: a baseline."""
