"""The files of a review: one that is its truth, ``<case>.review.json``, and those that are made from it."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.atomic import read_json, read_text, write_text
from anatomark.io.names import clean_name
from anatomark.io.sheets import read_sheet, write_csv
from anatomark.io.slicer import NEW_CONTROL, NEW_DOCUMENT, mrk_document, read_mrk
from anatomark.io.tables import write_table
from anatomark.review.record import PLACED, CaseReview, Point, State, parse

OBSERVER, CASES, TRUTH = "corrected", "cases.csv", "truth"
SAME_MM = 1e-6
HERE = "@the points of anatomark@"  # stands for them in the document around
COLUMNS = ("case", "image", "landmarks", "split", "spacing", "form")
STATUS = {State.ABSENT: Status.ABSENT, State.MISSING: Status.UNANNOTATED}  # the others are defined


def review_file(out: Path, case: str) -> Path:
    """The path of ``<case>.review.json``."""
    return out / f"{case}.review.json"


def markups_file(out: Path, case: str) -> Path:
    """The path of ``<case>.mrk.json``."""
    return out / f"{case}.mrk.json"


def truth_file(out: Path, case: str) -> Path:
    """The path of ``truth/<case>.csv``."""
    return out / TRUTH / f"{case}.csv"


def read_review(file: Path) -> CaseReview:
    """``<case>.review.json``. Raises InputError."""
    try:
        document = json.loads(read_text(file))
    except ValueError:
        document = read_json(file)  # which has the words for it
    return parse(document, str(file))


def write_review(review: CaseReview, out: Path) -> None:
    """Raises InputError where the disk refuses."""
    write_text(review_file(out, review.case), review.text)


def landmarks_of(review: CaseReview, ndim: int, definitions: Mapping[str, str]) -> Landmarks:
    """The points as they stand, world mm; no scores."""
    return Landmarks(
        tuple(p.name for p in review.points),
        np.array([p.position or (np.nan,) * ndim for p in review.points], dtype=np.float64).reshape(-1, ndim),
        tuple(STATUS.get(p.state, Status.DEFINED) for p in review.points),
        descriptions=tuple(definitions.get(p.name, "") for p in review.points),
    )


def truth_of(review: CaseReview, ndim: int, definitions: Mapping[str, str]) -> Landmarks:
    """What training learns of a finished case: points that a person decided on; the others are not annotated."""
    undecided = np.array([not p.decided for p in review.points], dtype=bool)
    return landmarks_of(review, ndim, definitions).unannotated(undecided)


def base_document(files: Iterable[Path]) -> tuple[dict[str, Any], int]:
    """The markups document that is gone on with, and which of its lists: of the first of the ``files`` that is there
    and can be read, else a new one."""
    for file in files:
        if file.exists():
            try:
                meta = read_mrk(file).meta
            except InputError:
                continue
            return meta["mrk.json"], meta["mrk.list"]
    return copy.deepcopy(NEW_DOCUMENT), 0


class Markups:
    """A case's document of 3D Slicer, as ``<case>.mrk.json`` holds it, a line for each point.

    What ``base`` (a document, and which of its lists) holds beside the points is kept; points that a person placed or
    confirmed are locked; no description holds a score. ``ndim``, ``definitions``: as in :func:`landmarks_of`.
    """

    def __init__(self, base: tuple[dict[str, Any], int], ndim: int, definitions: Mapping[str, str]):
        self.shell, self.at, self.ndim, self.definitions = base[0], base[1], ndim, definitions
        markup = self.shell["markups"][self.at]
        self.controls = {clean_name(str(c["label"])): c for c in markup["controlPoints"]}
        self.lines: dict[str, tuple[Point, str]] = {}

    def text(self, review: CaseReview) -> str:
        """The file's text."""
        self.update(review)
        points = ",\n".join(self.lines[p.name][1] for p in review.points)
        return json.dumps(self.shell, indent=2, ensure_ascii=False).replace(f'"{HERE}"', points) + "\n"

    def update(self, review: CaseReview) -> None:
        """Make the lines of points that are not as they were the last time."""
        points = []
        for point in review.points:
            before = self.lines[point.name][0] if point.name in self.lines else None
            if before is None or (before.position, before.state is State.ABSENT) != (
                point.position,
                point.state is State.ABSENT,
            ):
                points.append(point)
            elif before.state is not point.state:
                self._keep(point, {**self.controls[point.name], "locked": point.state in PLACED})
        if points:
            self._make(review, points)

    def _keep(self, point: Point, control: dict[str, Any]) -> None:
        self.controls[point.name] = control
        self.lines[point.name] = point, json.dumps(control, ensure_ascii=False)

    def _make(self, review: CaseReview, points: Sequence[Point]) -> None:
        ids = (str(i) for i in itertools.count(1))
        used = {str(c.get("id")) for c in self.controls.values()}
        markup = self.shell["markups"][self.at]
        markup["controlPoints"] = []
        for point in points:
            there = self.controls.get(point.name)
            if there is None:
                there = {"id": next(i for i in ids if i not in used), "label": point.name, **copy.deepcopy(NEW_CONTROL)}
            markup["controlPoints"].append({**there, "locked": point.state in PLACED})
        landmarks = landmarks_of(replace(review, points=tuple(points)), self.ndim, self.definitions)
        kept = {"mrk.json": self.shell, "mrk.list": self.at}
        self.shell = mrk_document(replace(landmarks, meta=kept), f"{review.case}.mrk.json")
        markup = self.shell["markups"][self.at]
        for point, control in zip(points, markup["controlPoints"], strict=True):
            self._keep(point, control)
        markup["controlPoints"] = [HERE]
        if markup.get("lastUsedControlPointNumber") == 0:
            markup["lastUsedControlPointNumber"] = len(self.controls)


