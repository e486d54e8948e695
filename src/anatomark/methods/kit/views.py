"""Views of an image in poses of the anatomy, and where a network sees the landmarks in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.shape import Pose, random_rotation
from anatomark.methods.kit.posed import WarpFunction, read_block

Reader = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Views:
    """Where M blocks show N landmarks: ``points`` (M, N, D) world mm, ``covariance`` (M, N, D, D) mm^2 of each within
    its block, ``score`` (M, N) 0 ... 1."""

    points: Array
    covariance: Array
    score: Array

    def some(self, chosen: NDArray[np.bool_]) -> Views:
        """Those of the blocks that are ``chosen`` (M,)."""
        return Views(self.points[chosen], self.covariance[chosen], self.score[chosen])

    def covariance_about(self, points: Array) -> Array:
        """(N, D, D) mm^2: the blocks' mean, and how their points lie about ``points`` (N, D)."""
        aside = self.points - points
        return np.asarray(self.covariance.mean(0) + np.einsum("mni,mnj->nij", aside, aside) / len(aside))


def turned(pose: Pose, rng: np.random.Generator, count: int, most_deg: float) -> list[Pose]:
    """``pose`` turned at random by at most ``most_deg``, ``count`` times."""
    turns = [random_rotation(rng, pose.ndim, most_deg) for _ in range(count)]
    return [Pose(pose.rotation @ t, pose.translation, pose.scale) for t in turns]


def read_views(
    image: Image,
    poses: Sequence[Pose],
    read: Reader,
    *,
    px: int,
    spacing: float,
    unit: float,
    at_once: int,
    way: WarpFunction | None = None,
) -> Views:
    """Blocks of ``px`` voxels a side, ``spacing`` mm apart, in these poses, as a network reads them, ``at_once`` blocks
    at a time.

    ``read``: from blocks (B, 1, px, ..., px) to points (B, N, D) and covariance (B, N, D, D) from their middles, in
    lengths of ``unit`` mm along the model's axes, and score (B, N). ``way``: from where a block lies to where it is
    read.
    """
    parts = []
    for i in range(0, len(poses), at_once):
        some = poses[i : i + at_once]
        axes = np.stack([p.rotation * p.scale for p in some])
        centres = np.stack([p.translation for p in some])
        blocks = read_block(image, centres, axes, px, spacing, way).clamp_(0, 1.5)  # as in training
        local, cloud, score = (x.cpu().double().numpy() for x in read(blocks))
        step = axes * unit
        points = centres[:, None] + np.einsum("mij,mnj->mni", step, local)
        points = points if way is None else way(points)
        parts.append((points, np.einsum("mij,mnjk,mlk->mnil", step, cloud, step), score))
    return Views(*(np.concatenate(x) for x in zip(*parts, strict=True)))
