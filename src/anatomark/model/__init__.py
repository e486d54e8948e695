"""A trained model: its settings, its folder, how it predicts, how far to trust it."""
