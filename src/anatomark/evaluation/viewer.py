"""What the report lets one look around in: slices around the worst landmarks, and the points of their cases."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.evaluation.report import CasePicture
from anatomark.evaluation.result import EvaluationResult
from anatomark.pictures.overlay import caption, case_picture
from anatomark.pictures.stack import planes_through, stack_around
from anatomark.pictures.window import Window

SHOWN = {2: 6, 3: 3}  # landmarks in a case's picture
CASES, STACKS, PER_CASE = 6, 24, 8  # images that are read; landmarks with slices, in all and of one of many cases
POINTS = 1000  # landmarks of a case in the 3D view
MOST_BYTES, LEAST_BYTES = 7_000_000, 3_000_000  # of all pictures and slices; of the slices where pictures are large


@dataclass
class Viewer:
    """``dimension``, ``names`` (captions) and ``labels`` of the landmarks; ``cases`` with their points, and ``stacks``
    of voxels around one landmark each, worst first, both as the page's script reads them; ``left_out``: stacks for
    which there was no room."""

    dimension: int
    names: list[str]
    labels: list[str]
    cases: list[dict[str, Any]] = field(default_factory=list)
    stacks: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0


def look(
    result: EvaluationResult, cases: Sequence[Case], true: Mapping[str, Landmarks]
) -> tuple[list[CasePicture], Viewer]:
    """The pictures of the best, median and worst case, and the slices around the worst landmarks. Each image is read
    once, and only one is held at a time."""
    d = result.errors.offset.shape[2]
    words = {m: word for word, m in result.highlights()}
    shown = {m: result.worst(m, SHOWN[d]) for m in words}
    chosen = worst_landmarks(result, shown)
    names = _named(result, {n for worst in chosen.values() for n in worst})
    viewer = Viewer(d, [caption(n, result.descriptions.get(n, "")) for n in names], names)
    pictures = []
    for m, worst in chosen.items():
        case, predicted = cases[m], result.predictions.landmarks[cases[m].id]
        try:
            image = case.image()
        except InputError:  # the case failed for this reason already, and the table says so
            continue
        truth = true[case.id]
        if m in words:
            png = case_picture(image, predicted, truth, shown[m], case.id)
            pictures.append(CasePicture(words[m], m, png, shown[m]))
        found = (
            Landmarks(tuple(names), np.full((len(names), d), np.nan)) if predicted is None else predicted.select(names)
        )
        viewer.stacks += _stacks(image, len(viewer.cases), truth.select(names), found, worst)
        viewer.cases.append(_points(case.id, truth.select(names), found))
        del image  # before the next one is read
    viewer.stacks.sort(key=lambda s: np.inf if s["error"] is None else s["error"], reverse=True)
    room = max(LEAST_BYTES, MOST_BYTES - sum(4 * len(p.png) // 3 for p in pictures))
    fitting = int((np.cumsum([_size(s) for s in viewer.stacks]) <= room).sum())
    viewer.left_out = len(viewer.stacks) - fitting
    viewer.stacks = viewer.stacks[:fitting]
    return pictures, viewer


def worst_landmarks(result: EvaluationResult, shown: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
    """Names of the landmarks whose slices the report holds, by index of the case: those ``shown`` in its pictures, then
    the largest errors of all cases, then what was not found."""
    errors, chosen = result.errors, {m: list(names) for m, names in shown.items()}
    of_a_case = max(PER_CASE, STACKS // len(errors.cases))
    size = np.where(errors.annotated, np.where(np.isfinite(errors.error), errors.error, -1.0), -np.inf)
    for pair in np.argsort(-size, axis=None, kind="stable")[: int(errors.annotated.sum())]:
        m, n = (int(i) for i in np.unravel_index(pair, size.shape))
        if sum(map(len, chosen.values())) == STACKS:
            break
        if m not in chosen and len(chosen) == CASES:
            continue
        names = chosen.setdefault(m, [])
        if len(names) < of_a_case and errors.names[n] not in names:
            names.append(errors.names[n])
    return chosen


def _named(result: EvaluationResult, needed: set[str]) -> list[str]:
    """The landmarks whose points are shown: all, or of very many the ``needed`` ones and those with the largest mean
    errors, in the order of the tables."""
    mean = {n: s.mre_mm or 0.0 for n, s in result.per_landmark.items()}
    first = sorted(mean, key=lambda n: (n not in needed, -mean[n]))[:POINTS]
    return [n for n in result.errors.names if n in set(first)]


def _points(case: str, truth: Landmarks, found: Landmarks) -> dict[str, Any]:
    radius = np.full(len(found), np.nan) if found.radius90 is None else found.radius90
    return {
        "name": case,
        "truth": [_numbers(p) for p in truth.points],
        "found": [_numbers(p) for p in found.points],
        "radius": [_numbers(r) for r in radius],
    }


def _stacks(
    image: Image, number: int, truth: Landmarks, found: Landmarks, names: Sequence[str]
) -> list[dict[str, Any]]:
    window, stacks = Window.of(image), []
    for name in names:
        n = truth.names.index(name)
        both = np.stack([p for p in (truth.points[n], found.points[n]) if np.isfinite(p).all()])
        stack = stack_around(image, window, both)
        planes = planes_through(image, window, truth.points[n]) if image.ndim == 3 else []
        stacks.append(
            {
                "case": number,
                "point": n,
                "error": _numbers(np.linalg.norm(both[1] - both[0])) if len(both) == 2 else None,
                "size": stack.grid.shape[::-1],
                "step": _numbers(stack.grid.spacing[::-1], 6),
                "index": _numbers(_to_index(stack.grid), 9),
                "columns": stack.columns,
                "image": _embed(stack.jpeg),
                "planes": [
                    {
                        "image": _embed(p.jpeg),
                        "corner": _numbers(p.corner),
                        "across": _numbers(p.across),
                        "down": _numbers(p.down),
                    }
                    for p in planes
                ],
            }
        )
    return stacks


def _to_index(grid: Grid) -> np.ndarray:
    """(D, D+1) from world mm to voxels in the order x, y[, z]."""
    return np.asarray(grid.inverse[: grid.ndim][::-1])


def _size(stack: Mapping[str, Any]) -> int:
    return len(stack["image"]) + sum(len(p["image"]) for p in stack["planes"])


def _embed(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _numbers(values: Any, digits: int = 3) -> Any:
    """As JSON takes them; None where any is not finite."""
    return np.round(values, digits).tolist() if np.isfinite(values).all() else None
