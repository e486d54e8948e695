"""Several observers' landmarks as one truth to learn from, in the convention of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks

FEWEST = 5  # cases that both observers marked, from which on an offset between them is known


def combined(named: Sequence[Landmarks], others: Sequence[Mapping[str, Landmarks]]) -> list[Landmarks]:
    """For each case the mean of the named observer's points and the others', these freed from their habits.

    Observers differ in two ways: each has habits (where he thinks that gonion is), and each errs. The first are
    removed: an observer's median offset to the named one, per landmark over all cases and along the world's axes. What
    is left is error, which the mean halves for two. ``others[i]``: the other observers of case i by name. A landmark
    that the named observer did not define stays as it is.
    """
    names = named[0].names
    habits = {o: _offset(named, others, o) for o in sorted({o for marks in others for o in marks})}
    out = []
    for own, marks in zip(named, others, strict=True):
        points = [own.points, *(marks[o].select(names).points + habits[o] for o in marks)]
        stack = np.stack(points)
        seen = np.isfinite(stack)
        mean = np.where(seen, stack, 0).sum(0) / np.maximum(seen.sum(0), 1)
        out.append(own.with_points(np.where(own.defined[:, None], mean, np.nan)))
    return out


def _offset(named: Sequence[Landmarks], others: Sequence[Mapping[str, Landmarks]], observer: str) -> Array:
    """(N, D) mm from one observer's points to the named one's, median over cases; NaN where too few are known."""
    pairs = [(a, m[observer].select(a.names)) for a, m in zip(named, others, strict=True) if observer in m]
    apart = np.stack([a.points - b.points for a, b in pairs])
    known = np.isfinite(apart).all(2).sum(0)
    median = np.full(apart.shape[1:], np.nan)
    enough = known >= FEWEST
    median[enough] = np.nanmedian(apart[:, enough], 0)
    return median
