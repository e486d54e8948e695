"""The alignment of images to a template, before a method."""
