"""How the threshold of presence is chosen: on seeded crops of validation cases, in which it is known what was cut away,
and on whole images, in which few landmarks may be called absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError, counted
from anatomark.io.images import check_image
from anatomark.model.confidence.presence import presence_scores

CASES = 16  # validation cases that are cropped, once each
FALSE_ABSENCES = 0.01  # share of the landmarks of whole images that may be called absent
REMOVE = (0.2, 0.5)  # share of the landmarks that a crop removes
MARGIN = 0.04  # of the landmarks' reach: so near to a cut, presence is a matter of taste
_FEWEST_VOXELS, _LEAST_SHARE = 8, 0.2  # what a cut leaves of an axis
_TRIES = 100

Voxels = NDArray[np.int_]


def _none() -> Array:
    return np.zeros(0)


@dataclass(frozen=True)
class Trials:
    """Presence scores of landmarks that are known to be there or not.

    ``absent`` and ``present``: of landmarks outside and inside of crops (and of landmarks that the truth itself calls
    absent); ``whole``: of the landmarks in whole images; ``crops`` located, ``failed``: crops that were refused.
    """

    absent: Array = field(default_factory=_none)
    present: Array = field(default_factory=_none)
    whole: Array = field(default_factory=_none)
    crops: int = 0
    failed: int = 0

    def __add__(self, other: Trials) -> Trials:
        return Trials(
            np.r_[self.absent, other.absent],
            np.r_[self.present, other.present],
            np.r_[self.whole, other.whole],
            self.crops + other.crops,
            self.failed + other.failed,
        )


def case_trials(
    locate: Callable[[Image], Landmarks] | None,
    case: str,
    image: Image,
    truth: Landmarks,
    prediction: Landmarks,
    seed: int,
) -> Trials:
    """The ``prediction`` in a whole image and, where ``locate`` is given, one crop of it; the crop depends on ``seed``
    and the case's name alone. A point that the truth puts outside the whole image is left out."""
    scores = presence_scores(prediction.select(truth.names), image.grid)
    present = truth.defined & image.grid.contains(truth.points)
    total = Trials(absent=scores[truth.absent], whole=scores[present])
    if locate is None:
        return total
    return total + crop_trials(locate, image, truth, np.random.default_rng([seed, 23, crc32(case.encode())]))


def crop_trials(
    locate: Callable[[Image], Landmarks], image: Image, truth: Landmarks, rng: np.random.Generator
) -> Trials:
    """What ``locate`` says in one random crop; a crop that cannot be made or is refused counts as failed."""
    if not truth.defined.any():
        return Trials()
    try:
        crop, truth = random_crop(image, truth, rng)
        check_image(crop, "the crop")
        scores = presence_scores(locate(crop).select(truth.names), crop.grid)
    except InputError:
        return Trials(failed=1)
    return Trials(absent=scores[truth.absent], present=scores[truth.defined], crops=1)


def frozen_threshold(trials: Trials | None) -> dict[str, Any] | None:
    """The threshold below which a landmark is absent, for ``calibration.json``; None where no absence was seen.

    It maximises F1 of absence where at most 1 % of the landmarks of whole images fall below it; of equal ones it is the
    one in the widest gap between scores. ``recall`` and ``precision`` of absence on the crops and ``false_absences``,
    the share in whole images, are those of the cases it was chosen on.
    """
    if trials is None or not len(trials.absent) or not len(trials.whole):
        return None
    scores = np.unique(np.r_[0.0, trials.absent, trials.present, trials.whole, 1.0])
    gaps = np.diff(scores)
    candidates = scores[:-1] + gaps / 2
    hits, false, lost = (
        (values[None] < candidates[:, None]).sum(1) for values in (trials.absent, trials.present, trials.whole)
    )
    f1 = 2 * hits / (hits + false + len(trials.absent))
    # points outside their image fall below any threshold
    allowed = lost <= max(int(FALSE_ABSENCES * len(trials.whole) + 1e-9), int(lost[0]))
    best = max(np.flatnonzero(allowed), key=lambda i: (round(float(f1[i]), 9), gaps[i]))
    called = int(hits[best] + false[best])
    return {
        "threshold": float(candidates[best]),
        "recall": round(float(hits[best] / len(trials.absent)), 4),
        "precision": round(float(hits[best] / called), 4) if called else None,
        "false_absences": round(float(lost[best] / len(trials.whole)), 4),
        "n": len(trials.absent) + len(trials.present),
        "absent": len(trials.absent),
        "whole": len(trials.whole),
        "crops": trials.crops,
        "failed": trials.failed,
    }


def described_presence(entry: Mapping[str, Any] | None) -> str:
    """What was learned of absence, in words."""
    if entry is None:
        return "absence: no independent case to learn it from; only points outside the image are absent"
    found = round(entry["recall"] * entry["absent"])
    wrong = round(found / entry["precision"]) - found if entry["precision"] else 0
    failed = f" ({counted(entry['failed'], 'crop')} failed)" if entry["failed"] else ""
    crops, absent = counted(entry["crops"], "crop") + failed, counted(entry["absent"], "absent landmark")
    whole = f"{entry['false_absences']:.1%} of {counted(entry['whole'], 'landmark')}"
    return (
        f"absence: a score below {entry['threshold']:.3f}; chosen on {crops}, where it names {found} of "
        f"{absent} and {counted(wrong, 'present one')}; in whole images {whole} by mistake"
    )


