"""Two answers that cost nothing, beside which every training is judged: the mean position in the image, and the mean
shape placed by the method's own points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.shape import mean_shape
from anatomark.model.residuals import Residuals
from anatomark.model.settle import SettleFacts, drawn, settled

WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the method's own points
POSED = {2: 4, 3: 5}  # landmarks from which on their similarity pose takes at most half of what the points say
GAIN = 0.97  # the error must fall to so much of the method's own: with few cases a little less is chance


@dataclass(frozen=True)
class Judged:
    """Mean errors in mm in cases that no weight was fitted to: the ``method`` 's own, the ``position`` 's, the
    ``placed`` mean shape's (infinite where so few points that place it leave nothing for it to say); and by the weight
    of the method's points what settling gives."""

    method: float
    position: float
    placed: float
    by_weight: dict[float, float]

    @property
    def best_weight(self) -> float:
        """1 where the method alone is better than the placed mean shape, and nothing is clearly better than it."""
        best = min(self.by_weight, key=lambda w: self.by_weight[w])
        return best if self.method > self.placed or self.by_weight[best] < GAIN * self.method else 1.0

    @property
    def lost(self) -> bool:
        """Whether the mean position errs less than all that the method's points give, placed mean shape included."""
        return self.position < GAIN * min(self.by_weight.values())

    @property
    def proven(self) -> bool:
        """Whether what the model answers errs less than both that cost nothing."""
        return not self.lost and self.by_weight[self.best_weight] < min(self.position, self.placed)

    def facts(self, train: Sequence[Case]) -> SettleFacts | None:
        """What the model answers from now on; None where the method's points are best."""
        if self.lost:
            return SettleFacts(mean_shape=mean_position(train).tolist(), weight=0.0, centred=True)
        if self.best_weight == 1:
            return None
        mean, _ = mean_shape(np.stack([c.landmarks.points for c in train]))
        return SettleFacts(mean_shape=mean.tolist(), weight=self.best_weight)

    def lines(self, what: str = "validation") -> list[str]:
        """What a log and a card say of it; ``what``: which errors they are."""
        placed = f"; mean shape placed by the method's points {self.placed:.3f} mm" if np.isfinite(self.placed) else ""
        out = [f"{what} error {self.method:.3f} mm; mean position {self.position:.3f} mm{placed}"]
        weight = self.best_weight
        if self.lost:
            out.append("the model answers the mean position in the image")
        elif weight < 1:
            share = f"{1 - weight:.0%} of the way to the mean shape" if weight else "the mean shape"
            out.append(f"the model answers {share}, placed by its points: {what} error {self.by_weight[weight]:.3f} mm")
        return out


def judged(train: Sequence[Case], held: Sequence[Case], residuals: Residuals) -> Judged | None:
    """``residuals`` of independent cases, which are among ``held``, beside what the training cases ``train`` give for
    nothing; None where a landmark is unknown in all of them, or nothing is held out."""
    cases = {c.id: c for c in held}
    if not residuals.cases or not all(c in cases for c in residuals.cases):
        return None
    shapes = np.stack([c.landmarks.points for c in train])
    if not np.isfinite(shapes).all(2).any(0).all():
        return None
    mean, _ = mean_shape(shapes)
    ndim, position = shapes.shape[2], mean_position(train)
    names = train[0].landmarks.names
    errors: dict[str, list[Array]] = {}
    for id, prediction, truth in zip(residuals.cases, residuals.predictions, residuals.truths, strict=True):
        found, true = prediction.select(names).points, truth.select(names).points
        answers = {"position": position + cases[id].grid(ndim).centre}
        answers |= {str(w): drawn(found, mean, w) for w in WEIGHTS}
        for name, points in answers.items():
            errors.setdefault(name, []).append(np.linalg.norm(points - true, axis=1))
    pooled = {name: float(np.nanmean(np.stack(e))) if np.isfinite(e).any() else np.inf for name, e in errors.items()}
    posed = len(names) >= POSED[ndim]
    by_weight = {w: pooled[str(w)] for w in WEIGHTS if w == 1 or posed or (w > 0 and len(names) > 2)}
    placed = by_weight[0.0] if posed else np.inf
    return Judged(by_weight[1.0], pooled["position"], placed, by_weight)


def mean_position(cases: Sequence[Case]) -> Array:
    """(N, D) mm from the centre of the image, mean over cases."""
    ndim = cases[0].landmarks.ndim
    return np.asarray(np.nanmean([c.landmarks.points - c.grid(ndim).centre for c in cases], axis=0))


def settled_residuals(residuals: Residuals, facts: SettleFacts, cases: Sequence[Case]) -> Residuals:
    """The same with predictions that are settled; ``cases``: those that it is of, and others."""
    grids = {c.id: c.grid(c.landmarks.ndim) for c in cases}
    pairs = zip(residuals.cases, residuals.predictions, strict=True)
    trials = None if facts.centred else residuals.trials  # of a mean position nobody asks whether it is there
    return replace(residuals, predictions=tuple(settled(p, facts, grids[id]) for id, p in pairs), trials=trials)
