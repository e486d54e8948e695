"""The files of a review: one that is its truth, ``<case>.review.json``, and those that are made from it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.atomic import read_json, write_json, write_text
from anatomark.io.names import clean_name
from anatomark.io.sheets import read_sheet, write_csv
from anatomark.io.slicer import NEW_CONTROL, NEW_DOCUMENT, mrk_document, read_mrk
from anatomark.io.tables import write_table
from anatomark.review.record import PLACED, CaseReview, State, dumps, parse

OBSERVER, CASES, TRUTH = "corrected", "cases.csv", "truth"
COLUMNS = ("case", "image", "landmarks", "split", "spacing", "form")
STATUS = {State.ABSENT: Status.ABSENT, State.MISSING: Status.UNANNOTATED}  # the others are defined


def review_file(out: Path, case: str) -> Path:
    return out / f"{case}.review.json"


def markups_file(out: Path, case: str) -> Path:
    return out / f"{case}.mrk.json"


def truth_file(out: Path, case: str) -> Path:
    return out / TRUTH / f"{case}.csv"


def read_review(file: Path) -> CaseReview:
    """``<case>.review.json``. Raises InputError."""
    return parse(read_json(file), str(file))


def write_review(review: CaseReview, out: Path) -> None:
    """Raises InputError where the disk refuses."""
    write_text(review_file(out, review.case), dumps(review))


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


def markups(review: CaseReview, landmarks: Landmarks, base: tuple[Mapping[str, Any], int]) -> dict[str, Any]:
    """The case as a document of 3D Slicer: what ``base`` holds beside the points is kept; points that a person placed
    or confirmed are locked."""
    document, at = copy.deepcopy(base[0]), base[1]
    markup = document["markups"][at]
    there = {clean_name(str(c["label"])): c for c in markup["controlPoints"]}
    controls = []
    for i, point in enumerate(review.points):
        control = there.get(point.name) or {"id": str(i + 1), "label": point.name, **copy.deepcopy(NEW_CONTROL)}
        controls.append({**control, "locked": point.state in PLACED})
    markup["controlPoints"] = controls
    return mrk_document(replace(landmarks, meta={"mrk.json": document, "mrk.list": at}), review.case)


def write_markups(document: Mapping[str, Any], case: str, out: Path) -> None:
    """``<case>.mrk.json``. Raises InputError where the disk refuses."""
    write_json(markups_file(out, case), document)


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
