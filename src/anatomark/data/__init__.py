"""From images to training examples."""
