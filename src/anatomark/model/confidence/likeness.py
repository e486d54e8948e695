"""Pictures of an anatomy in its pose, how alike two are, and how rough an image is: all coarse, all fast."""

from __future__ import annotations

import numpy as np

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.resample import block_mean, sample
from anatomark.core.shape import Pose

WHOLE_PX = {2: 40, 3: 22}  # of the picture of the whole anatomy, along each side
PATCH_PX = {2: 13, 3: 9}  # of the picture around a landmark
REACH, PATCH = 1.25, 0.12  # half sides of both, in radii
_NOISE_VOXELS = 500_000


def pictures(image: Image, points: Array, pose: Pose, mean: Array) -> tuple[Array, Array]:
    """Normalised pictures in ``pose`` of the shape ``mean`` (N, D): the whole (px ** D,), and around each of ``points``
    (K, D) world mm (K, px ** D), NaN where a point is NaN. What lies outside the image is dark."""
    d, radius = mean.shape[1], float(np.linalg.norm(mean - mean.mean(0), axis=1).max())
    image = _grey(image)
    near = block_mean(image, _block(image.grid, PATCH * 2 * radius / (PATCH_PX[d] - 1)))
    far = block_mean(near, _block(near.grid, REACH * 2 * radius / (WHOLE_PX[d] - 1)))
    dark = float(np.percentile(far.subsample(), 1))
    whole = sample(far, pose.apply(mean.mean(0) + _lattice(d, WHOLE_PX[d]) * (REACH * radius)), fill=dark)
    turned = _lattice(d, PATCH_PX[d]) @ (pose.rotation * pose.scale * PATCH * radius).T
    defined = np.isfinite(points).all(1)
    patches = np.full((len(points), PATCH_PX[d] ** d), np.nan)
    if defined.any():
        patches[defined] = sample(near, points[defined][:, None] + turned, fill=dark).numpy()[0]
    return _normalised(whole.numpy()[0]), _normalised(patches)


def correlation(a: Array, b: Array) -> float:
    """Of two pictures of zero mean."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


def roughness(image: Image, points: Array) -> float:
    """Log of what one voxel differs from its two neighbours, on average near the landmarks, as a share of the values'
    range there; the median over the axes."""
    index = image.grid.to_index(points[np.isfinite(points).all(1)])
    shape = np.array(image.grid.shape)
    first = np.clip(np.floor(index.min(0)).astype(int) - 2, 0, np.maximum(shape - 8, 0))
    end = np.clip(np.ceil(index.max(0)).astype(int) + 3, np.minimum(first + 8, shape), shape)
    window = image.array[(slice(0, 1), *(slice(a, b) for a, b in zip(first, end, strict=True)))][0]
    thin = max(1, round((window.size / _NOISE_VOXELS) ** (1 / (window.ndim - 1))))
    rough = []
    for axis in range(window.ndim):
        if window.shape[axis] < 3:
            continue
        # whole lines along the axis, thinned along the others
        x = np.asarray(np.moveaxis(window, axis, -1)[(slice(None, None, thin),) * (window.ndim - 1)], dtype=np.float32)
        low, high = np.percentile(x[..., ::4], [1, 99])
        if high > low:
            x = np.clip(x, low, high)
            rough.append(np.abs(x[..., 1:-1] - (x[..., :-2] + x[..., 2:]) / 2).mean() / (high - low))
    return float(np.log(np.median(rough) + 1e-4)) if rough else float("nan")


def _lattice(d: int, px: int) -> Array:
    """(px ** D, D) points from -1 to 1 along each axis."""
    line = np.linspace(-1, 1, px)
    return np.stack(np.meshgrid(*[line] * d, indexing="ij"), -1).reshape(-1, d)


def _block(grid: Grid, step: float) -> tuple[int, ...]:
    """Voxels to average so that an image comes close to a step in mm, not above."""
    return tuple(int(b) for b in np.maximum(1, np.floor(step / grid.spacing)))


def _grey(image: Image) -> Image:
    if len(image.array) == 1:
        return image
    return Image(image.array.mean(0, keepdims=True, dtype=np.float32), image.grid, image.meta)


def _normalised(values: Array) -> Array:
    """Rows of zero mean and length 1, zero where nothing varies; NaN stays."""
    x = np.asarray(values, dtype=np.float64).reshape(-1, values.shape[-1])
    x = x - x.mean(1, keepdims=True)
    size = np.linalg.norm(x, axis=1, keepdims=True)
    return np.where(size > 1e-9, x / np.maximum(size, 1e-9), x * 0).reshape(values.shape)
