"""The mean picture of an anatomy in its model's frame, and the smooth field that draws an image onto it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.shape import Pose, procrustes
from anatomark.core.warp import Warp
from anatomark.methods.base import Length, Stored
from anatomark.methods.kit.augment import PointMap
from anatomark.methods.kit.posed import read_block

WIDE = (6, 5, 4, 4)  # of the windows of one step after the other, in nodes, while the pose is found
REACHES = (6, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2, 2, 1, 1)  # and after that
EVEN = 4  # voxels: of the windows in which contrast is made even
FLAT = 0.05  # standard deviation below which a window holds nothing but noise
DAMPING = 0.4  # of a step, against the picture's mean slope
LEAST = 0.2  # Jacobian
KERNEL = 0.15  # radii: how far a landmark's departure reaches


class PictureFacts(Stored):
    """A :class:`Picture` as plain JSON: ``shape`` in voxels, ``spacing_mm``, ``values`` (base64 of little-endian half
    floats in array order), and the number of ``cases`` that it is the mean of."""

    shape: list[Annotated[int, Field(ge=2, le=512)]] = Field(min_length=2, max_length=3)
    spacing_mm: Length
    values: str
    cases: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _whole(self) -> PictureFacts:
        if len(set(self.shape)) > 1:
            raise ValueError("shape: a mean picture is as wide as high")
        picture = Picture.from_facts(self).values
        if not bool(torch.isfinite(picture).all()) or float(picture.abs().max()) > 100:
            raise ValueError("values: holds numbers that are no grey values")
        return self


@dataclass(frozen=True, eq=False)
class Picture:
    """``values`` (1, 1, px, ..., px) float32, ``spacing`` mm apart, about the origin of the model's frame; the mean
    of ``cases``."""

    values: torch.Tensor
    spacing: float
    cases: int = 1

    @property
    def nodes(self) -> Grid:
        """Where displacements are given: every other voxel."""
        d, n = self.values.ndim - 2, self.values.shape[2] // 2
        return Grid.centred((n,) * d, np.eye(d)[:, ::-1] * (2 * self.spacing), np.zeros(d))

    def draw(self, image: Image, pose: Pose, reaches: Sequence[int] = REACHES) -> Warp:
        """The field, model frame to model frame, by which ``image`` read in ``pose`` looks like the picture.

        Steps of Lucas and Kanade (1981), with the slopes of both pictures as in symmetric demons, after contrast was
        made even in both; each step is smooth over its window, and goes on from what the steps before it left.
        """
        grid = self.nodes
        there = evened(self.values)
        at = torch.from_numpy(grid.points()).float()
        field = torch.zeros(grid.ndim, *grid.shape)
        for reach in reaches:
            block = self.read(image, pose, Warp(grid, field))
            step = _step(evened(block), there, reach) * self.spacing
            index = torch.from_numpy(grid.to_index((at + step.movedim(0, -1)).numpy()))
            unit = ((index + 0.5) * (2 / torch.tensor(grid.shape)) - 1).float().flip(-1)
            moved = F.grid_sample(field[None], unit[None], padding_mode="border", align_corners=False)[0]
            field = step + moved
        return _unfolded(Warp(grid, field))

    def settle(self, image: Image, pose: Pose, mean: Array) -> tuple[Pose, Warp]:
        """``pose``, improved by where the landmarks ``mean`` (N, D) go when ``image`` is drawn, and the field in it."""
        pose = procrustes(mean, pose.apply(self.draw(image, pose, WIDE)(mean)))
        return pose, self.draw(image, pose)

    @property
    def weight(self) -> float:
        """How much the places that the field gives count against a network's: one half where that learned from 5
        cases, less where it learned from more."""
        return 1 / (1 + self.cases / 5)

    def read(self, image: Image, pose: Pose, form: Warp | None = None) -> torch.Tensor:
        """The picture (1, 1, *S) of ``image`` in ``pose``, ``form`` drawn out of it."""
        way = None if form is None else in_pose(form, pose)
        axes, px = pose.rotation * pose.scale, self.values.shape[2]
        return read_block(image, pose.translation[None], axes[None], px, self.spacing, way).clamp_(0, 1.5)

    def facts(self) -> PictureFacts:
        """What :meth:`from_facts` makes it of; values as half floats."""
        data = base64.b64encode(self.values.numpy().astype("<f2").tobytes()).decode("ascii")
        return PictureFacts(shape=list(self.values.shape[2:]), spacing_mm=self.spacing, values=data, cases=self.cases)

    @classmethod
    def from_facts(cls, facts: PictureFacts) -> Picture:
        """The inverse of :meth:`facts`. Raises ValueError where the values are not so many half floats."""
        flat = np.frombuffer(base64.b64decode(facts.values, validate=True), dtype="<f2").astype(np.float32)
        return cls(torch.from_numpy(flat.reshape(1, 1, *facts.shape)), facts.spacing_mm, facts.cases)

    @classmethod
    def of(cls, cases: Iterable[tuple[Image, Array]], mean: Array, px: int, spacing: float, radius: float) -> Picture:
        """The mean of images with landmarks (N, D) world mm, each drawn onto the ``mean`` shape by its landmarks."""
        d = mean.shape[1]
        empty, total = cls(torch.zeros(1, 1, *(px,) * d), spacing), []
        for image, points in cases:
            pose = procrustes(mean, points)
            form = _form_of(mean, pose.invert(points), KERNEL * radius, empty.nodes)
            total.append(empty.read(image, pose, form))
        return cls(torch.cat(total).mean(0, keepdim=True), spacing, len(total))


def in_pose(warp: Warp, pose: Pose) -> PointMap:
    """A warp of the model's frame as a function of world points of an anatomy in ``pose``."""
    return lambda world: pose.apply(warp(pose.invert(world)))


