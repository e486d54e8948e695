"""One model that looks several times: at an image as it is, and at slightly changed views of it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.alignment import Alignment
from anatomark.core.image import Image
from anatomark.core.shape import rotation_from_vector
from anatomark.model.ensemble import Ensemble, combine, hash_of, summed_align_seconds
from anatomark.model.model import Model, Spacing, fitting
from anatomark.model.prediction import Prediction

TURN_DEG, SHIFT, LOG_SCALE, GAMMA = 5.0, 0.02, 0.03, 0.1  # largest changes of a view; SHIFT of the image's extent
MOST_VIEWS = 1000
_SEED = 77  # the same image gives the same views


class Augmented:
    """A model that looks ``views`` times: at the image as it is, then slightly turned, moved, scaled and with another
    contrast; the answers are averaged as an ensemble's are. No voxel is resampled: only the grid moves."""

    def __init__(self, model: Model | Ensemble, views: int):
        self.model, self.views = model, views
        self.names, self.ndim, self.modality = model.names, model.ndim, model.modality
        self.intensity = model.intensity
        self.name, self.calibration, self.licence = model.name, model.calibration, model.licence
        self.hash = hash_of("views 1", str(views), model.hash)
        self.cost = views * model.cost
        self.learned, self.chosen = model.learned, model.chosen

    def predict(self, image: Image | str | os.PathLike[str], spacing: Spacing = None) -> Prediction:
        """As ``Model.predict``. Flags and suspicion are those of the image as it is; ``left_out``: by landmark which
        views. Raises InputError."""
        image = fitting(image, spacing, self.ndim, self.name)
        predictions = [self.model.predict(image)]
        for number in range(1, self.views):
            motion, seen = view(image, number, contrast=self.intensity["kind"] != "window")
            other = self.model.predict(seen)
            predictions.append(replace(other, landmarks=motion.from_template(other.landmarks)))
        landmarks, left_out = combine([p.landmarks for p in predictions], self.names)
        return replace(
            predictions[0],
            landmarks=landmarks,
            views=self.views,
            left_out=left_out,
            align_seconds=summed_align_seconds(predictions),
        )


def view(image: Image, number: int, *, contrast: bool = True) -> tuple[Alignment, Image]:
    """The motion and the image of view ``number`` >= 1: a similarity about the image's centre by at most 5 degrees, 2 %
    of the extent and 3 % of size, and with ``contrast`` a gamma of 0.9 to 1.1 over the range of values. The motion's
    ``from_template`` brings landmarks back."""
    rng = np.random.default_rng([_SEED, number])
    d, grid = image.ndim, image.grid
    vector = rng.normal(size=1 if d == 2 else 3)
    turn = rotation_from_vector(np.radians(TURN_DEG) * rng.uniform(-1, 1) * vector / np.linalg.norm(vector))
    linear = turn * np.exp(LOG_SCALE * rng.uniform(-1, 1))
    affine = np.eye(d + 1)
    affine[:d, :d] = linear
    affine[:d, d] = grid.centre - linear @ grid.centre + SHIFT * grid.extent_mm.min() * rng.uniform(-1, 1, d)
    motion = Alignment(affine)
    gamma = float(np.exp(GAMMA * rng.uniform(-1, 1)))
    moved = motion.moved(image)
    return motion, replace(moved, array=_with_gamma(moved.array, gamma)) if contrast else moved


def _with_gamma(array: NDArray[Any], gamma: float) -> NDArray[Any]:
    low, high = float(array.min()), float(array.max())
    if not high > low:
        return array
    return np.asarray(((array.astype(np.float32) - low) / (high - low)) ** gamma * (high - low) + low, dtype=np.float32)
