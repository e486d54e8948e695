"""What training cases look like, and which annotations are suspect."""
