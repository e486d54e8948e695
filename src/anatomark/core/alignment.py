"""Where an image lies in a template's world: a linear map between two worlds, which moves grids and landmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where an image lies. ``affine`` (D+1, D+1) float64: template world to image world, mm; ``measure``: normalised
    mutual information reached (1 = nothing in common, 2 = everything), NaN where it was given; ``seconds`` it took."""

    affine: Array
    measure: float = float("nan")
    seconds: float = 0.0

    def moved(self, image: Image) -> Image:
        """The same voxels in the template's world."""
        return Image(image.array, Grid(image.grid.shape, _exact(self._back @ image.grid.affine)), image.meta)

    def to_template(self, landmarks: Landmarks) -> Landmarks:
        """Landmarks of the image in the template's world, with their covariances and radii."""
        return _transformed(landmarks, self._back)

    def from_template(self, landmarks: Landmarks) -> Landmarks:
        """The inverse of :meth:`to_template`."""
        return _transformed(landmarks, self.affine)

    @property
    def _back(self) -> Array:
        return _exact(np.linalg.inv(self.affine))


def _exact(matrix: ArrayLike) -> Array:
    """An affine whose last row is 0 ... 0 1, whatever was rounded."""
    out = np.array(matrix, dtype=np.float64)
    out[-1] = np.eye(len(out))[-1]
    return out


def _transformed(landmarks: Landmarks, affine: Array) -> Landmarks:
    d = landmarks.ndim
    j = affine[:d, :d]
    size = float(np.abs(np.linalg.det(j)) ** (1 / d))
    return replace(
        landmarks,
        points=landmarks.points @ j.T + affine[:d, d],
        covariance=None if landmarks.covariance is None else j @ landmarks.covariance @ j.T,
        radius90=None if landmarks.radius90 is None else size * landmarks.radius90,
    )
