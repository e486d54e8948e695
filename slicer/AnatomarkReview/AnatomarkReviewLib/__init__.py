"""What the module needs besides 3D Slicer: the standard library only."""
