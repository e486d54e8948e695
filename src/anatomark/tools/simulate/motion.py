"""New cases from real ones: a smooth warp, a similarity, another contrast, noise; landmarks carried exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image, rounded
from anatomark.core.intensity import bounds, intensity_rule
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.resample import as_tensor, sample_index
from anatomark.core.shape import Pose, random_rotation
from anatomark.core.warp import Warp, random_warp
from anatomark.errors import InputError
from anatomark.methods.kit.augment import random_intensity

ROUND_TRIP_MM = 1e-3
CT_SHARE = 0.3  # Hounsfield units mean something: their scale may change but little
LEVELS = 4096  # values between an image's bounds that a new image of floating-point numbers tells apart
_POINTS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Simulation:
    """How far a new case strays from the real one.

    ``amplitude_mm``: largest displacement of the warp, less where it would come near to folding (Jacobian 0.25);
    None: 6 % of the landmarks' extent. ``wavelength_mm``: between its swings, drawn from 0.7 to 1.4 times as much;
    None: 70 % of the extent. ``rotation_deg``: largest rotation about the landmarks' middle. ``scale``: largest change
    of size, 0.05 is 5 %. ``shift``: largest, as a share of the extent. ``intensity``: contrast, uneven gain and noise;
    1 is what strong training augmentation does, 0 changes no value. Raises InputError for values out of range.
    """

    amplitude_mm: float | None = None
    wavelength_mm: float | None = None
    rotation_deg: float = 10.0
    scale: float = 0.05
    shift: float = 0.03
    intensity: float = 0.5

    def __post_init__(self) -> None:
        limits = {"amplitude_mm": (0, 1e4), "wavelength_mm": (1e-3, 1e6), "rotation_deg": (0, 180), "scale": (0, 0.5),
                  "shift": (0, 1), "intensity": (0, 3)}  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} = {value:g} is out of range; it is a number from {low:g} to {high:g}")


@dataclass(frozen=True, eq=False)
class Motion:
    """How an anatomy moves within its image: first ``warp``, then the similarity ``pose``, both of world points."""

    warp: Warp
    pose: Pose

    def read(self, world: Array) -> Array:
        """Where (..., D) mm in the real image the new image's points (..., D) mm come from."""
        return self.warp(self.pose.invert(world))

    def move(self, points: Array) -> Array:
        """Where (N, D) mm the real image's points go; NaN stays NaN. Raises RuntimeError where the warp folds."""
        return self.pose.apply(self.warp.inverse(points))


def simulate_case(
    image: Image, landmarks: Landmarks, rng: np.random.Generator, settings: Simulation | None = None
) -> tuple[Image, Landmarks]:
    """A new case from a real one, on the same grid and in the same dtype; it depends on ``rng`` alone.

    Landmarks keep name, description and status; one that leaves the image becomes absent. Raises RuntimeError, so that
    the caller draws again, where the new landmarks, read back, miss the old ones by more than 0.001 mm, or all leave.
    """
    settings = settings or Simulation()
    motion = draw_motion(image.grid, landmarks, rng, settings)
    moved = motion.move(landmarks.points)
    defined = landmarks.defined
    off = np.linalg.norm(motion.read(moved[defined]) - landmarks.points[defined], axis=1)
    if off.size and not off.max() <= ROUND_TRIP_MM:
        raise RuntimeError(f"landmarks miss their places by {off.max():.2g} mm when carried there and back")
    inside = image.grid.contains(np.where(defined[:, None], moved, 0.0))
    if defined.any() and not (defined & inside).any():
        raise RuntimeError("every landmark leaves the image")
    left = defined & ~inside
    status = tuple(Status.ABSENT if out else s for s, out in zip(landmarks.status, left, strict=True))
    new = Landmarks(landmarks.names, moved, status, descriptions=landmarks.descriptions)
    return _with_new_contrast(image, motion, rng, settings.intensity), new


def draw_motion(grid: Grid, landmarks: Landmarks, rng: np.random.Generator, settings: Simulation) -> Motion:
    """A random motion about the middle of the landmarks (of the grid, where there are none)."""
    points = landmarks.points[landmarks.defined]
    extent = float(np.ptp(points, axis=0).max()) if len(points) > 1 else 0.0
    extent = extent or float(grid.extent_mm.max()) / 2
    centre = points.mean(0) if len(points) else grid.centre
    amplitude = 0.06 * extent if settings.amplitude_mm is None else settings.amplitude_mm
    wavelength = 0.7 * extent if settings.wavelength_mm is None else settings.wavelength_mm
    wavelength *= float(np.exp(rng.uniform(np.log(0.7), np.log(1.4))))
    # the field is linear between its nodes: several to a swing
    nodes = int(np.clip(np.ceil(1.2 * grid.extent_mm.max() / wavelength * 10), 24, 64 if grid.ndim == 3 else 256))
    warp = random_warp(rng, grid, amplitude, wavelength, nodes=nodes)
    rotation = random_rotation(rng, grid.ndim, min(settings.rotation_deg, 179.9))
    scale = float(np.exp(rng.uniform(-1, 1) * np.log1p(settings.scale)))
    shift = rng.uniform(-1, 1, grid.ndim) * settings.shift * extent
    return Motion(warp, Pose(rotation, centre + shift - scale * rotation @ centre, scale))


