"""PIN, the patch-based iterative network (Li et al., MICCAI 2018): ``published`` as in the paper, ``cascade`` as we use it."""
