"""Validation during training: a method's error in mm on cases that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from anatomark.cases.store import CaseStore
from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.methods.base import Method
from anatomark.model.compose import framed
from anatomark.model.confidence.presence import Trials


@dataclass(frozen=True)
class Residuals:
    """Predictions and truth of some cases. ``errors`` (M, N) mm, NaN where there is no truth or no prediction.
    ``trials``: presence scores in these images and in crops of them, where that was tried. ``before``: by the name of a
    training stage, evidence for it (out-of-fold)."""

    cases: tuple[str, ...]
    predictions: tuple[Landmarks, ...]
    truths: tuple[Landmarks, ...]
    trials: Trials | None = None
    before: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def errors(self) -> Array:
        """(M, N) radial errors in mm."""
        pairs = zip(self.predictions, self.truths, strict=True)
        return np.stack([p.select(t.names).errors_to(t) for p, t in pairs]) if self.cases else np.zeros((0, 0))

    @property
    def missed(self) -> int:
        """Annotated landmarks that were not located."""
        annotated = sum(int(t.defined.sum()) for t in self.truths)
        return annotated - int(np.isfinite(self.errors).sum())

    def selection_mm(self) -> float:
        """Mean error in mm by which weights are chosen; a missed landmark counts as far as the case's landmarks reach
        from their centroid."""
        total, count = 0.0, 0
        for error, truth in zip(self.errors, self.truths, strict=True):
            known = truth.points[truth.defined]
            if not len(known):
                continue
            reach = float(np.linalg.norm(known - known.mean(0), axis=1).max())
            total += float(np.where(np.isfinite(error), error, reach)[truth.defined].sum())
            count += len(known)
        return total / count if count else float("nan")

    def evidence(self, stage: str, independent: bool) -> dict[str, Any]:
        """What ``Method.begin`` of the next stage is told."""
        return {
            "stage": stage,
            "independent": independent,
            "predictions": dict(zip(self.cases, self.predictions, strict=True)),
            "truth": dict(zip(self.cases, self.truths, strict=True)),
        }


@dataclass(frozen=True)
class Validation:
    """Validation cases: images as read, under the key ``image`` of a store, and their true landmarks."""

    store: CaseStore
    independent: bool

    def __len__(self) -> int:
        return len(self.store)

    def chosen(self, most: int) -> list[int]:
        """At most ``most`` cases, evenly spread."""
        n = len(self.store)
        return sorted(set(np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist())) if n else []

    def run(self, method: Method, most: int) -> Residuals:
        """Locate in at most ``most`` cases with the method as it is; leaves it in eval mode."""
        method.eval()
        which = self.chosen(most)
        predictions = []
        with torch.no_grad():
            for i in which:
                predictions.append(method.locate(framed(self.store.images(i))))
        ids, truths = self.store.ids, self.store.landmarks
        return Residuals(tuple(ids[i] for i in which), tuple(predictions), tuple(truths[i] for i in which))


def to_plain(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence as tensors and strings, for a checkpoint."""
    if not evidence:
        return {}
    out = {"stage": evidence["stage"], "independent": evidence["independent"]}
    for key in ("predictions", "truth"):
        out[key] = {case: _plain_landmarks(x) for case, x in evidence[key].items()}
    return out


def from_plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`to_plain`."""
    out = dict(data)
    for key in ("predictions", "truth"):
        if key in data:
            out[key] = {case: _landmarks(x) for case, x in data[key].items()}
    return out


def _plain_landmarks(x: Landmarks) -> dict[str, Any]:
    arrays = {"points": x.points, "score": x.score, "covariance": x.covariance, "radius90": x.radius90}
    out: dict[str, Any] = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items() if v is not None}
    return {**out, "names": list(x.names), "status": [str(s) for s in x.status]}


def _landmarks(data: Mapping[str, Any]) -> Landmarks:
    values: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else tuple(v) for k, v in data.items()}
    return Landmarks(**values)
