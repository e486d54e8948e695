"""Several observers' landmarks as one truth to learn from, in the convention of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import nanmean

CORRECTED = "corrected"  # who stands in the truth that a review leaves
FEWEST = 5  # cases that both observers marked, from which on an offset between them is learned


def combined(named: Sequence[Landmarks], others: Sequence[Mapping[str, Landmarks]]) -> list[Landmarks]:
    """For each case the mean of the named observer's points and the others', these freed from their habits.

    Observers differ in two ways: each has habits (where he thinks that gonion is), and each errs. The first are
    removed: an observer's median offset to the named one, per landmark over all cases and along the world's axes. What
    is left is error, which the mean halves for two. ``others[i]``: the other observers of case i by name. A landmark
    that the named observer did not define stays as it is.
    """
    habits = {o: _offset(named, others, o) for o in sorted({o for by_observer in others for o in by_observer})}
    out = []
    for own, by_observer in zip(named, others, strict=True):
        freed = [one.select(own.names).points + habits[o] for o, one in by_observer.items()]
        mean = nanmean(np.stack([own.points, *freed]))
        out.append(own.with_points(np.where(own.defined[:, None], mean, np.nan)))
    return out


def _offset(named: Sequence[Landmarks], others: Sequence[Mapping[str, Landmarks]], observer: str) -> Array:
    """(N, D) mm from one observer's points to the named one's, median over cases; NaN where these are too few."""
    pairs = [(a, by[observer].select(a.names)) for a, by in zip(named, others, strict=True) if observer in by]
    apart = np.stack([a.points - b.points for a, b in pairs])
    enough = np.isfinite(apart).all(2).sum(0) >= FEWEST
    median = np.full(apart.shape[1:], np.nan)
    median[enough] = np.nanmedian(apart[:, enough], 0)
    return median
