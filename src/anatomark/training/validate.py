"""Validation during training: a model's error in mm on cases that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from anatomark.cases.case import Case
from anatomark.cases.division import spread
from anatomark.cases.store import CaseStore
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import as_tensor, sample_index
from anatomark.core.shape import random_rotation
from anatomark.core.warp import random_warp
from anatomark.methods.base import Evidence
from anatomark.model.compose import Composed
from anatomark.model.residuals import Residuals, residuals_in

IMAGE = "image"  # the name under which a store holds a validation case's image


@dataclass
class Validation(CaseStore):
    """Validation cases: images as read, with their alignment, and true landmarks. ``source`` as in ``Evidence``."""

    source: str = "validation"

    def __getitem__(self, i: Any) -> Any:
        case = super().__getitem__(i)
        return replace(case, held=case.images[IMAGE], images={}) if isinstance(case, Case) else case

    def run(self, composed: Composed, most: int) -> Residuals:
        """Locate in at most ``most`` cases, evenly spread, with the model as it is; leaves it in eval mode."""
        which = spread(len(self), most)
        part = replace(self, cases=[self.cases[i] for i in which], keys=[self.keys[i] for i in which])
        return residuals_in(composed, part)


def to_plain(evidence: Evidence) -> dict[str, Any]:
    """Evidence as tensors and strings, for a checkpoint."""
    predictions, truth = (
        {c: _plain_landmarks(x) for c, x in e.items()} for e in (evidence.predictions, evidence.truth)
    )
    return {"predictions": predictions, "truth": truth, "source": evidence.source}


def from_plain(data: Mapping[str, Any]) -> Evidence:
    """The inverse of :func:`to_plain`."""
    predictions, truth = ({c: _landmarks(x) for c, x in data[key].items()} for key in ("predictions", "truth"))
    return Evidence(predictions, truth, data["source"])


def _plain_landmarks(x: Landmarks) -> dict[str, Any]:
    arrays = {"points": x.points, "score": x.score, "covariance": x.covariance, "radius90": x.radius90}
    out: dict[str, Any] = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items() if v is not None}
    return {**out, "names": list(x.names), "status": [str(s) for s in x.status]}


def _landmarks(data: Mapping[str, Any]) -> Landmarks:
    values: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else tuple(v) for k, v in data.items()}
    return Landmarks(**values)


def augmented_copy(image: Image, landmarks: Landmarks, rng: np.random.Generator) -> tuple[Image, Landmarks]:
    """A copy that was smoothly warped (by up to 6 % of the landmarks' extent), turned by up to 10 degrees, shifted by
    up to 3 % and scaled by up to 5 %: something to validate on where no case can be spared.

    Turning, shifting and scaling change the grid only. Returns a float32 image and the moved landmarks.
    """
    d = image.ndim
    known = landmarks.points[landmarks.defined]
    extent = float(np.ptp(known, axis=0).max()) if len(known) > 1 else 0.0
    extent = extent or float(image.grid.extent_mm.max()) / 2
    warp = random_warp(rng, image.grid, 0.06 * extent, 0.7 * extent)
    out = np.empty(image.array.shape, np.float32)
    source, fill, shape = as_tensor(image), float(image.subsample().min()), image.grid.shape
    # the warp is smooth: it is evaluated at every fourth voxel, linear in between
    nodes = [np.linspace(0, n - 1, -(-n // 4) + 1) for n in shape]
    moved = image.grid.to_index(warp(image.grid.to_world(np.stack(np.meshgrid(*nodes, indexing="ij"), -1))))
    coarse = torch.from_numpy(np.moveaxis(moved, -1, 0).astype(np.float32))[None]
    mode = "bilinear" if d == 2 else "trilinear"
    index = torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0].movedim(0, -1)
    thick = max(1, 2_000_000 // int(np.prod(shape[1:])))
    for k in range(0, shape[0], thick):  # in slabs, for memory's sake
        out[:, k : k + thick] = sample_index(source, index[k : k + thick].contiguous(), fill).numpy()
    turn = random_rotation(rng, d, 10.0) * rng.uniform(0.95, 1.05)
    centre, shift = image.grid.centre, rng.uniform(-0.03, 0.03, d) * extent
    affine = image.grid.affine.copy()
    affine[:d, :d] = turn @ image.grid.axes
    affine[:d, d] = turn @ (image.grid.origin - centre) + centre + shift
    points = (warp.inverse(landmarks.points) - centre) @ turn.T + centre + shift
    return Image(out, Grid(image.grid.shape, affine), image.meta), landmarks.with_points(points)