def read_through(image: Image, motion: Motion, fill: float) -> Image:
    """The image after the motion, on its own grid, float32; ``fill`` where nothing of the image comes to lie.

    The displacement is evaluated at every voxel, so that image and landmarks move alike.
    """
    grid, d = image.grid, image.ndim
    back = np.eye(d + 1)
    back[:d, :d] = motion.pose.rotation.T / motion.pose.scale
    back[:d, d] = motion.pose.invert(np.zeros(d))
    to_field, to_source = motion.warp.grid.inverse @ back @ grid.affine, grid.inverse @ back @ grid.affine
    linear = torch.from_numpy(grid.inverse[:d, :d].astype(np.float32))
    field = torch.einsum("ij,j...->i...", linear, motion.warp.field)  # in voxels
    source, out = as_tensor(image), np.empty(image.array.shape, np.float32)
    thick = max(1, _POINTS_AT_ONCE // int(np.prod(grid.shape[1:])))
    for k in range(0, grid.shape[0], thick):  # in slabs, for memory's sake
        rows = range(k, min(k + thick, grid.shape[0]))
        index = _lattice(rows, grid.shape[1:], to_source)
        index += sample_index(field, _lattice(rows, grid.shape[1:], to_field)).movedim(0, -1)
        out[:, k : k + thick] = sample_index(source, index, fill).numpy()
    return Image(out, grid, image.meta)


def _lattice(rows: range, rest: tuple[int, ...], affine: Array) -> torch.Tensor:
    """(len(rows), *rest, D) float32: ``affine`` applied to every index."""
    d = len(rest) + 1
    out = torch.tensor(affine[:d, d], dtype=torch.float32)
    for a, steps in enumerate((rows, *map(range, rest))):
        line = np.asarray(steps, dtype=np.float64)[:, None] * affine[:d, a]
        out = out + torch.from_numpy(line.astype(np.float32)).view(*(1,) * a, -1, *(1,) * (d - 1 - a), d)
    return out


def _with_new_contrast(image: Image, motion: Motion, rng: np.random.Generator, strength: float) -> Image:
    """The moved image with another contrast, uneven gain and noise, in the dtype and range that it had."""
    values = image.subsample()
    lowest = float(image.array.min())
    emptied = bool((values == lowest).mean() > 0.05)  # a background that somebody blackened stays black
    rule = intensity_rule(None, [image])
    low, high = bounds(image, rule)
    moved = read_through(image, motion, lowest if emptied else float(np.percentile(values, 1)))
    out = torch.from_numpy(moved.array)
    empty = out == lowest if emptied else None
    grey = ((out.mean(0, keepdim=True) - low) / (high - low)).clamp_(0, 1.5)
    # what is beyond the bounds changes with them, so nothing is cut off
    strength *= CT_SHARE if rule["kind"] == "window" else 1
    change = random_intensity(grey, rng, strength).sub_(grey).mul_(high - low)
    out = out + change
    most = float(np.iinfo(image.array.dtype).max) if image.array.dtype.kind in "iu" else np.inf
    brightest = float(np.percentile(Image(out.numpy(), image.grid).subsample(), 99.5))
    if brightest > most:  # too bright for the dtype: dimmed as a whole, or the brightest tissue would be one flat patch
        out = low + (out - low) * ((most - low) / (brightest - low))
    if empty is not None:
        out[empty] = lowest
    if lowest >= 0:
        out.clamp_(min=0)
    return Image(_as_dtype(out.numpy(), image.array.dtype, high - low), image.grid, {})


def _as_dtype(array: NDArray[np.float32], dtype: np.dtype[Any], span: float) -> NDArray[Any]:
    """Whole numbers rounded and kept within the dtype's range; floats as float32, without digits that noise drowns (it
    makes files half as large)."""
    if dtype.kind in "iu":
        return rounded(array, dtype)
    step = np.float32(2.0 ** np.floor(np.log2(span / LEVELS)))
    return np.asarray(np.rint(array / step) * step, dtype=np.float32)
