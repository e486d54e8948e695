"""Distillation: a small model learns from the answers of another, or of the average of several, its teacher.

Hinton et al. 2015 (the teacher's doubt is part of what it teaches); Radosavovic et al., CVPR 2018 (an average's answers
in images that nobody annotated, as truth). Ours: a landmark's target is drawn anew for every example from the teacher's
normal distribution, so that any method's loss can learn from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.content import digest_of
from anatomark.cases.division import Division, Taught
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, counted, listed
from anatomark.model.confidence.radius import sigma_of
from anatomark.model.predict import AnyModel, load
from anatomark.model.prediction import Prediction, read_prediction, write_prediction
from anatomark.progress import Reporter
from anatomark.training.request import TEACHER

FAR = 4.0  # standard deviations of a teacher without radii, beyond which it has no say against an annotation
SHOWN = 8  # cases in a line


@dataclass(frozen=True)
class Teacher:
    """Whose answers are learned from, and how much they count against an annotation (0 ... 1)."""

    path: str | os.PathLike[str]
    weight: float

    @cached_property
    def model(self) -> AnyModel:
        """Raises InputError where it cannot be loaded."""
        return load(self.path)

    def check(self, division: Division) -> None:
        """Raises InputError where the teacher has nothing to say of these cases."""
        model, where = self.model, f"`teacher` {os.fspath(self.path)}"
        ndim = division.train[0].landmarks.ndim
        if model.ndim != ndim:
            raise InputError(f"{where}: is for {model.ndim}D images, the cases' landmarks are {ndim}D")
        if not set(model.names) & set(division.names):
            raise InputError(
                f"{where}: finds {listed(model.names, 3, quote=True)}, none of the landmarks "
                f"{listed(division.names, 3, quote=True)} of the cases"
            )
        if reason := next((c["unproven"] for c in _calibrations(model) if c.get("unproven")), ""):
            raise InputError(f"{where}: should not be believed unseen ({reason}); it can teach nothing")


def _calibrations(model: AnyModel) -> list[dict[str, object]]:
    return [dict(c) for c in model.calibration.get("members", [model.calibration])]


def taught(division: Division, teacher: Teacher, run: Path, report: Reporter) -> Division:
    """The division with the teacher's answers: annotated points are moved towards them by the teacher's weight, unless
    they lie farther apart than the teacher's 90 % radius; what is not annotated, in whole images too, is as the teacher
    says. Their landmarks have the covariance that :func:`drawn` draws from; 0 where the annotation stands.

    An image without landmarks in which the teacher's review flag is raised teaches nothing and is left out. The answers
    lie in ``run/teacher``, so that a resumed run has the same. Raises InputError.
    """
    model, seen = teacher.model, [*division.train, *division.unlabelled]
    answers: dict[str, Prediction] = {}
    with report.bar("asking the teacher", len(seen)) as bar:
        for case in seen:
            answers[case.id] = _answer(case, model, run / TEACHER)
            bar.update(len(answers))
    train = tuple(
        case.with_landmarks(blended(case.landmarks, answers[case.id].landmarks, teacher.weight))
        for case in division.train
    )
    doubted = [c for c in division.unlabelled if _doubtful(answers[c.id])]
    blank = Landmarks(division.names, np.full((len(division.names), model.ndim), np.nan))
    more = tuple(
        case.with_landmarks(blended(blank, answers[case.id].landmarks, teacher.weight))
        for case in division.unlabelled
        if case not in doubted
    )
    said = f"taught by {model.name}: {counted(len(train), 'annotated image')}"
    if division.unlabelled:
        said += f", {len(more)} without landmarks"
    if doubted:
        said += f" ({len(doubted)} left out, where it raised its flag: {listed([c.id for c in doubted], SHOWN)})"
    report.say(said)
    said += f"; annotations moved {teacher.weight:g} of the way to its answers"
    by = Taught(said, model.learned, model.chosen)
    return replace(division, train=(*train, *more), unlabelled=(), taught=by)


def _answer(case: Case, model: AnyModel, folder: Path) -> Prediction:
    """What the teacher says of a case; from the file there, where it has said it. Raises InputError."""
    file = folder / f"{case.id}.json"
    if file.exists():
        there = read_prediction(case, file)
        if there.source.get("model") != model.hash:
            raise InputError(f"{file}: is of another teacher; give the one that the run began with, or another `out`")
        return there
    found = replace(model.predict(case.image()), source={"case": case.id, "model": model.hash})
    write_prediction(found, folder, case.id, ["json"])
    return read_prediction(case, file)  # as a resumed run will have it


def _doubtful(answer: Prediction) -> bool:
    if answer.suspicion is None or answer.suspicion_limit is None:
        return bool(answer.flags)
    return answer.suspicion > answer.suspicion_limit


def blended(own: Landmarks, theirs: Landmarks, weight: float) -> Landmarks:
    """Annotations ``own`` moved by ``weight`` towards a teacher's answers, with covariances (N, D, D) mm^2; see
    :func:`taught`."""
    theirs = theirs.select(own.names)
    n, d = len(own), own.ndim
    spread = np.zeros((n, d, d)) if theirs.covariance is None else np.nan_to_num(theirs.covariance)
    apart = np.linalg.norm(theirs.points - own.points, axis=1)
    limit = FAR * sigma_of(theirs.covariance, n) if theirs.radius90 is None else theirs.radius90
    near = own.defined & theirs.defined & ~(apart > limit)
    filled = ~own.defined & ~own.absent
    share = np.where(filled, 1.0, np.where(near, weight, 0.0))
    points = np.where(own.defined[:, None], own.points, theirs.points)
    moved = np.where(near[:, None], own.points + weight * (theirs.points - own.points), points)
    status = tuple(t if f else s for f, s, t in zip(filled, own.status, theirs.status, strict=True))
    covariance = spread * (share**2)[:, None, None]
    return replace(own, points=moved, status=status, covariance=covariance, score=None, radius90=None)


def drawn(landmarks: Landmarks, rng: np.random.Generator) -> Landmarks:
    """Points from normal distributions about ``landmarks`` with their covariances; themselves where they have none."""
    if landmarks.covariance is None:
        return landmarks
    values, axes = np.linalg.eigh(landmarks.covariance)  # (N, D), (N, D, D)
    steps = rng.normal(size=values.shape) * np.sqrt(np.maximum(values, 0))
    return landmarks.with_points(landmarks.points + np.einsum("nij,nj->ni", axes, steps))


def known_to(teacher: Teacher, cases: Sequence[Case]) -> list[str]:
    """Notes on those of ``cases`` that the teacher learned from, or was chosen by."""
    theirs = teacher.model.learned | teacher.model.chosen
    seen = [c.id for c in cases if digest_of(c) in theirs]
    if not seen:
        return []
    return [
        f"the teacher knows {len(seen)} of the {counted(len(cases), 'validation case')}: validation errors are "
        f"optimistic: {listed(seen, SHOWN)}"
    ]
