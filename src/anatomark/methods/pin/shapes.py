"""Fitting the autoencoder that can take the PCA's place."""

from __future__ import annotations

import numpy as np
import torch

from anatomark.core.grid import Array
from anatomark.core.shape import Pose, random_rotation
from anatomark.methods.pin.spaces import AutoencoderSpace

POOL = 4096  # jittered copies
BATCH = 64


@torch.enable_grad()
def fit_autoencoder(space: AutoencoderSpace, shapes: Array, steps: int, seed: int) -> None:
    """Trains ``space.net`` on shapes (M, N, D) in voxels, NaN = missing, under random similarity jitter; freezes it.

    Adam 1e-3 with a cosine schedule on the mean squared error of annotated coordinates. A second or two for 1000 steps.
    """
    net, rng = space.net, np.random.default_rng([seed, 1])
    device = net.latent_sd.device
    full = np.stack([space.completed(s) for s in shapes])
    source = rng.integers(len(shapes), size=POOL)
    pool = np.stack([space.standardised(jittered(full[k], rng)) for k in source])
    annotated = np.isfinite(shapes).reshape(len(shapes), -1)[source]
    x = torch.as_tensor(pool, dtype=torch.float32, device=device)
    mask = torch.as_tensor(annotated, dtype=torch.float32, device=device)
    net.train().requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.as_tensor(rng.integers(POOL, size=BATCH), device=device)
        error = (net(x[rows]) - x[rows]).square() * mask[rows]
        optimizer.zero_grad()
        (error.sum() / mask[rows].sum().clamp_min(1)).backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)
    plain = np.stack([space.standardised(s) for s in full])
    net.measure(torch.as_tensor(plain, dtype=torch.float32, device=device))


def jittered(shape: Array, rng: np.random.Generator) -> Array:
    """A shape (N, D) under a random similarity about its centroid: 10 degrees, 10 % of size, 5 % of its extent."""
    centre, d = shape.mean(0), shape.shape[1]
    shift = rng.normal(0, 0.05 * float(np.ptp(shape, 0).max()), d)
    return Pose(random_rotation(rng, d, 10.0), centre + shift, float(rng.uniform(0.9, 1.1))).apply(shape - centre)
