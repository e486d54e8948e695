"""Agreeing on one pose of the anatomy among many views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.shape import Pose
from anatomark.methods.kit.posed import Views


def middle(views: Views) -> tuple[Array, Array]:
    """Median point (N, D) of all blocks, each weighing as much as it is sure that it holds the landmark (its score),
    and how sure (N,) those are."""
    weight = views.score + 1e-6
    points = weighted_median(views.points, weight)
    return points, (weight * views.score).sum(0) / weight.sum(0)


@dataclass(frozen=True)
class Hypotheses:
    """Where the anatomy lies as each of M blocks sees it: ``poses``, fitted ``shapes`` (M, N, D) world mm, and how
    credible each is (M,)."""

    views: Views
    poses: list[Pose]
    shapes: Array
    weight: Array

    def consensus(self, radius: float) -> Views:
        """The views whose shapes lie near the one with most support."""
        apart = np.linalg.norm(self.shapes[:, None] - self.shapes[None], axis=-1).mean(-1) / radius
        support = self.weight * (np.exp(-((apart / 0.2) ** 2)) @ self.weight)
        return self.views.some(apart[int(support.argmax())] < 0.3)


def inside_image(image: Image, world: Array, tolerance: float) -> Array:
    """(N,) how credible it is that points (N, D) mm lie in the image: 0.5 where they lie ``tolerance`` mm outside."""
    index = image.grid.to_index(world)
    depth = (np.minimum(index + 0.5, np.asarray(image.grid.shape) - 0.5 - index) * image.grid.spacing).min(1)
    return np.asarray(1 / (1 + np.exp(-np.clip(depth / tolerance + 1, -50, 50))))


def weighted_median(values: Array, weight: Array) -> Array:
    """(N, D) median along the first axis of values (M, N, D) with weights (M, N)."""
    order = np.argsort(values, 0)
    ranked = np.take_along_axis(values, order, 0)
    mass = np.take_along_axis(np.broadcast_to(weight[..., None], values.shape), order, 0)
    share = np.cumsum(mass, 0) / mass.sum(0)
    upper = (share > 0.5 + 1e-9).argmax(0)[None]
    lower = (share >= 0.5 - 1e-9).argmax(0)[None]
    return np.asarray((np.take_along_axis(ranked, lower, 0) + np.take_along_axis(ranked, upper, 0))[0] / 2)
