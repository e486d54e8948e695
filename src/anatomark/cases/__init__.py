"""Cases: images with their landmarks, from manifests and paths to what a training reads."""
