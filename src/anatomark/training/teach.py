"""Distillation: a small model learns from the answers of another, or of the average of several, its teacher.

Hinton et al. 2015 (the teacher's doubt is part of what it teaches); Radosavovic et al., CVPR 2018 (an average's answers
in images that nobody annotated, as truth). Ours: a landmark's target is drawn anew for every example from the teacher's
normal distribution, so that any method's loss can learn from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.content import digest_of
from anatomark.cases.division import Division, Taught
from anatomark.cases.look.simulated import source_of
from anatomark.cases.store import image_key
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, counted, listed
from anatomark.model.confidence.radius import sigma_of
from anatomark.model.config import RunConfig
from anatomark.model.ensemble import member_paths
from anatomark.model.predict import AnyModel, load
from anatomark.model.prediction import Prediction, read_prediction, write_prediction
from anatomark.progress import Reporter

FOLDER = "teacher"  # in the cache: what teachers said
FAR = 4.0  # standard deviations of a teacher without radii, beyond which it has no say against an annotation
SHOWN = 8  # cases in a line


@dataclass(frozen=True)
class Teacher:
    """The ``model`` whose answers are learned from, ``name``d as it was asked for."""

    name: str
    model: AnyModel

    @classmethod
    def of(cls, path: str | os.PathLike[str], run: Path, config: RunConfig) -> Teacher:
        """A teacher for a training into ``run``. Raises InputError where it cannot be loaded, holds ``run``, or should
        not be believed itself."""
        name, inside = f"`teacher` {os.fspath(path)}", {run.resolve(), *run.resolve().parents}
        if any(Path(part).resolve() in inside for part in (os.fspath(path), *member_paths(path))):
            raise InputError(f"{name}: holds `out` {run}; choose another `out`")
        model = load(path, None if config.device == "auto" else config.device, config.threads)
        facts = model.calibration.get("members", [model.calibration])
        if reason := next((c["unproven"] for c in facts if c.get("unproven")), ""):
            raise InputError(f"{name}: should not be believed unseen ({reason}); it can teach nothing")
        return cls(name, model)

    def check(self, division: Division, report: Reporter) -> None:
        """Says which landmarks the teacher lacks. Raises InputError where it has nothing to say of these cases, or
        one is of another dimension."""
        ndim, names = division.train[0].landmarks.ndim, self.model.names
        if self.model.ndim != ndim:
            raise InputError(f"{self.name}: is for {self.model.ndim}D images, the cases' landmarks are {ndim}D")
        for case in division.unlabelled:
            case.grid(ndim)  # one of another dimension is named before any is asked of
        lacking = [n for n in division.names if n not in names]
        if len(lacking) == len(division.names):
            raise InputError(
                f"{self.name}: finds {listed(names, 3, quote=True)}, none of the landmarks "
                f"{listed(division.names, 3, quote=True)} of the cases"
            )
        if lacking:
            report.say(f"note: {self.name} knows no {listed(lacking, SHOWN, quote=True)} and teaches nothing of it")


def taught(
    division: Division, teacher: Teacher, weight: float, spread: float, cache: Path, report: Reporter
) -> Division:
    """The division with the teacher's answers: annotated points are moved towards them by ``weight`` (0 ... 1), unless
    they lie farther apart than the teacher's 90 % radius; what is not annotated, in whole images too, is as the teacher
    says. With a ``spread`` above 0 they have the covariance that :func:`drawn` draws from, the teacher's with so many
    times its standard deviations; 0 where the annotation stands.

    Where the teacher raises its flag annotations stay as they are. Images without landmarks are left out there, where
    it finds nothing, and where they are one that is held out, or simulated from the same. The answers are kept in
    ``cache`` by model and image. Raises InputError.
    """
    model, blank = teacher.model, Landmarks(division.names, np.full((len(division.names), teacher.model.ndim), np.nan))
    held = {text for case in division.val for text in (case.id, source_of(case), digest_of(case)) if text}
    known = [c.id for c in division.val if digest_of(c) in model.learned | model.chosen]
    spared = [c.id for c in division.unlabelled if held & {c.id, source_of(c), digest_of(c)}]
    asked = [*division.train, *(c for c in division.unlabelled if c.id not in spared)]
    train, more, doubted = [], [], []
    with report.bar("asking the teacher", len(asked)) as bar:
        for done, case in enumerate(asked, start=1):
            answer = _answer(case, model, cache / FOLDER)
            own, doubts = case.landmarks if case.has_landmarks else blank, _doubtful(answer)
            soft = case.with_landmarks(blended(own, answer.landmarks, weight, spread))
            if case.has_landmarks:
                train.append(case if doubts else soft)
            elif doubts or not soft.landmarks.defined.any():
                doubted.append(case.id)
            else:
                more.append(soft)
            bar.update(done)
    said = [
        f"taught by {model.name}: {counted(len(train), 'annotated image')}, {len(more)} without landmarks",
        f"annotations moved {weight:g} of the way to its answers",
        f"left out, because it doubts itself in them: {listed(doubted, SHOWN)}" if doubted else "",
        f"left out, because they are held out for validation: {listed(spared, SHOWN)}" if spared else "",
        f"it knows {len(known)} of the {counted(len(division.val), 'validation case')}, whose errors are therefore "
        f"optimistic: {listed(known, SHOWN)}"
        if known
        else "",
    ]
    by = Taught("; ".join(line for line in said if line), model.learned, model.chosen, division.train)
    report.say(by.said)
    return replace(division, train=(*train, *more), unlabelled=(), taught=by)


def _answer(case: Case, model: AnyModel, folder: Path) -> Prediction:
    """What the teacher says of a case; from the file there, where it has said it. Raises InputError."""
    name = image_key(case, "teacher", model.hash)
    if not (folder / f"{name}.json").exists():
        write_prediction(model.predict(case.image()), folder, name, ["json"])
    return read_prediction(case, folder / f"{name}.json")  # as a resumed run will have it


def _doubtful(answer: Prediction) -> bool:
    """Whether a model raises a flag; of an average: whether it is suspicious, or most members raise the same one."""
    count = len(answer.members)
    if not count:
        return bool(answer.flags)
    if (
        answer.suspicion is not None
        and answer.suspicion_limit is not None
        and answer.suspicion > answer.suspicion_limit
    ):
        return True
    most = tuple(f"({n} of {count} models)" for n in range(count // 2 + 1, count + 1))
    return any(flag.endswith(most) for flag in answer.flags)


def blended(own: Landmarks, theirs: Landmarks, weight: float, spread: float) -> Landmarks:
    """Annotations ``own`` moved by ``weight`` towards a teacher's answers, with covariances (N, D, D) mm^2 where
    ``spread`` is above 0; see :func:`taught`."""
    theirs = theirs.select(own.names)
    n, d = len(own), own.ndim
    doubt = np.zeros((n, d, d)) if theirs.covariance is None else np.nan_to_num(theirs.covariance)
    apart = np.linalg.norm(theirs.points - own.points, axis=1)
    limit = FAR * sigma_of(theirs.covariance, n)
    if theirs.radius90 is not None:
        limit = np.where(np.isfinite(theirs.radius90), theirs.radius90, limit)
    near = own.defined & theirs.defined & (apart <= limit)  # where nothing is known of its doubt, none is
    filled = ~own.defined & ~own.absent
    share = np.where(filled, 1.0, np.where(near, weight, 0.0))
    points = np.where(own.defined[:, None], own.points, theirs.points)
    moved = np.where(near[:, None], own.points + weight * (theirs.points - own.points), points)
    status = tuple(t if f else s for f, s, t in zip(filled, own.status, theirs.status, strict=True))
    covariance = doubt * ((spread * share) ** 2)[:, None, None] if spread > 0 else None
    return replace(own, points=moved, status=status, covariance=covariance, score=None, radius90=None)


def drawn(case: Case, *seed: int) -> Case:
    """The case with points from normal distributions about its landmarks, where these have covariances."""
    landmarks = case.landmarks
    if landmarks.covariance is None:
        return case
    values, axes = np.linalg.eigh(landmarks.covariance)  # (N, D), (N, D, D)
    steps = np.random.default_rng(seed).normal(size=values.shape) * np.sqrt(np.maximum(values, 0))
    return case.with_landmarks(landmarks.with_points(landmarks.points + np.einsum("nij,nj->ni", axes, steps)))


class DrawnCases(Sequence[Case]):
    """The cases of a store, each :func:`drawn` anew whenever it is asked for."""

    def __init__(self, cases: Sequence[Case], *seed: int):
        self.cases, self.seed, self.given = cases, seed, 0

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        self.given += 1
        return drawn(self.cases[i], *self.seed, self.given)
