"""The spaces that published PIN iterates in: a point's voxel coordinates, parameters of a shape model, or codes of an
autoencoder in its place.

All coordinates are voxels of the working grid, x, y[, z], from the first voxel's centre. A state is a vector of n
numbers; ``truth - state`` is what the network learns. Of a space: ``landmarks``, which of the model's a state
describes; ``size``, n; ``unit`` (n,), voxels (or raw shape parameters) in one unit of the state.

Its methods: ``encode``, the state (n,) of a model's points (N, D), NaN = missing, None where they say nothing of it;
``decode``, points (M, K, D) of states (M, n); ``uniform``, a random state (n,) as in the paper's training; ``near``,
ours, one around the true state at a random scale; ``starts``, start states (S, n), where ``guess`` (N, D) holds a first
guess of the points. Their argument ``size`` (D,) is the image's extent in voxels, x, y[, z].
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from anatomark.core.grid import Array
from anatomark.core.shape import PCAShape, Pose, random_rotation
from anatomark.methods.kit.layers import device_of

GUESSED = 0.25  # ours: a first guess shrinks the region of the starts to this part
POOL, BATCH = 4096, 64  # jittered copies that the autoencoder learns from, and those in a step


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
        state = None if guess is None else self.encode(guess)
        centre, reach = ((size - 1) / 2, size / 4) if state is None else (state, size / 4 * GUESSED)
        return np.asarray(centre + self._pattern * reach)


class ShapeSpace:
    """Parameters b of the PCA of absolute coordinates (several landmarks; eq. 3-4).

    ``whiten``: one unit of the state is one standard deviation of b instead of one voxel. ``offsets`` (S-1, n) in
    -1 ... 1 are the random starts beside b = 0, drawn once by whoever makes the model. ``reach`` (n,): half-width of
    the box of states, 3 standard deviations.
    """

    def __init__(self, pca: PCAShape, ndim: int, offsets: Array, *, whiten: bool):
        self.pca = pca
        self.ndim = ndim
        self.landmarks = list(range(len(pca.mean) // ndim))
        self.size = pca.size
        self.unit = pca.sd if whiten else np.ones(pca.size)
        self.reach = 3 * self.pca.sd / self.unit
        self._offsets = offsets

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


class ShapeAutoencoder(nn.Module):
    """The shape model that Li et al. leave as future work: an MLP P-128-64-n_b and back, for vectors of P = N*D
    coordinates standardised to about unit size. Codes are in training standard deviations from the training mean,
    ``latent_mean`` and ``latent_sd`` (n_b,), which are set with ``fitted`` at the end of training."""

    fitted: torch.Tensor
    latent_mean: torch.Tensor
    latent_sd: torch.Tensor

    def __init__(self, inputs: int, latent: int):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(inputs, 128), nn.SiLU(), nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, 64), nn.SiLU(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, inputs)
        )
        self.register_buffer("fitted", torch.zeros(1))
        self.register_buffer("latent_mean", torch.zeros(latent))
        self.register_buffer("latent_sd", torch.ones(latent))


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
        self.reach = np.full(self.size, 3 * self._scale)
        self._spread = float(np.sqrt((pca.sd**2).sum() / len(pca.mean))) or 1.0

    def _completed(self, points: Array) -> Array:
        """Points (N, D) with missing ones filled by the PCA."""
        x = points.reshape(-1)
        if not np.isfinite(x).all():
            x = np.where(np.isfinite(x), x, self.pca.decode(self.pca.encode_partial(x, noise=1.0)))
        return np.asarray(x.reshape(points.shape))

    def _standardised(self, points: Array) -> Array:
        """(P,) what the autoencoder reads: complete points (N, D) minus the mean, over their spread."""
        return np.asarray((points.reshape(-1) - self.pca.mean) / self._spread)

    @torch.no_grad()
    def encode(self, points: Array) -> Array | None:
        if not np.isfinite(points).any():
            return None
        code = self.net.encoder(self._tensor(self._standardised(self._completed(points))[None]))
        code = (code - self.net.latent_mean) / self.net.latent_sd
        return np.asarray(code[0].cpu().double()) * self._scale

    @torch.no_grad()
    def decode(self, states: Array) -> Array:
        codes = self._tensor(states / self._scale) * self.net.latent_sd + self.net.latent_mean
        shapes = self.net.decoder(codes).cpu().double().numpy()
        return np.asarray((shapes * self._spread + self.pca.mean).reshape(len(states), -1, self.ndim))

    def _tensor(self, values: ArrayLike) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=device_of(self.net))

    @torch.enable_grad()
    def fit(self, shapes: Array, steps: int, seed: int) -> None:
        """Trains the autoencoder on shapes (M, N, D) in voxels, NaN = missing, under random similarity jitter; freezes
        it. Adam 1e-3 with a cosine schedule on the mean squared error of annotated coordinates. A second or two for
        1000 steps."""
        net, rng = self.net, np.random.default_rng([seed, 1])
        full = np.stack([self._completed(s) for s in shapes])
        source = rng.integers(len(shapes), size=POOL)
        x = self._tensor([self._standardised(_jittered(full[k], rng)) for k in source])
        mask = self._tensor(np.isfinite(shapes).reshape(len(shapes), -1)[source])
        net.train().requires_grad_(True)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.as_tensor(rng.integers(POOL, size=BATCH), device=x.device)
            error = (net.decoder(net.encoder(x[rows])) - x[rows]).square() * mask[rows]
            optimizer.zero_grad()
            (error.sum() / mask[rows].sum().clamp_min(1)).backward()
            optimizer.step()
            schedule.step()
        net.eval().requires_grad_(False)
        codes = net.encoder(self._tensor([self._standardised(s) for s in full]))
        net.fitted.fill_(1)
        net.latent_mean.copy_(codes.mean(0))
        net.latent_sd.copy_(codes.std(0, correction=0).clamp_min(1e-6))


Space = PointSpace | ShapeSpace


def _jittered(shape: Array, rng: np.random.Generator) -> Array:
    """A shape (N, D) under a random similarity about its centroid: 10 degrees, 10 % of size, 5 % of its extent."""
    centre, d = shape.mean(0), shape.shape[1]
    shift = rng.normal(0, 0.05 * float(np.ptp(shape, 0).max()), d)
    return Pose(random_rotation(rng, d, 10.0), centre + shift, float(rng.uniform(0.9, 1.1))).apply(shape - centre)


def start_pattern(ndim: int) -> Array:
    """(19, 3) or (9, 2): the centre, the axis neighbours and the face diagonals, in -1, 0, 1."""
    grid = np.array(list(itertools.product((0, -1, 1), repeat=ndim)), dtype=np.float64)
    order = np.abs(grid).sum(1)
    return np.concatenate([grid[order == k] for k in (0, 1, 2)])
