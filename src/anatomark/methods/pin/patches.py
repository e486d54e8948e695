"""The 2.5D network input of PIN (Li et al. 2018): orthogonal planes through positions, cut without interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]


def plane_count(ndim: int) -> int:
    """Planes for each landmark: 3 in 3D, 1 in 2D."""
    return 3 if ndim == 3 else 1


def cut_planes(volume: Numbers, positions: Numbers, patch_px: int, out: Numbers | None = None) -> Numbers:
    """Planes through every position, of ``volume``'s dtype, channels last: (M, s, s, C), s = ``patch_px``.

    ``volume``: (z, y, x) or, in 2D, (y, x). ``positions``: (M, N, D) voxel coordinates in **x, y[, z]** order from the
    first voxel's centre, truncated towards zero. 3D: C = 3N, for each landmark the planes yz, xz, xy, with rows along
    the volume's slower axis: (z, y), (z, x), (y, x). 2D: C = N. The position lies at pixel s // 2. Outside the volume
    the value is 0, so a plane that lies wholly outside is all 0; a position that is not finite counts as outside.
    ``out``: an array to write into, for repeated calls. ``volume`` may have any strides (a flipped view, a memory map).
    """
    ndim = volume.ndim
    count, landmarks = positions.shape[:2]
    planes = plane_count(ndim)
    centre = np.trunc(np.nan_to_num(positions, nan=-1e6, posinf=-1e6, neginf=-1e6).clip(-1e6, 1e6))
    centre = centre.astype(np.int64)[..., ::-1]  # now in the array's order
    size = np.asarray(volume.shape)
    low = centre - patch_px // 2
    first, last = np.clip(low, 0, size), np.clip(low + patch_px, 0, size)
    if out is None:
        out = np.empty((count, patch_px, patch_px, planes * landmarks), dtype=volume.dtype)
    if (first > low).any() or (last < low + patch_px).any():
        out.fill(0)
    # plain lists: this loop is a tenth of a gather's time, and its overhead is what counts
    boxes = np.stack([centre, first, last, first - low, last - low], 2).tolist()
    seen = ((centre >= 0) & (centre < size)).tolist()
    one = _cut_3d if ndim == 3 else _cut_2d
    for m in range(count):
        target = out[m]
        for n in range(landmarks):
            one(volume, target, planes * n, boxes[m][n], seen[m][n])
    return out


def _cut_3d(volume: Numbers, out: Numbers, at: int, box: list[list[int]], seen: list[bool]) -> None:
    (z, y, x), (z0, y0, x0), (z1, y1, x1), (u0, v0, w0), (u1, v1, w1) = box
    if seen[2]:
        out[u0:u1, v0:v1, at] = volume[z0:z1, y0:y1, x]
    if seen[1]:
        out[u0:u1, w0:w1, at + 1] = volume[z0:z1, y, x0:x1]
    if seen[0]:
        out[v0:v1, w0:w1, at + 2] = volume[z, y0:y1, x0:x1]


def _cut_2d(volume: Numbers, out: Numbers, at: int, box: list[list[int]], seen: list[bool]) -> None:
    _, (y0, x0), (y1, x1), (v0, w0), (v1, w1) = box
    out[v0:v1, w0:w1, at] = volume[y0:y1, x0:x1]
