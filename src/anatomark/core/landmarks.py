"""Named points in world millimetres, each defined, absent or unannotated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anatomark.core.grid import Array
from anatomark.errors import InputError, nearest


class Status(StrEnum):
    """What is known of a landmark in an image."""

    DEFINED = "defined"
    ABSENT = "absent"  # known not to be in this image
    UNANNOTATED = "unannotated"  # nothing known: no loss, no metric


@dataclass(frozen=True, eq=False)
class Landmarks:
    """N landmarks of one image.

    ``names``: N distinct label strings, the identity. ``points``: (N, D) float64 world mm (x, y[, z]), LPS in 3D;
    NaN exactly where ``status`` is not ``defined``. ``status``: N of :class:`Status`. Optional: ``score`` (N,) in 0..1,
    ``covariance`` (N, D, D) mm^2, ``radius90`` (N,) mm, ``descriptions`` N strings (shown, never matched), ``meta``
    (what a file held beside: kept for a round trip). Raises ValueError where these disagree, InputError on duplicate
    names.
    """

    names: tuple[str, ...]
    points: Array
    status: tuple[Status, ...] = ()
    score: Array | None = None
    covariance: Array | None = None
    radius90: Array | None = None
    descriptions: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = tuple(str(n) for n in self.names)
        points = np.array(self.points, dtype=np.float64)
        if points.ndim != 2 or points.shape[0] != len(names) or points.shape[1] not in (2, 3):
            raise ValueError(f"points of shape {points.shape} for {len(names)} names; expected (N, 2) or (N, 3)")
        if len(set(names)) < len(names):
            twice = sorted(n for n, count in Counter(names).items() if count > 1)
            raise InputError(f"landmark name {twice[0]!r} appears more than once; every landmark needs its own name")
        n, d = points.shape
        for key, shape in (("score", (n,)), ("covariance", (n, d, d)), ("radius90", (n,))):
            value = getattr(self, key)
            if value is not None:
                array = np.array(value, dtype=np.float64)
                if array.shape != shape:
                    raise ValueError(f"{key} of shape {array.shape} for {n} landmarks in {d}D; expected {shape}")
                object.__setattr__(self, key, array)
        if len(self.descriptions) not in (0, n):
            raise ValueError(f"{len(self.descriptions)} descriptions for {n} names")
        finite = np.asarray(np.isfinite(points).all(1))
        status = tuple(Status(s) for s in self.status) or tuple(
            Status.DEFINED if f else Status.UNANNOTATED for f in finite
        )
        if len(status) != len(names):
            raise ValueError(f"{len(status)} states for {len(names)} names")
        for name, state, good in zip(names, status, finite, strict=True):
            if state is Status.DEFINED and not good:
                raise ValueError(f"landmark {name!r} is marked defined but has no finite position")
        points[[s is not Status.DEFINED for s in status]] = np.nan
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "status", status)
        object.__setattr__(self, "descriptions", tuple(self.descriptions) or ("",) * len(names))

    @property
    def ndim(self) -> int:
        return int(self.points.shape[1])

    @property
    def defined(self) -> NDArray[np.bool_]:
        """(N,) True where the position is known."""
        return np.array([s is Status.DEFINED for s in self.status], dtype=bool)

    @property
    def absent(self) -> NDArray[np.bool_]:
        """(N,) True where the landmark is known not to be in the image."""
        return np.array([s is Status.ABSENT for s in self.status], dtype=bool)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Array:
        """World position (D,) of one landmark; KeyError for an unknown name."""
        try:
            return np.asarray(self.points[self.names.index(name)])
        except ValueError:
            raise KeyError(f"no landmark {name!r}{nearest(name, self.names)}") from None

    def select(self, names: Sequence[str]) -> Landmarks:
        """These landmarks in this order; a name that is not here becomes ``unannotated``."""
        at = {n: i for i, n in enumerate(self.names)}
        rows = [at.get(n, -1) for n in names]
        here = np.array([r >= 0 for r in rows], dtype=bool)
        present = [r for r in rows if r >= 0]

        def pick(values: Array) -> Array:
            out = np.full((len(rows), *values.shape[1:]), np.nan)
            out[here] = values[present]
            return out

        return Landmarks(
            tuple(names),
            pick(self.points),
            tuple(self.status[r] if r >= 0 else Status.UNANNOTATED for r in rows),
            None if self.score is None else pick(self.score),
            None if self.covariance is None else pick(self.covariance),
            None if self.radius90 is None else pick(self.radius90),
            tuple(self.descriptions[r] if r >= 0 else "" for r in rows),
            self.meta,
        )

    def with_points(self, points: ArrayLike) -> Landmarks:
        """The same landmarks at other positions (N, D) mm."""
        return replace(self, points=np.asarray(points, dtype=np.float64))

    def unannotated(self, points: NDArray[np.bool_]) -> Landmarks:
        """The same where ``points`` (N,) are not annotated."""
        status = tuple(Status.UNANNOTATED if p else s for p, s in zip(points, self.status, strict=True))
        return replace(self, points=np.where(points[:, None], np.nan, self.points), status=status)

    def errors_to(self, truth: Landmarks) -> Array:
        """(N,) radial distance in mm to the truth's point of the same name; NaN where either is not defined."""
        return np.asarray(np.linalg.norm(self.points - truth.select(self.names).points, axis=1))


def common_names(landmarks: Iterable[Landmarks]) -> tuple[str, ...]:
    """Every name that occurs, in the order of the first set; further names follow in order of appearance."""
    seen: dict[str, None] = {}
    for one in landmarks:
        seen.update(dict.fromkeys(one.names))
    return tuple(seen)
