"""Landmarks drawn into images, and plots."""
