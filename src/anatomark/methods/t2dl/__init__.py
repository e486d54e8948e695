"""T2DL (Zhang et al. 2017)."""
