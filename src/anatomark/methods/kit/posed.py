"""Reading images in the frame of a pose: 2.5D patches at landmarks, blocks around everything, and where a network sees
the landmarks in these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.shape import Pose, random_rotation
from anatomark.methods.kit.augment import PointMap

_WARP_NODES = 5  # a warp is smooth: it is evaluated on this many points along a patch, linear in between
_BLOCK_NODES = 17  # along a block, which holds the whole anatomy: with 5 it would err by half of the warp


def planes(ndim: int) -> list[tuple[int, int]]:
    """The pairs of model axes that span the orthogonal planes, in the channel order yz, xz, xy (2D: xy)."""
    return [(0, 1)] if ndim == 2 else [(1, 2), (0, 2), (0, 1)]


def plane_offsets(ndim: int, nodes: int) -> Array:
    """(P, nodes, nodes, D) offsets from a patch's centre, in half widths (-1 ... 1): rows run along the plane's second
    axis, columns along its first."""
    steps = np.linspace(-1, 1, nodes)
    out = np.zeros((len(planes(ndim)), nodes, nodes, ndim))
    for p, (u, v) in enumerate(planes(ndim)):
        out[p, :, :, u] = steps[None, :]
        out[p, :, :, v] = steps[:, None]
    return out


def read_patches(
    images: Sequence[Image], centres: Array, axes: Array, px: int, spacings: Sequence[float], warp: PointMap | None
) -> torch.Tensor:
    """2.5D patches (M, N, S * P, px, px) float32 around ``centres`` (M, N, D) world mm.

    ``axes`` (M, D, D): each state's rotation times scale; the patch of scale s has pixels ``spacings[s]`` mm apart in
    the model's frame and is read from ``images[s]`` (normalised, low-passed for that spacing). ``warp`` maps output
    world to input world. Outside the image: 0.
    """
    m, n, d = centres.shape
    nodes = 2 if warp is None else _WARP_NODES
    unit, out = plane_offsets(d, nodes), []
    for image, spacing in zip(images, spacings, strict=True):
        offsets = np.einsum("mij,phwj->mphwi", axes * ((px - 1) / 2 * spacing), unit)
        world = centres[:, :, None, None, None, :] + offsets[:, None]
        coarse = unit_coordinates(image.grid, world if warp is None else warp(world)).view(-1, nodes, nodes, d)
        fine = F.interpolate(coarse.permute(0, 3, 1, 2), size=(px, px), mode="bilinear", align_corners=True)
        fine = fine.permute(0, 2, 3, 1).reshape(m * n, *((-1, px) if d == 2 else (-1, px, px)), d)
        out.append(sampled(image, fine).view(m * n, -1, px, px))
    return torch.cat(out, 1).view(m, n, -1, px, px)


def sampled(image: Image, at: torch.Tensor) -> torch.Tensor:
    """Values (B, 1, *S) at sampling coordinates (B, *S, D); 0 outside the image."""
    array = torch.from_numpy(np.asarray(image.array, dtype=np.float32))[None].expand(len(at), -1, *image.grid.shape)
    return F.grid_sample(array, at, mode="bilinear", padding_mode="zeros", align_corners=False)


def unit_coordinates(grid: Grid, world: Array) -> torch.Tensor:
    """World mm (..., D) as torch's sampling coordinates: -1 ... 1 between the outer borders, fastest axis first."""
    index = grid.to_index(world)
    unit = (index + 0.5) * (2 / np.asarray(grid.shape)) - 1
    return torch.from_numpy(np.ascontiguousarray(unit[..., ::-1], dtype=np.float32))


def read_block(
    image: Image, centres: Array, axes: Array, px: int | Sequence[int], spacing: float, warp: PointMap | None = None
) -> torch.Tensor:
    """(M, 1, px, ..., px) float32: one D-dimensional block per state, ``px`` voxels ``spacing`` mm apart along each
    model axis (or along each array axis so many), centred at ``centres`` (M, D) world mm and turned by ``axes``
    (M, D, D). Array axes follow the model's axes slowest = last (z, y, x). Outside: 0."""
    m, d = centres.shape
    size = (px,) * d if isinstance(px, int) else tuple(px)
    half = (np.array(size[::-1]) - 1) / 2 * spacing  # along the model's axes
    if warp is None:
        ends = unit_coordinates(image.grid, centres[:, None] + np.moveaxis(axes * half, 2, 1))  # (M, model axis, D)
        middle = unit_coordinates(image.grid, centres)
        theta = torch.cat([(ends - middle[:, None]).transpose(1, 2), middle[:, :, None]], 2)
        fine = F.affine_grid(theta, [m, 1, *size], align_corners=True)
    else:
        lines = [np.linspace(-h, h, _BLOCK_NODES) for h in half[::-1]]
        lattice = np.stack(np.meshgrid(*lines, indexing="ij")[::-1], -1)
        world = warp(centres.reshape(m, *(1,) * d, d) + np.einsum("mij,...j->m...i", axes, lattice))
        fine = _drawn_out(unit_coordinates(image.grid, world), size)
    return sampled(image, fine)


def _drawn_out(nodes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(M, *size, D) linear between nodes (M, k, ..., k, D) that lie evenly from end to end. Ten times as fast as
    ``F.interpolate`` in 3D, because axis after axis is one matrix product."""
    k = nodes.shape[1]
    for px in size:  # the first axis is summed up; its samples go to the end
        at = torch.linspace(0, k - 1, px)
        weights = (1 - (at[:, None] - torch.arange(k)).abs()).clamp(min=0)
        nodes = torch.tensordot(nodes, weights, dims=([1], [1]))
    return nodes.movedim(1, -1)


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


def placed(poses: Sequence[Pose]) -> tuple[Array, Array]:
    """Origins (M, D) and axes (M, D, D), rotation times scale, of the model's frame in these poses; world mm."""
    return np.stack([p.translation for p in poses]), np.stack([p.rotation * p.scale for p in poses])


def in_world(poses: Sequence[Pose], points: Array) -> Array:
    """World points (M, N, D) of model points (M, N, D) in M poses."""
    return np.stack([p.apply(x) for p, x in zip(poses, points, strict=True)])