def write_markups(text: str, case: str, out: Path) -> None:
    """``<case>.mrk.json``. Raises InputError where the disk refuses."""
    write_text(markups_file(out, case), text)


def differs(file: Path, landmarks: Landmarks) -> bool:
    """Whether a markups file holds other points than these, or cannot be read."""
    try:
        there = read_mrk(file).select(landmarks.names)
    except InputError:
        return True
    points = there.points[:, : landmarks.ndim]
    return there.status != landmarks.status or not np.allclose(points, landmarks.points, 0, SAME_MM, equal_nan=True)


def set_aside(file: Path) -> Path:
    """Give a file another name, ``a.earlier.mrk.json``, which is returned."""
    stem, ending = file.name.removesuffix(".mrk.json"), ".mrk.json"
    names = (file.with_name(f"{stem}.earlier{'' if n == 1 else n}{ending}") for n in itertools.count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    file.rename(kept)
    return kept


def write_truth(review: CaseReview, landmarks: Landmarks, out: Path) -> None:
    """``truth/<case>.csv``. Raises InputError where the disk refuses."""
    file = truth_file(out, review.case)
    write_table(landmarks, file, case=review.case, observer=OBSERVER)


def other_rows(out: Path, cases: Iterable[str]) -> list[dict[str, str]]:
    """The rows of ``cases.csv`` that are of other cases than these. Raises InputError where a file of this name is no
    list of corrected cases."""
    file = out / CASES
    if not os.path.lexists(file):
        return []
    sheet, own = read_sheet(file), set(cases)
    for row, cells in sheet.rows:
        if cells.get("landmarks") != _cell(cells.get("case", "")):
            raise InputError(
                f"{file}: row {row} is of no corrected case; this review would replace it, choose another `out`"
            )
    return [cells for _, cells in sheet.rows if cells["case"] not in own]


def manifest_row(case: Case, out: Path) -> dict[str, str]:
    """The row of ``cases.csv`` of a finished case."""
    return {
        "case": case.id,
        "image": _image_cell(case.path, out),
        "landmarks": _cell(case.id),
        "split": case.split or "train",
        "spacing": ";".join(f"{v!r}" for v in case.spacing or ()),
        "form": case.form or "",
    }


def write_manifest(rows: list[dict[str, str]], out: Path) -> None:
    """``cases.csv``, in which columns that are blank throughout are left out. Raises InputError where the disk
    refuses."""
    columns = [c for c in COLUMNS if c in COLUMNS[:4] or any(row.get(c) for row in rows)]
    write_csv(out / CASES, rows, columns)


def _cell(case: str) -> str:
    return f"{TRUTH}/{case}.csv#{OBSERVER}"


def _image_cell(path: Path | None, out: Path) -> str:
    """An image's path relative to ``out`` where it lies near it, so that both can be moved together."""
    image, near = Path(os.path.abspath(path or "")), Path(os.path.abspath(out)).parent
    return os.path.relpath(image, near / out.name) if near in image.parents and near != Path("/") else str(image)
