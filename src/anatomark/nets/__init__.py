"""Network architectures, one file each: torch only."""
