"""What a model said of a case, and a review that goes on with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.find import landmark_file, stems_of
from anatomark.core.grid import Array
from anatomark.core.landmarks import Status
from anatomark.errors import InputError
from anatomark.model.prediction import Prediction, read_prediction
from anatomark.review.record import PLACED, CaseReview, Earlier, Point, Position, State

STATES = {Status.DEFINED: State.PREDICTED, Status.ABSENT: State.ABSENT, Status.UNANNOTATED: State.MISSING}


@dataclass(frozen=True)
class Predicted:
    """A case's prediction as a review begins with it. ``flags``: why it should be looked at; ``suspicion``: infinite
    beyond measure, None where not known; ``definitions`` by landmark; ``file``: None where there is no prediction."""

    file: Path | None
    ndim: int | None
    points: tuple[Point, ...] = ()
    model: str = ""
    model_name: str = ""
    flags: tuple[str, ...] = ()
    suspicion: float | None = None
    definitions: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.points)


def read_predicted(case: Case, folder: Path) -> Predicted:
    """The prediction of a case in ``folder``, as ``predict`` or another program wrote it. One that is not there, or
    cannot be read, is a reason to look at the case."""
    file = landmark_file(folder, stems_of(case))
    if file is None:
        return Predicted(None, None, flags=("no prediction",), suspicion=math.inf)
    try:
        made = read_prediction(case, file)
    except InputError as error:
        return Predicted(None, None, flags=(f"no prediction: {error}",), suspicion=math.inf)
    texts = zip(made.landmarks.names, made.landmarks.descriptions, strict=True)
    model, name = (str(made.source.get(key) or "") for key in ("model", "model_name"))
    definitions = tuple((n, text) for n, text in texts if text)
    return Predicted(file, made.landmarks.ndim, _points(made), model, name, made.flags, made.suspicion, definitions)


def _points(made: Prediction) -> tuple[Point, ...]:
    """A point for each landmark, as the model left it."""
    landmarks = made.landmarks
    positions = landmarks.points.tolist()
    scores, radii = (_known(values, len(landmarks)) for values in (landmarks.score, landmarks.radius90))
    places: list[Position | None] = [tuple(p) if math.isfinite(p[0]) else None for p in positions]
    states = (STATES[s] for s in landmarks.status)
    rows = zip(landmarks.names, states, places, scores, radii, strict=True)
    return tuple(Point(n, s, p, p, score=score, radius90=radius) for n, s, p, score, radius in rows)


def _known(values: Array | None, count: int) -> list[float | None]:
    if values is None:
        return [None] * count
    return [v if math.isfinite(v) else None for v in np.asarray(values).tolist()]


def begun(case: Case, predicted: Predicted, names: Sequence[str], opened: str | None) -> CaseReview:
    """The review of a case that nobody has touched; ``names``: those of all cases, for one without a prediction."""
    points = predicted.points or tuple(Point(name, State.MISSING) for name in names)
    return CaseReview(case.id, str(case.path), points, predicted.model, predicted.model_name, opened=opened)


def is_of(review: CaseReview, predicted: Predicted) -> bool:
    """Whether a review is of this prediction: by the model's hash, else by where the points are."""
    if predicted.file is None:
        return True
    if review.model or predicted.model:
        return review.model == predicted.model
    return {p.name: p.predicted for p in review.points} == {p.name: p.predicted for p in predicted.points}


def merged(review: CaseReview, predicted: Predicted) -> CaseReview:
    """The review with another model's prediction: what a person decided stays, the rest is as this model says, and
    where the model before had put its points is kept in ``earlier``."""
    before = Earlier(
        review.model,
        review.model_name,
        {p.name: p.predicted for p in review.points if p.predicted is not None},
        {p.name: p.radius90 for p in review.points if p.radius90 is not None and p.predicted is not None},
    )
    new = {p.name: p for p in predicted.points}
    points = []
    for old in review.points:
        fresh = new.pop(old.name, None)
        if old.state in PLACED or old.decided:
            there = fresh or Point(old.name, State.MISSING)
            points.append(replace(old, predicted=there.predicted, score=there.score, radius90=there.radius90))
        elif fresh is not None:
            points.append(fresh)
    earlier = [
        e for e in (*review.earlier, before) if (e.model, e.model_name) != (predicted.model, predicted.model_name)
    ]
    return replace(
        review, points=(*points, *new.values()), model=predicted.model, model_name=predicted.model_name,
        earlier=tuple(earlier),
    )  # fmt: skip
