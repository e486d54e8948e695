"""The families of transforms."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Families of transforms, each containing those before it."""

    RIGID = "rigid"
    SIMILARITY = "similarity"
    AFFINE = "affine"
    TPS = "tps"

    def least(self, ndim: int) -> int:
        """The fewest points that determine one in D dimensions."""
        return ndim if self in (Kind.RIGID, Kind.SIMILARITY) else ndim + 1
