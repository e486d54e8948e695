"""The refiner, after any method."""
