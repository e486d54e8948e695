"""Linear registration by mutual information: many candidate transforms measured and improved at once.

A template is known as P points with soft intensity classes; a candidate (B of them, as (B, D, D+1) world affines) takes
the points into an image. Measured is normalised mutual information (Studholme et al. 1999), (H(t) + H(i)) / H(t, i) of
a linearly binned joint histogram of what lies inside the image, less a penalty where little does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.resample import as_tensor
from anatomark.core.shape import rotation_angle, rotation_from_vector

_SAMPLES_AT_ONCE = 400_000  # candidates x points measured together: it bounds the memory needed
MEMORY = 0.8, 0.95  # of the gradient's mean and mean square (Adam, Kingma and Ba 2015)
_PSI = 1.533751168755204288118041  # of super-Fibonacci spirals: the positive root of psi**4 = psi + 4


def rotation_cover(ndim: int, most_deg: float, step_deg: float) -> Array:
    """(M, D, D) rotations spread evenly over all up to ``most_deg`` from the identity, which is the first.

    ``step_deg``: radius of the ball of rotations that each stands for (2D: the step between neighbours). In 3D from a
    super-Fibonacci spiral (Alexa, CVPR 2022).
    """
    if ndim == 2:
        most = min(most_deg, 180.0)
        reach = int(np.ceil(most / step_deg))
        degrees = np.arange(1, reach + 1) * (most / reach)
        both = np.stack([degrees, -degrees], 1).ravel()[: 2 * reach - (most == 180)]  # half turns meet
        return np.stack([rotation_from_vector([np.radians(a)]) for a in (0.0, *both)])
    ball = np.radians(step_deg)
    n = int(np.ceil(np.pi / (ball - np.sin(ball))))
    s = np.arange(n) + 0.5
    r, q = np.sqrt(s / n), np.sqrt(1 - s / n)
    alpha, beta = 2 * np.pi * s / np.sqrt(2), 2 * np.pi * s / _PSI
    x, y, z, w = r * np.sin(alpha), r * np.cos(alpha), q * np.sin(beta), q * np.cos(beta)
    turns = np.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ],
        1,
    ).reshape(-1, 3, 3)
    angles = np.array([rotation_angle(turn) for turn in turns])
    # the border of the range is as well covered as its inside
    return np.concatenate([np.eye(3)[None], turns[angles <= most_deg + step_deg / 2]])


def soft_bins(values: torch.Tensor, bins: int) -> torch.Tensor:
    """(..., bins) linear weights of values (...) in 0 ... 1 (clipped) on evenly spaced bins; they sum to 1."""
    at = values.clamp(0, 1)[..., None] * (bins - 1)
    return (1 - (at - torch.arange(bins, dtype=at.dtype)).abs()).clamp_min(0)


@dataclass(frozen=True)
class Template:
    """``points`` (P, D) float64 mm with ``classes`` (P, K) float32, their intensities' soft bins."""

    points: Array
    classes: torch.Tensor

    @classmethod
    def of(cls, image: Image, valid: np.ndarray, points: int, bins: int) -> Template:
        """About ``points`` voxels of a one-channel image (values 0 ... 1) among ``valid`` (*shape) ones, regularly
        chosen."""
        where = np.flatnonzero(valid)
        # a stride that shares no factor with the rows would show a pattern; the golden ratio spreads without one
        order = np.argsort((np.arange(len(where)) * 0.6180339887498949) % 1.0, kind="stable")
        where = np.sort(where[order[:points]])
        values = torch.from_numpy(np.asarray(image.array[0], dtype=np.float32).ravel()[where])
        index = np.stack(np.unravel_index(where, image.grid.shape), -1)
        return cls(image.grid.to_world(index), soft_bins(values, bins))


