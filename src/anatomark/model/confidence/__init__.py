"""May a point be believed: its radius, its presence, the review flag."""
