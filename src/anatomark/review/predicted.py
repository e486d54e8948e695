"""What a model said of a case, and a review that goes on with it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.find import landmark_file, stems_of
from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.confidence import plain
from anatomark.model.prediction import Prediction, read_prediction
from anatomark.review.record import PLACED, CaseReview, Point, Position, State, prediction_of

FIRST = '"landmarks": ['  # of STEM.json, behind the facts of the case
STATES = {Status.DEFINED: State.PREDICTED, Status.ABSENT: State.ABSENT, Status.UNANNOTATED: State.MISSING}


@dataclass(frozen=True)
class Glance:
    """What the queue has to know of a case's prediction. ``file``: None where there is none; ``count`` of its points;
    ``flags``: why it should be looked at; ``suspicion``: infinite beyond measure, None where not known."""

    file: Path | None
    ndim: int | None = None
    count: int = 0
    model: str = ""
    model_name: str = ""
    flags: tuple[str, ...] = ()
    suspicion: float | None = None


@dataclass(frozen=True)
class Predicted(Glance):
    """A case's prediction as a review begins with it; ``definitions`` by landmark."""

    points: tuple[Point, ...] = ()
    definitions: tuple[tuple[str, str], ...] = ()


def glance(case: Case, folder: Path) -> Glance:
    """What stands in ``STEM.json`` of ``folder`` before the landmarks, which are only counted: some hundred cases of a
    thousand landmarks are looked through in a second. Any other file is read."""
    file = next((f for stem in stems_of(case) if (f := folder / f"{stem}.json").is_file()), None)
    if file is None:
        return read_predicted(case, landmark_file(folder, stems_of(case)))
    try:
        text = file.read_text(encoding="utf-8")
        facts, count = json.loads(text[: text.index(FIRST)] + FIRST + "]}"), text.count('"label": ')
        made = Prediction.from_json(facts, Landmarks((), np.empty((0, facts["dimension"]))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return read_predicted(case, landmark_file(folder, stems_of(case)))
    model, name = _model(made)
    if not model:  # what was written by hand is known by where the points are
        return read_predicted(case, file)
    return Glance(file, facts["dimension"], count, model, name, made.flags, made.suspicion)


def read_predicted(case: Case, file: Path | None) -> Predicted:
    """The prediction of a case, as ``predict`` or another program wrote it. One that is not there, or cannot be read,
    is a reason to look at the case."""
    if file is None:
        return Predicted(None, flags=("no prediction",), suspicion=math.inf)
    try:
        made = read_prediction(case, file)
    except InputError as error:
        return Predicted(None, flags=(f"no prediction: {error}",), suspicion=math.inf)
    landmarks, (model, name) = made.landmarks, _model(made)
    texts = zip(landmarks.names, landmarks.descriptions, strict=True)
    definitions = tuple((n, plain(text)) for n, text in texts if text)
    return Predicted(
        file, landmarks.ndim, len(landmarks), model, name, made.flags, made.suspicion, _points(made), definitions
    )


def _model(made: Prediction) -> tuple[str, str]:
    """The model's hash and name, blank where unknown."""
    return str(made.source.get("model") or ""), str(made.source.get("model_name") or "")


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
    image = "" if case.path is None else os.path.abspath(case.path)
    return CaseReview(case.id, image, points, predicted.model, predicted.model_name, opened=opened)


def is_of(review: CaseReview, glanced: Glance) -> bool:
    """Whether a review is of this prediction: by the model's hash, else by where the points are."""
    if glanced.file is None:
        return True
    if review.model or glanced.model or not isinstance(glanced, Predicted):
        return review.model == glanced.model
    now = {p.name: p for p in glanced.points}
    before = {p.name: p for p in review.points if p.predicted is not None or p.name in now}
    if {n: p.predicted for n, p in before.items()} != {n: p.predicted for n, p in now.items()}:
        return False
    return all(p.state == now[n].state for n, p in before.items() if p.time is None and n in now)


def merged(review: CaseReview, predicted: Predicted) -> CaseReview:
    """The review with another model's prediction: what a person decided stays, the rest is as this model says, and
    where the model before had put its points is kept in ``earlier``."""
    before = prediction_of(review)
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