@dataclass(frozen=True)
class Level:
    """An image (one channel, values 0 ... 1, smoothed to the scale wanted) against a template's points."""

    image: Image
    template: Template
    bins: int = 16
    least_overlap: float = 0.5

    @cached_property
    def _array(self) -> torch.Tensor:
        return as_tensor(self.image)[None]

    @cached_property
    def _to_unit(self) -> torch.Tensor:
        """(D, D+1): world to torch's sampling coordinates, fastest axis first."""
        return torch.from_numpy(unit_affine(self.image.grid))

    @cached_property
    def _homogeneous(self) -> torch.Tensor:
        p = self.template.points
        return torch.from_numpy(np.concatenate([p, np.ones((len(p), 1))], 1))

    def measure(self, affines: torch.Tensor) -> torch.Tensor:
        """(B,) of candidates (B, D, D+1) float64; differentiable."""
        most = max(1, _SAMPLES_AT_ONCE // len(self.template.points))
        return torch.cat([self._measure(part) for part in torch.split(affines, most)])

    def _measure(self, affines: torch.Tensor) -> torch.Tensor:
        b, d = affines.shape[:2]
        u = self._to_unit
        linear = u[:, :d] @ affines[:, :, :d]
        shift = (u[:, :d] @ affines[:, :, d:]) + u[:, d:]
        theta = torch.cat([linear, shift], 2).transpose(1, 2).float()
        at = self._homogeneous.float() @ theta  # (B, P, D)
        size = torch.tensor(self.image.grid.shape[::-1], dtype=at.dtype)
        inside = (((1 - at.abs()) * size / 2) + 0.5).clamp(0, 1).prod(-1)
        values = F.grid_sample(
            self._array.expand(b, *self._array.shape[1:]), at.view(b, -1, *(1,) * (d - 1), d),
            mode="bilinear", padding_mode="border", align_corners=False,
        ).view(b, -1)  # fmt: skip
        weights = soft_bins(values, self.bins) * inside[..., None]
        joint = self.template.classes.T @ weights
        overlap = joint.sum((1, 2)) / len(self.template.points)
        joint = joint / joint.sum((1, 2), keepdim=True).clamp_min(1e-6)
        nmi = (_entropy(joint.sum(2)) + _entropy(joint.sum(1))) / _entropy(joint.flatten(1)).clamp_min(1e-6)
        return nmi - (self.least_overlap - overlap).clamp_min(0)


def unit_affine(grid: Grid) -> Array:
    """(D, D+1) from world mm to sampling coordinates: -1 ... 1 between the outer borders, fastest axis first."""
    d = grid.ndim
    scale = 2 / np.asarray(grid.shape, dtype=np.float64)
    out = grid.inverse[:d] * scale[:, None]
    out[:, d] += scale / 2 - 1
    return np.ascontiguousarray(out[::-1])


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * (p + 1e-9).log()).sum(-1)


def generators(ndim: int, kind: str) -> torch.Tensor:
    """(G, D, D) the directions in which a linear map of this kind changes: turns, then size, then shears and
    stretches; ``kind`` is rigid, similarity or affine."""
    out = []
    for i in range(ndim):
        for j in range(i):
            turn = np.zeros((ndim, ndim))
            turn[i, j], turn[j, i] = 1, -1
            out.append(turn)
    if kind != "rigid":
        out.append(np.eye(ndim))
    if kind == "affine":
        out += [np.abs(turn) / 2 for turn in out[: ndim * (ndim - 1) // 2]]
        out += [np.diag(np.eye(ndim)[i] - np.eye(ndim)[i + 1]) / 2 for i in range(ndim - 1)]
    return torch.from_numpy(np.stack(out))


def improve(
    level: Level, affines: torch.Tensor, kind: str, radius: float, step: float, rounds: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates (B, D, D+1) after ``rounds`` of gradient ascent (Adam), each for itself, and their measures (B,).

    ``radius`` mm makes a shift comparable to a turn; ``step`` (radians, radii) is the first step's size, which falls
    to a tenth. What is returned is the best each candidate came by.
    """
    b, d = affines.shape[:2]
    basis = generators(d, kind)
    theta = torch.zeros(b, len(basis) + d, dtype=torch.float64, requires_grad=True)
    mean, square = torch.zeros(2, *theta.shape, dtype=theta.dtype)
    best, kept = torch.full((b,), -torch.inf), affines
    for i in range(rounds + 1):
        linear = torch.matrix_exp(torch.einsum("bg,gij->bij", theta[:, : len(basis)], basis))
        moved = torch.cat([affines[:, :, :d] @ linear, affines[:, :, d:] + radius * theta[:, len(basis) :, None]], 2)
        value = level.measure(moved)
        better = value.detach() > best
        best = torch.where(better, value.detach(), best)
        kept = torch.where(better[:, None, None], moved.detach(), kept)
        if i == rounds:
            break
        (slope,) = torch.autograd.grad(value.sum(), theta)
        mean = torch.lerp(slope, mean, MEMORY[0])
        square = torch.lerp(slope.square(), square, MEMORY[1])
        first, second = (1 - m ** (i + 1) for m in MEMORY)  # both began at 0
        rate = step * 0.1 ** (i / max(1, rounds - 1))
        # torch's own optimisers take two seconds to import, longer than an alignment
        theta = (theta + rate * mean / first / ((square / second).sqrt() + 1e-8)).detach().requires_grad_()
    return kept, best


def distinct(affines: torch.Tensor, measures: torch.Tensor, most: int, radius: float, apart: float) -> torch.Tensor:
    """Indices of the best candidates, at most ``most``, none within ``apart`` (radians, radii) of a better one."""
    d = affines.shape[1]
    order = measures.argsort(descending=True, stable=True)
    flat = affines.clone()
    flat[:, :, :d] *= 1 / np.sqrt(2)  # Frobenius distance of rotations is sqrt(2) x 2 sin(angle / 2)
    flat[:, :, d] /= radius
    flat = flat.flatten(1)
    chosen: list[int] = []
    for i in order.tolist():
        if not chosen or float((flat[chosen] - flat[i]).norm(dim=1).min()) > apart:
            chosen.append(i)
        if len(chosen) == most:
            break
    return torch.tensor(chosen)
