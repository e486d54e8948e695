"""What blocks see: reading the votes of their cells, and agreeing on one pose of the anatomy among many looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.shape import Pose
from anatomark.methods.global_to_local.net import Votes
from anatomark.methods.global_to_local.votes import displacement, log_displacement


def log_votes(votes: Votes, centres: torch.Tensor) -> torch.Tensor:
    """(B, N, K, D) log displacement of every cell with centre ``centres`` (K, D) to every landmark."""
    return log_displacement(votes.points[:, :, None] - centres) + votes.correction


def read_votes(votes: Votes, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posterior-weighted mean (B, N, D) of the cells' votes and covariance (B, N, D, D) of the cloud, in cells from the
    block's centre, and the posterior (B, N) that any cell holds the landmark."""
    weight = votes.logits[..., :-1].softmax(-1)
    places = centres + displacement(log_votes(votes, centres))
    mean = torch.einsum("bnk,bnkd->bnd", weight, places)
    aside = places - mean[:, :, None]
    cloud = torch.einsum("bnk,bnki,bnkj->bnij", weight, aside, aside)
    return mean, cloud, 1 - votes.logits.softmax(-1)[..., -1]


@dataclass(frozen=True)
class Look:
    """What M blocks say: ``points`` (M, N, D) world mm, ``covariance`` (M, N, D, D) mm^2 of each vote cloud, ``here``
    (M, N) the posterior that the block holds the landmark."""

    points: Array
    covariance: Array
    here: Array

    def some(self, chosen: NDArray[np.bool_]) -> Look:
        """Some of the blocks."""
        return Look(self.points[chosen], self.covariance[chosen], self.here[chosen])

    def middle(self) -> tuple[Array, Array]:
        """Median point (N, D) of all blocks, each weighing as much as it is sure, and how sure (N,) those are."""
        weight = self.here + 1e-6
        points = weighted_median(self.points, weight)
        return points, (weight * self.here).sum(0) / weight.sum(0)


@dataclass(frozen=True)
class Hypotheses:
    """Where the anatomy lies as each of M blocks sees it: ``poses``, fitted ``shapes`` (M, N, D) world mm, and how
    credible each is (M,)."""

    look: Look
    poses: list[Pose]
    shapes: Array
    weight: Array

    def consensus(self, radius: float) -> Look:
        """The looks whose shapes lie near the one with most support."""
        apart = np.linalg.norm(self.shapes[:, None] - self.shapes[None], axis=-1).mean(-1) / radius
        support = self.weight * (np.exp(-((apart / 0.2) ** 2)) @ self.weight)
        return self.look.some(apart[int(support.argmax())] < 0.3)


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
