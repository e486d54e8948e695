"""PIN, the patch-based iterative network (Li et al., MICCAI 2018): as published, and as we recommend it."""
