"""Annotations that are certain to be wrong: what training leaves out, and an evaluation remarks on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anatomark.cases.case import Case
from anatomark.cases.division import Division
from anatomark.cases.look.shape_check import FEWEST_POINTS, ShapeStudy
from anatomark.cases.look.suspects import FEWEST
from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.errors import listed
from anatomark.progress import Reporter

CERTAIN = 2.0  # times the residual from which `plan` calls a point suspect
MOST = 0.5  # share of a case's points: beyond it, all of them are wrong
SHOWN = 12  # cases in one line


def certain_errors(shapes: Array, report: Reporter | None = None) -> NDArray[np.bool_]:
    """(M, N) where a point of ``shapes`` (M, N, D) world mm, NaN = missing, lies so far from where its neighbours put
    it, as they do in other cases, that it must be wrong; where more than half of a case's points do, all of the case.

    Nothing with fewer than 5 cases or 4 landmarks that are marked in three of them.
    """
    marked = np.isfinite(shapes).all(2)
    judged, wrong = marked.sum(0) >= 3, np.zeros(marked.shape, dtype=bool)
    if len(shapes) < FEWEST or judged.sum() < FEWEST_POINTS:
        return wrong
    study = ShapeStudy(shapes[:, judged], report)
    wrong[:, judged] = np.nan_to_num(study.z) > CERTAIN * study.beyond
    wrong[wrong.sum(1) > MOST * marked.sum(1)] = True
    return wrong & marked


def without_certain_errors(division: Division, report: Reporter | None = None) -> Division:
    """The division with its certain errors, in training and validation cases, as not annotated; ``left_out_points``
    names them. A training case of which nothing stays is left out."""
    cases, training = (*division.train, *division.val), len(division.train)
    if len({c.landmarks.ndim for c in cases}) > 1:
        return division
    wrong = certain_errors(np.stack([c.landmarks.points for c in cases]), report)
    marked = np.stack([c.landmarks.defined for c in cases])
    wrong[:, ~(marked & ~wrong)[:training].any(0)] = False  # a landmark that nobody would be left to teach
    points = {c.id: _names(c.landmarks, w) for c, w in zip(cases, wrong, strict=True) if w.any()}
    kept = [c.with_landmarks(c.landmarks.unannotated(w)) if w.any() else c for c, w in zip(cases, wrong, strict=True)]
    train, val = kept[:training], kept[training:]
    gone = tuple(c.id for c in train if not c.landmarks.defined.any())
    return replace(
        division,
        train=tuple(c for c in train if c.id not in gone),
        val=tuple(val),
        left_out=(*division.left_out, *gone),
        left_out_points=points,
    )


def left_out_lines(division: Division, most: int | None = None) -> list[str]:
    """``left out as certainly wrong: tr011: L5-a, L5-b``: a line for each of at most ``most`` cases."""
    points = division.left_out_points
    lines = [f"left out as certainly wrong: {case}: {', '.join(names)}" for case, names in points.items()]
    rest = [f"and points of {len(lines) - most} more cases"] if most is not None and len(lines) > most else []
    return [*lines[:most], *rest]


def remark(cases: Sequence[Case], training: Sequence[Case]) -> str:
    """A sentence on the certain errors among ``cases``, judged together with the training cases; empty where there are
    none or where these cannot be judged."""
    everyone = [*(c.landmarks for c in training if c not in cases), *(c.landmarks for c in cases)]
    names = cases[0].landmarks.names
    if len({one.ndim for one in everyone}) > 1:
        return ""
    wrong = certain_errors(np.stack([one.select(names).points for one in everyone]))[-len(cases) :]
    found = {c.id: _names(c.landmarks.select(names), w) for c, w in zip(cases, wrong, strict=True) if w.any()}
    return f"{described(found)} far from where other cases have them." if found else ""


def described(points: dict[str, tuple[str, ...]]) -> str:
    """``4 points of 2 cases (te006: L5-a, L5-b; te022: L5-c, L5-d) lie``."""
    count = sum(len(names) for names in points.values())
    shown = [f"{case}: {listed(names, 4)}" for case, names in list(points.items())[:SHOWN]]
    shown += [f"and {len(points) - SHOWN} more cases"] if len(points) > SHOWN else []
    what, cases = "point" if count == 1 else "points", "case" if len(points) == 1 else "cases"
    return f"{count} {what} of {len(points)} {cases} ({'; '.join(shown)}) {'lies' if count == 1 else 'lie'}"


def _names(landmarks: Landmarks, points: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(n for n, p in zip(landmarks.names, points, strict=True) if p)