# ---------------------------------------------------------------------- crops


def random_crop(
    image: Image,
    landmarks: Landmarks,
    rng: np.random.Generator,
    remove: tuple[float, float] = REMOVE,
    margin_mm: float | None = None,
) -> tuple[Image, Landmarks]:
    """The image cut along one or two of its array axes, so that a share ``remove`` of its landmarks lies outside.

    The array is sliced and the grid goes with it, so world positions stay. Landmarks that then lie outside are
    ``absent``; those within ``margin_mm`` of a cut, on either side, ``unannotated`` (default: 4 % of the largest
    distance of a landmark from their centroid). Raises InputError where no such cut exists.
    """
    grid = image.grid
    index = grid.to_index(landmarks.points[landmarks.defined])
    index = index[grid.contains(landmarks.points[landmarks.defined])]
    least = max(1, int(np.ceil(remove[0] * len(index) - 1e-9)))
    most = max(1, int(np.floor(remove[1] * len(index) + 1e-9)))
    shape = np.array(grid.shape)
    kept = np.minimum(shape, np.maximum(_FEWEST_VOXELS, np.ceil(_LEAST_SHARE * shape)))
    for _ in range(_TRIES if len(index) and least <= most else 0):
        first, end = _cut(index, shape, rng, int(rng.integers(least, most + 1)))
        removed = len(index) - int(_within(index, first, end).sum())
        if least <= removed <= most and (end - first >= kept).all():
            return _cropped(image, landmarks, first, end, margin_mm)
    shown = f"{remove[0]:.0%} to {remove[1]:.0%} of its {len(index)} landmarks"
    raise InputError(f"{image.meta.get('path') or 'the image'}: no cut along its axes removes {shown}")


def _cut(index: Array, shape: Voxels, rng: np.random.Generator, count: int) -> tuple[Voxels, Voxels]:
    """First voxel and end of a box that ``count`` of the points ``index`` lie outside, if no two share a voxel."""
    first, end = np.zeros(len(shape), int), shape.copy()
    sides = rng.permutation(2 * len(shape))[: int(rng.integers(1, 3))]
    share = int(rng.integers(0, count + 1)) if len(sides) == 2 else count
    for side, number in zip(sides, (share, count - share), strict=False):
        axis, upper = int(side) // 2, side % 2
        within = np.sort(index[_within(index, first, end), axis])
        if not 0 < number <= len(within):
            continue
        # the border m - 0.5 lies between the last point removed and the next one
        bounds = np.r_[first[axis] - 0.5, within, end[axis] - 0.5]
        at = len(within) - number if upper else number
        low, high = int(np.floor(bounds[at] + 0.5)) + 1, int(np.ceil(bounds[at + 1] + 0.5)) - 1
        border = int(np.clip(rng.integers(low, max(low, high) + 1), first[axis] + 1, max(end[axis] - 1, 1)))
        if upper:
            end[axis] = border
        else:
            first[axis] = border
    return first, end


def _within(index: Array, first: Voxels, end: Voxels) -> NDArray[np.bool_]:
    return np.asarray(((index >= first - 0.5) & (index <= end - 0.5)).all(-1))


def _cropped(
    image: Image, landmarks: Landmarks, first: Voxels, end: Voxels, margin_mm: float | None
) -> tuple[Image, Landmarks]:
    grid, d = image.grid, image.ndim
    inner = Grid.from_axes((end - first).tolist(), grid.axes, grid.to_world(first))
    window = tuple(slice(a, b) for a, b in zip(first, end, strict=True))
    margin = _margin(landmarks) if margin_mm is None else margin_mm
    points = landmarks.points
    index = grid.to_index(points)
    thick = 1 / np.linalg.norm(grid.inverse[:d, :d], axis=1)  # mm between neighbouring planes along each axis
    depths = np.stack([(index - first + 0.5) * thick, (end - 0.5 - index) * thick])
    depths[np.stack([first == 0, end == np.array(grid.shape)])[:, None].repeat(len(points), 1)] = np.inf
    near = np.abs(depths.min((0, 2))) <= margin
    status = [
        state
        if state is not Status.DEFINED
        else Status.UNANNOTATED
        if close
        else Status.DEFINED
        if inside
        else Status.ABSENT
        for state, close, inside in zip(landmarks.status, near, inner.contains(points), strict=True)
    ]
    return Image(image.array[(slice(None), *window)], inner, image.meta), replace(landmarks, status=tuple(status))


def _margin(landmarks: Landmarks) -> float:
    points = landmarks.points[landmarks.defined]
    return MARGIN * float(np.linalg.norm(points - points.mean(0), axis=1).max())
