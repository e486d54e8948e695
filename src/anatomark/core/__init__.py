"""Geometry, images, landmarks, resampling, shape models: numpy and torch only."""