def evened(x: torch.Tensor) -> torch.Tensor:
    """Values (1, 1, *S) less their local mean, in their local standard deviation."""
    mean = _window(x, EVEN)
    return (x - mean) / ((_window(x.square(), EVEN) - mean.square()).clamp(min=0) + FLAT**2).sqrt()


def _step(here: torch.Tensor, there: torch.Tensor, reach: int) -> torch.Tensor:
    """(D, *nodes) voxels: least squares displacements, in windows, from the picture ``there`` to ``here``."""
    d = here.ndim - 2
    pool: Callable[..., torch.Tensor] = F.avg_pool2d if d == 2 else F.avg_pool3d
    slope = torch.cat([torch.gradient((here + there) / 2, dim=a)[0] for a in range(here.ndim - 1, 1, -1)], 1)
    pairs = [(i, j) for i in range(d) for j in range(i + 1)]
    products = [slope[:, i] * slope[:, j] for i, j in pairs]
    products += [(there - here)[:, 0] * slope[:, i] for i in range(d)]
    sums = pool(torch.stack(products, 1), 2)
    sums = _window(sums, reach, 2)[0]
    matrix = sums.new_zeros(*sums.shape[1:], d, d)
    for k, (i, j) in enumerate(pairs):
        matrix[..., i, j] = matrix[..., j, i] = sums[k]
    size = matrix.diagonal(dim1=-2, dim2=-1).sum(-1).mean()
    matrix = matrix + (DAMPING * size + 1e-9) * torch.eye(d)
    right = sums[len(pairs) :].movedim(0, -1)[..., None]
    return torch.linalg.solve(matrix, right)[..., 0].movedim(-1, 0)


def _window(x: torch.Tensor, reach: int, times: int = 1) -> torch.Tensor:
    """Means (B, C, *S) over windows of 2 reach + 1 along every axis, ``times`` over; at the border of what lies inside.
    A matrix product for each axis: many times as fast as pooling."""
    for _ in range(x.ndim - 2):  # the first axis behind the channels goes to the end
        at = torch.arange(x.shape[2])
        near = ((at[:, None] - at).abs() <= reach).float()
        x = torch.tensordot(x, torch.linalg.matrix_power(near / near.sum(1, keepdim=True), times), dims=([2], [1]))
    return x


def _form_of(mean: Array, shape: Array, width: float, grid: Grid) -> Warp:
    """The smooth field that takes ``mean`` (N, D) about to ``shape`` (N, D), NaN = unknown: kernel regression."""
    given = np.isfinite(shape).all(1)
    mean, rest = mean[given], shape[given] - mean[given]
    here, spread = _shares(mean, mean, width), np.zeros_like(rest)
    for _ in range(3):  # what is smoothed falls short of the landmarks; the rest is smoothed again
        spread, rest = spread + rest, rest - here @ rest
    nodes = grid.points().reshape(-1, mean.shape[1])
    field = np.concatenate(
        [_shares(some, mean, width) @ spread for some in np.array_split(nodes, len(nodes) // 2000 + 1)]
    )
    return _unfolded(Warp(grid, torch.from_numpy(field.T.reshape(-1, *grid.shape).astype(np.float32))))


def _unfolded(warp: Warp) -> Warp:
    """``warp``, smoothed until its Jacobian stays above ``LEAST`` everywhere."""
    grid, field = warp.grid, warp.field
    d = len(field)
    for _ in range(100):
        slopes = torch.stack([torch.stack(torch.gradient(c)[::-1], -1) for c in field], -2) / float(grid.spacing[0])
        if float(torch.det(slopes + torch.eye(d)).min()) > LEAST:
            break
        field = _window(field[None], 1)[0]
    return Warp(grid, field)


def _shares(at: Array, points: Array, width: float) -> Array:
    """(M, N) weights of ``points`` at ``at``; rows sum to 1, and far from all points all count alike."""
    away = np.maximum(np.square(at).sum(1)[:, None] - 2 * at @ points.T + np.square(points).sum(1), 0)
    weights = np.exp(-away / (2 * width**2)) + 1e-6
    return np.asarray(weights / weights.sum(1, keepdims=True))
