"""Predictions of a model in cases whose landmarks are known: what validation, folds and calibration learn from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.methods.base import Evidence
from anatomark.model.compose import Composed
from anatomark.model.confidence.presence_trials import Trials, case_trials
from anatomark.model.prediction import Prediction
from anatomark.model.run_cases import run_cases
from anatomark.progress import Reporter


@dataclass(frozen=True)
class Residuals:
    """Predictions and truth of some cases. ``errors`` (M, N) mm, NaN where there is no truth or no prediction.
    ``trials``: presence scores in these images and in crops of them, where that was tried. ``before``: by the name of a
    training stage, out-of-fold evidence for it."""

    cases: tuple[str, ...]
    predictions: tuple[Landmarks, ...]
    truths: tuple[Landmarks, ...]
    trials: Trials | None = None
    before: Mapping[str, Evidence] = field(default_factory=dict)

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
            points = truth.points[truth.defined]
            if not len(points):
                continue
            reach = float(np.linalg.norm(points - points.mean(0), axis=1).max())
            total += float(np.where(np.isfinite(error), error, reach)[truth.defined].sum())
            count += len(points)
        return total / count if count else float("nan")

    def summary(self) -> str:
        """Pooled errors in one line."""
        e = self.errors[np.isfinite(self.errors)]
        if not len(e):
            return f"nothing located, {self.missed} missed"
        figures = f"mean {e.mean():.3f} mm, median {np.median(e):.3f}, 95th percentile {np.percentile(e, 95):.3f}"
        return f"{figures} ({len(e)} landmarks, {self.missed} missed)"

    def evidence(self, source: str) -> Evidence:
        predictions = dict(zip(self.cases, self.predictions, strict=True))
        return Evidence(predictions, dict(zip(self.cases, self.truths, strict=True)), source)

    @classmethod
    def pooled(cls, parts: Sequence[Residuals]) -> Residuals:
        """Those of all parts, such as the folds, as one."""
        before: dict[str, Evidence] = {}
        for part in parts:
            for stage, more in part.before.items():
                old = before.get(stage, Evidence(source=more.source))
                both = {**old.predictions, **more.predictions}, {**old.truth, **more.truth}
                before[stage] = Evidence(*both, more.source)
        return cls(
            tuple(c for p in parts for c in p.cases),
            tuple(x for p in parts for x in p.predictions),
            tuple(t for p in parts for t in p.truths),
            sum((p.trials for p in parts if p.trials is not None), Trials()),
            before,
        )


def residuals_in(
    composed: Composed,
    cases: Sequence[Case],
    *,
    cropped: Collection[int] | None = None,
    seed: int = 0,
    before: bool = False,
    made: Mapping[str, Landmarks] | None = None,
    report: Reporter | None = None,
    title: str = "",
) -> Residuals:
    """What a model as it stands, before presence and radius are applied, says of cases; it is left in eval mode.

    ``cropped``: with trials of presence, also in one random crop of each of these (numbers of cases); None: without.
    ``before``: with what each training stage starts from. ``made``: predictions of cases that need not be made again.
    Raises InputError where a case cannot be read.
    """
    composed.eval()
    made, predictions = made or {}, []
    trials, stages = Trials(), dict[str, dict[str, tuple[Landmarks, Landmarks]]]()

    def find(case: Case, image: Image) -> Prediction:
        return Prediction(made[case.id] if case.id in made else composed.find(image, case.alignment).landmarks)

    with torch.no_grad():
        for i, outcome in enumerate(run_cases(find, cases, report, title)):
            case, image = outcome.case, outcome.image
            if outcome.prediction is None or image is None:
                raise InputError(outcome.reason)
            landmarks = outcome.prediction.landmarks
            predictions.append(landmarks)
            if cropped is not None:
                locate = composed.locate if i in cropped else None
                trials += case_trials(locate, case.id, image, case.landmarks, landmarks, seed)
            for stage, start in composed.before_stages(image).items() if before else ():
                stages.setdefault(stage, {})[case.id] = start, case.landmarks
    return Residuals(
        tuple(c.id for c in cases),
        tuple(predictions),
        tuple(c.landmarks for c in cases),
        None if cropped is None else trials,
        {
            stage: Evidence({c: s for c, (s, _) in pairs.items()}, {c: t for c, (_, t) in pairs.items()}, "out-of-fold")
            for stage, pairs in stages.items()
        },
    )
