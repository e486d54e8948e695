"""Standard scan planes from landmarks: where a defined plane lies, and the slice through an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image, rounded
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.resample import resample
from anatomark.errors import InputError
from anatomark.tools.planes.schema import AXES, Direction, PlaneDefinition, PlaneSet

VIEWED_FROM = np.array([1.0, -1.0, -1.0])  # left, anterior, inferior: how radiologists look at slices
SPREAD = 0.03  # least extent of points across their line, as a share of their extent along it
SCATTER = 0.7  # points that leave the plane by more than this share of their extent in it define none
MOST_PIXELS = 100_000_000  # of a slice, or of all that make a slab
UPRIGHT = 0.05  # least sine between a direction and what it must not be parallel to


class NotDefined(InputError):
    """The landmarks do not define this plane; the message says why."""


@dataclass(frozen=True, eq=False)
class Plane:
    """A rectangle in space, world LPS mm. ``origin``: its middle. ``right``, ``up``, ``normal`` (3,): orthonormal and
    right-handed; the normal points at the viewer. ``size_mm``: width and height. ``points``: those it was laid through
    by name, ``residuals`` their signed distances from it along the normal in mm; ``left_out``: what was missing."""

    origin: Array
    right: Array
    up: Array
    normal: Array
    definition: PlaneDefinition
    points: Mapping[str, Array] = field(default_factory=dict)
    residuals: Mapping[str, float] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    @property
    def size_mm(self) -> tuple[float, float]:
        return self.definition.size_mm

    def distance(self, points: Array) -> Array:
        """Signed distances in mm (...) of world points (..., 3) from the unbounded plane, positive at the viewer's
        side."""
        return np.asarray((np.asarray(points, dtype=np.float64) - self.origin) @ self.normal)

    def locate(self, points: Array) -> Array:
        """(..., 2) mm to the right of and above the middle of world points (..., 3)."""
        relative = np.asarray(points, dtype=np.float64) - self.origin
        return np.stack([relative @ self.right, relative @ self.up], -1)

    def corners(self) -> Array:
        """(4, 3) world mm: top left, top right, bottom right, bottom left."""
        w, h = self.size_mm[0] / 2, self.size_mm[1] / 2
        steps = np.array([[-w, h], [w, h], [w, -h], [-w, -h]])
        return np.asarray(self.origin + steps @ np.stack([self.right, self.up]))

    def grid(self, spacing_mm: float, slices: int = 1, thickness_mm: float | None = None) -> Grid:
        """Grid (slices, rows, columns) round the plane: rows run downwards, columns to the right, slices away from the
        viewer; ``thickness_mm`` of a slice, by default the spacing."""
        width, height = self.size_mm
        shape = (slices, max(1, round(height / spacing_mm)), max(1, round(width / spacing_mm)))
        depth = spacing_mm if thickness_mm is None else thickness_mm
        axes = np.stack([-self.normal * depth, -self.up * spacing_mm, self.right * spacing_mm], 1)
        return Grid.centred(shape, axes, self.origin)

    def cut(self, image: Image) -> Image:
        """The slice (C, 1, rows, columns) on a grid of one voxel's thickness, the slab's where there is one.

        A slab is the mean or maximum of parallel slices no further apart than the spacing. Outside the image the value
        is its least, at most 0; integers are rounded back to the image's dtype. Raises InputError for a 2D image, and
        where the rectangle lies wholly outside or has more than 100 million pixels.
        """
        if image.ndim != 3:
            raise InputError(f"{image.meta.get('path') or 'the image'}: is 2D; scan planes are cut from 3D volumes")
        wanted = self.definition
        spacing = wanted.spacing_mm or float(image.grid.spacing.min())
        count = max(1, int(np.ceil(wanted.slab_mm / spacing - 1e-6)))
        pixels = [max(1, round(mm / spacing)) for mm in self.size_mm]
        if np.prod([*pixels, count], dtype=float) > MOST_PIXELS:
            size = " x ".join(map(str, [*pixels, count] if count > 1 else pixels))
            raise NotDefined(f"its slice would have {size} pixels; make size_mm smaller, or spacing_mm coarser")
        target = self.grid(spacing, 1, wanted.slab_mm or None)
        if not image.grid.contains(target.points()).any():
            raise NotDefined("the rectangle lies wholly outside the image")
        step = wanted.slab_mm / count if wanted.slab_mm else spacing
        least = float(np.nanmin(image.array))
        slices = resample(image, self.grid(spacing, count, step), fill=min(0.0, least)).array
        merged = slices.max(1, keepdims=True) if wanted.mode == "max" else slices.mean(1, keepdims=True)
        dtype = image.array.dtype
        values = rounded(merged, dtype) if dtype.kind in "iu" else np.asarray(merged, dtype=np.float32)
        return Image(values, target, image.meta)


def find_planes(definition: PlaneSet, landmarks: Landmarks) -> dict[str, Plane | str]:
    """Every plane that 3D landmarks (world LPS mm) define, by name, or the reason why it is not defined.

    Raises InputError for 2D landmarks.
    """
    if landmarks.ndim != 3:
        raise InputError(f"{landmarks.meta.get('path') or 'the landmarks'}: are 2D; scan planes lie in 3D volumes")
    planes: dict[str, Plane | str] = {}
    for name, one in definition.planes.items():
        try:
            planes[name] = _find(one, landmarks, planes)
        except NotDefined as reason:
            planes[name] = str(reason)
    return planes


def _find(definition: PlaneDefinition, landmarks: Landmarks, above: Mapping[str, Plane | str]) -> Plane:
    ways = {k: _direction(d, landmarks, above, k) for k, d in definition.directions().items()}
    names, points, weights, missing = [], [], [], []
    for point, weight in zip(definition.through, definition.weights or [1.0] * len(definition.through), strict=True):
        try:
            points.append(_position(point, landmarks))
        except NotDefined as reason:
            missing.append((_name(point), str(reason)))
            continue
        names.append(_name(point))
        weights.append(weight)
    needed = definition.at_least or len(definition.through)
    if len(points) < needed:
        short = f" ({len(points)} of at least {needed} points)" if definition.at_least else ""
        raise NotDefined(f"{missing[0][1]}{short}")
    at, share = np.array(points), np.array(weights) / np.sum(weights)
    mean = share @ at
    normal = _normal(at - mean, share, ways)
    middle = mean if definition.centre is None else _position(definition.centre, landmarks)
    origin = middle - normal * ((middle - mean) @ normal)
    right, up, normal = _turned(normal, ways)
    residuals = (at - mean) @ normal
    return Plane(
        origin, right, up, normal, definition, dict(zip(names, at, strict=True)),
        dict(zip(names, map(float, residuals), strict=True)), tuple(name for name, _ in missing),
    )  # fmt: skip


def _normal(relative: Array, share: Array, ways: Mapping[str, Array]) -> Array:
    """Unit normal of the plane of weighted least squares through points (N, 3) about their mean."""
    if "normal" in ways:
        return ways["normal"]
    spread, along = relative, ways.get("along")
    if along is not None:
        spread = relative - np.outer(relative @ along, along)
    _, s, vt = np.linalg.svd(np.sqrt(share)[:, None] * spread)
    s = np.append(s, np.zeros(3 - len(s)))
    inside, outside = (s[0], s[1]) if along is not None else (s[1], s[2])
    extent = float(np.sqrt(share @ (relative**2).sum(1)))
    if inside <= max(SPREAD * extent, 1e-6):
        line = "on a line" if along is None else "on a line in the direction of 'along'"
        raise NotDefined(f"its points lie {line}: {inside:.2g} mm across it, {extent:.3g} mm in all")
    if outside > SCATTER * inside:
        raise NotDefined(f"its points lie in no plane: they scatter by {outside:.2g} mm out of {inside:.2g} mm in it")
    normal = np.cross(vt[0], vt[1] if along is None else along)
    return np.asarray(normal / np.linalg.norm(normal))


def _turned(normal: Array, ways: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """Right, up and normal with the sign and the turn that the definition asks for."""
    largest = int(np.abs(normal).argmax())
    facing = ways.get("facing", np.eye(3)[largest] * VIEWED_FROM)
    if abs(facing @ normal) < UPRIGHT:
        raise NotDefined("'facing' runs within the plane, so that it tells no side")
    normal = normal * np.sign(facing @ normal)
    up = ways.get("up", np.array(AXES["anterior" if largest == 2 else "superior"], dtype=np.float64))
    up = up - (up @ normal) * normal
    if np.linalg.norm(up) < UPRIGHT:
        raise NotDefined("'up' is at right angles to the plane")
    up = up / np.linalg.norm(up)
    return np.cross(up, normal), up, normal


def _direction(way: Direction, landmarks: Landmarks, above: Mapping[str, Plane | str], key: str) -> Array:
    if way.axis is not None:
        return np.array(AXES[way.axis], dtype=np.float64)
    if way.normal_of is not None:
        other = above[way.normal_of]
        if isinstance(other, str):
            raise NotDefined(f"plane {way.normal_of!r} is not defined: {other}")
        return other.normal
    assert way.start is not None and way.end is not None
    step = _position(way.end, landmarks) - _position(way.start, landmarks)
    if (length := float(np.linalg.norm(step))) < 1e-6:
        raise NotDefined(f"{key!r}: start and end are one point")
    return np.asarray(step / length)


def _position(point: Mapping[str, float], landmarks: Landmarks) -> Array:
    """(3,) the weighted mean. Raises NotDefined where one of its landmarks has no position."""
    for label in point:
        state = landmarks.status[landmarks.names.index(label)] if label in landmarks.names else None
        if state is not Status.DEFINED:
            raise NotDefined(f"landmark {label!r} is {'not there' if state is None else state}")
    weights = np.array(list(point.values()))
    return np.asarray(weights @ np.array([landmarks[label] for label in point]) / weights.sum())


def _name(point: Mapping[str, float]) -> str:
    """``27+28`` for a mean of landmarks."""
    return "+".join(point)
