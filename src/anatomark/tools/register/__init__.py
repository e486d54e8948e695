"""Registration by landmarks."""
