"""The spaces that published PIN iterates in: a point's voxel coordinates, or parameters of a shape model.

All coordinates are voxels of the working grid, x, y[, z], from the first voxel's centre. A state is a vector of n
numbers; ``truth - state`` is what the network learns. ``size`` (D,) is the image's extent in voxels, x, y[, z].
"""

from __future__ import annotations

import itertools
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

from anatomark.core.grid import Array
from anatomark.core.shape import PCAShape
from anatomark.methods.pin.autoencoder import ShapeAutoencoder

GUESSED = 0.25  # ours: a first guess shrinks the region of the starts to this part


class Space(Protocol):
    """What the iteration needs to know of its states."""

    landmarks: list[int]  # which of the model's landmarks a state describes
    size: int  # n, components of a state
    unit: Array  # (n,) voxels (or raw shape parameters) in one unit of the state

    def encode(self, points: Array) -> Array | None:
        """State (n,) of a model's points (N, D), NaN = missing; None where they say nothing of it."""

    def decode(self, states: Array) -> Array:
        """Points (M, K, D) of states (M, n)."""

    def uniform(self, rng: np.random.Generator, size: Array) -> Array:
        """A random state (n,) as in the paper's training."""

    def near(self, rng: np.random.Generator, truth: Array, size: Array) -> Array:
        """Ours: a random state (n,) around the true one, at a random scale."""

    def starts(self, size: Array, guess: Array | None) -> Array:
        """Start states (S, n); ``guess`` (N, D) holds a first guess of the points."""


class PointSpace:
    """One landmark's position itself (single landmark)."""

    def __init__(self, landmark: int, ndim: int, starts: int):
        self.landmarks = [landmark]
        self.size = ndim
        self.unit = np.ones(ndim)
        self._pattern = start_pattern(ndim)[:starts]

    def encode(self, points: Array) -> Array | None:
        point = points[self.landmarks[0]]
        return point if np.isfinite(point).all() else None

    def decode(self, states: Array) -> Array:
        return states[:, None]

    def uniform(self, rng: np.random.Generator, size: Array) -> Array:
        return rng.uniform(0, 1, self.size) * (size - 1)

    def near(self, rng: np.random.Generator, truth: Array, size: Array) -> Array:
        """Gaussian around the truth, from one voxel to a quarter of the image."""
        spread = np.exp(rng.uniform(0, np.log(max(2.0, float(size.max()) / 4))))
        return truth + rng.normal(0, spread, self.size)

    def starts(self, size: Array, guess: Array | None) -> Array:
        """Centre (or guess) and neighbours at a quarter of the image size (16th around a guess)."""
        centre, reach = (size - 1) / 2, size / 4
        state = None if guess is None else self.encode(guess)
        if state is not None:
            centre, reach = state, reach * GUESSED
        return np.asarray(centre + self._pattern * reach)


class ShapeSpace:
    """Parameters b of the PCA of absolute coordinates (several landmarks; eq. 3-4).

    ``whiten``: one unit of the state is one standard deviation of b instead of one voxel. ``offsets`` (S-1, n) in
    -1 ... 1 are the random starts beside b = 0, drawn once by whoever makes the model.
    """

    def __init__(self, pca: PCAShape, ndim: int, offsets: Array, *, whiten: bool):
        self.pca = pca
        self.ndim = ndim
        self.landmarks = list(range(len(pca.mean) // ndim))
        self.size = pca.size
        self.unit = pca.sd if whiten else np.ones(pca.size)
        self._offsets = offsets

    @property
    def reach(self) -> Array:
        """(n,) half-width of the box of states: 3 standard deviations."""
        return 3 * self.pca.sd / self.unit

    def encode(self, points: Array) -> Array | None:
        """b by projection; with missing points, the most probable b."""
        x = points.reshape(-1)
        if np.isfinite(x).all():
            return self.pca.encode(x) / self.unit
        return self.pca.encode_partial(x, noise=1.0) / self.unit if np.isfinite(x).any() else None

    def decode(self, states: Array) -> Array:
        return self.pca.decode(states * self.unit).reshape(len(states), -1, self.ndim)

    def uniform(self, rng: np.random.Generator, size: Array) -> Array:
        """Uniform within 3 standard deviations, each parameter by itself."""
        return rng.uniform(-1, 1, self.size) * self.reach

    def near(self, rng: np.random.Generator, truth: Array, size: Array) -> Array:
        """Gaussian around the truth, from 2 % of a standard deviation to a whole one."""
        spread = np.exp(rng.uniform(np.log(0.02), 0)) / 3 * self.reach
        return truth + rng.normal(0, 1, self.size) * spread

    def starts(self, size: Array, guess: Array | None) -> Array:
        """b = 0 and the drawn ones; around a guess, the same in a smaller box."""
        state = None if guess is None else self.encode(guess)
        centre, part = (np.zeros(self.size), 1.0) if state is None else (state, GUESSED)
        return np.concatenate([centre[None], centre + self._offsets * self.reach * part])


class AutoencoderSpace(ShapeSpace):
    """Codes of an autoencoder in place of b; missing points are filled by the PCA first.

    One unit is one standard deviation (``whiten``), else such that the codes spread as widely as the PCA's b do.
    """

    def __init__(self, pca: PCAShape, net: ShapeAutoencoder, ndim: int, offsets: Array, *, whiten: bool):
        super().__init__(pca, ndim, offsets, whiten=whiten)
        self.net = net
        self.size = offsets.shape[1]
        rms = float(np.sqrt((pca.sd**2).sum() / self.size))
        self._scale = 1.0 if whiten else rms
        self.unit = np.full(self.size, rms if whiten else 1.0)
        self.centre = pca.mean
        self.spread = float(np.sqrt((pca.sd**2).sum() / len(pca.mean))) or 1.0

    @property
    def reach(self) -> Array:
        """(n,) three standard deviations of the codes."""
        return np.full(self.size, 3 * self._scale)

    def completed(self, points: Array) -> Array:
        """Points (N, D) with missing ones filled by the PCA."""
        x = points.reshape(-1)
        if not np.isfinite(x).all():
            x = np.where(np.isfinite(x), x, self.pca.decode(self.pca.encode_partial(x, noise=1.0)))
        return np.asarray(x.reshape(points.shape))

    def standardised(self, points: Array) -> Array:
        """(P,) what the autoencoder reads: complete points (N, D) minus the mean, over their spread."""
        return np.asarray((points.reshape(-1) - self.centre) / self.spread)

    @torch.no_grad()
    def encode(self, points: Array) -> Array | None:
        if not np.isfinite(points).any():
            return None
        code = self.net.encode(self._tensor(self.standardised(self.completed(points))[None]))
        return np.asarray(code[0].cpu().double()) * self._scale

    @torch.no_grad()
    def decode(self, states: Array) -> Array:
        shapes = self.net.decode(self._tensor(states / self._scale)).cpu().double().numpy()
        return (shapes * self.spread + self.centre).reshape(len(states), -1, self.ndim)

    def _tensor(self, values: ArrayLike) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.net.latent_sd.device)


def start_pattern(ndim: int) -> Array:
    """(19, 3) or (9, 2): the centre, the axis neighbours and the face diagonals, in -1, 0, 1."""
    grid = np.array(list(itertools.product((0, -1, 1), repeat=ndim)), dtype=np.float64)
    order = np.abs(grid).sum(1)
    return np.concatenate([grid[order == k] for k in (0, 1, 2)])
