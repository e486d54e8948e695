"""Predictions of a model in cases whose landmarks are known: what validation, folds and calibration learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.model.confidence.presence_trials import Trials


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
