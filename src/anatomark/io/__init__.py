"""Reading and writing: images, landmark files, tables, manifests, transforms. Frames are converted here only."""
