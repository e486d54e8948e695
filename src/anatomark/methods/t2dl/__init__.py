"""T2DL (Zhang et al. 2017): presets ``recommended`` (``posed``) and ``paper`` (``published``)."""
