"""The files of a review: one that is its truth, ``<case>.review.json``, and those that are made from it."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.look.places import same_image
from anatomark.cases.observers import CORRECTED
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.atomic import read_json, read_text, write_text
from anatomark.io.claim import Claim
from anatomark.io.confidence import plain
from anatomark.io.frames import CLEARED
from anatomark.io.landmarks import load_landmarks
from anatomark.io.names import clean_name
from anatomark.io.sheets import read_sheet, write_csv
from anatomark.io.slicer import NEW_CONTROL, NEW_DOCUMENT, mrk_document, read_mrk
from anatomark.io.tables import write_table
from anatomark.review.record import PLACED, CaseReview, Point, State, parse

CASES, TRUTH = "cases.csv", "truth"
LONGEST_NAME = 255  # bytes of a file's name, on most systems
SAME_MM = 1e-6
HERE = "@the points of anatomark@"  # stands for them in the document around
COLUMNS = ("case", "image", "landmarks", "split", "spacing", "form")
STATUS = {State.ABSENT: Status.ABSENT, State.MISSING: Status.UNANNOTATED}  # the others are defined


def check_name(case: Case) -> None:
    """Raises InputError for a case whose name a manifest would not give back, or that no file can have: what is decided
    on it could not be read again."""
    name = case.id
    plain_name = name == name.strip() and not set(name) & set("/\\\r") and name not in ("", ".", "..")
    try:
        long = len(review_file(Path(), name).name.encode()) > LONGEST_NAME
    except UnicodeEncodeError:
        plain_name = long = False
    if not plain_name or long:
        what = "is too long" if long else "begins or ends with a blank, or holds a slash or what is no text"
        raise InputError(
            f"{case.path}: the case's name {ascii(name)[:60]} {what}; rename the image, or name the case in a manifest"
        )


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


def saved_review(case: Case, out: Path, ndim: int) -> CaseReview | None:
    """The case's review in ``out``, if there is one. Raises InputError where it cannot be one of this case."""
    file = review_file(out, case.id)
    if not file.exists():
        return None
    review = read_review(file)
    sizes = {len(at) for p in review.points for at in (p.position, p.predicted) if at is not None}
    if review.case != case.id or sizes - {ndim}:
        kind = f"of case {review.case!r}" if review.case != case.id else f"{sizes.pop()}D"
        raise InputError(f"{file}: is {kind}, not of case {case.id!r} in {ndim}D; choose another `out`")
    if review.image and case.path is not None and is_another_image(Path(review.image), case.path):
        raise InputError(f"{file}: is a review of {review.image}, not of {case.path}; choose another `out`")
    return review


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
    """What training learns of a finished case: points that a person decided on; the others are not annotated.
    ``meta``: those that were cleared."""
    undecided = np.array([not p.decided for p in review.points], dtype=bool)
    cleared = tuple(p.name for p in review.points if p.cleared)
    return replace(landmarks_of(review, ndim, definitions).unannotated(undecided), meta={CLEARED: cleared})


def base_document(files: Iterable[Path]) -> Landmarks:
    """The markups file that is gone on with, as read (its document in ``meta``): the first of the ``files`` that is
    there and can be read; without one no points, in a new document."""
    for file in files:
        if file.exists():
            with suppress(InputError):
                return read_mrk(file)
    return Landmarks((), np.empty((0, 3)), meta={"mrk.json": copy.deepcopy(NEW_DOCUMENT), "mrk.list": 0})


class Markups:
    """A case's document of 3D Slicer, as ``<case>.mrk.json`` holds it, a line for each point.

    What ``base`` holds beside the points is kept, its descriptions too, without scores; points that a person placed or
    confirmed are locked. ``definitions``: descriptions of points that it lacks.
    """

    def __init__(self, base: Landmarks, ndim: int, definitions: Mapping[str, str]):
        self.shell, self.at, self.ndim = base.meta["mrk.json"], base.meta["mrk.list"], ndim
        own = zip(base.names, map(plain, base.descriptions), strict=True)
        self.definitions = {**definitions, **{name: text for name, text in own if text}}
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


def changed_elsewhere(file: Path, case: str, landmarks: Landmarks) -> bool:
    """Whether a file that is made from a review holds other points than these, or cannot be read."""
    try:
        there = read_mrk(file) if file.name.endswith(".mrk.json") else load_landmarks(file, case=case)
        there = there.select(landmarks.names)
    except InputError:
        return True
    points = there.points[:, : landmarks.ndim]
    if set(there.meta.get(CLEARED, ())) != set(landmarks.meta.get(CLEARED, ())):
        return True
    return there.status != landmarks.status or not np.allclose(points, landmarks.points, 0, SAME_MM, equal_nan=True)


def keep_others(
    case: str, out: Path, landmarks: Landmarks, truth: Landmarks, claim: Claim
) -> Iterator[tuple[Path, Path]]:
    """Give the files that are made from a review, which somebody else has changed since, another name: from and to.
    ``landmarks`` and ``truth``: what they should hold."""
    written = review_file(out, case)
    since = written.stat().st_mtime_ns if written.exists() else -1
    for file, made in ((markups_file(out, case), landmarks), (truth_file(out, case), truth)):
        if not file.exists() or file.stat().st_mtime_ns <= since or claim.unfinished(file):
            continue
        if changed_elsewhere(file, case, made):
            yield file, set_aside(file)


def is_stale(review: CaseReview, out: Path) -> bool:
    """Whether the truth of a finished case lacks its file, or the file was changed since."""
    file = truth_file(out, review.case)
    if not review.finished or not any(p.decided for p in review.points):
        return False
    return not file.exists() or file.stat().st_mtime_ns > review_file(out, review.case).stat().st_mtime_ns


def set_aside(file: Path) -> Path:
    """Give a file another name, ``a.earlier.mrk.json``, which is returned."""
    ending = ".mrk.json" if file.name.endswith(".mrk.json") else file.suffix
    stem = file.name.removesuffix(ending)
    names = (file.with_name(f"{stem}.earlier{'' if n == 1 else n}{ending}") for n in itertools.count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    file.rename(kept)
    return kept


def is_another_image(before: Path, now: Path) -> bool:
    """Whether a case's image is another one than it was: by its name, and, where both are there, by its content."""
    if before.name != now.name:
        return True
    try:
        return before.exists() and not os.path.samefile(before, now) and not same_image(before, now)
    except OSError:  # one cannot be read, which is said where it is
        return False


def write_truth(review: CaseReview, landmarks: Landmarks, out: Path) -> None:
    """``truth/<case>.csv``. Raises InputError where the disk refuses."""
    file = truth_file(out, review.case)
    write_table(landmarks, file, case=review.case, observer=CORRECTED)


def manifest_rows(out: Path) -> dict[str, dict[str, str]]:
    """The rows of ``cases.csv`` by case. Raises InputError where a file of this name is no list of corrected cases."""
    file = out / CASES
    if not os.path.lexists(file) or read_text(file).strip() == ",".join(COLUMNS[:4]):  # nothing is finished
        return {}
    rows = read_sheet(file).rows
    for row, cells in rows:
        if cells.get("landmarks") != _cell(cells.get("case", "")):
            raise InputError(
                f"{file}: row {row} is of no corrected case; this review would replace it, choose another `out`"
            )
    return {cells["case"]: dict(cells) for _, cells in rows}


def manifest_row(case: Case, out: Path, split: str = "") -> dict[str, str]:
    """The row of ``cases.csv`` of a finished case; ``split``: where the case itself has none."""
    return {
        "case": case.id,
        "image": _image_cell(case.path, out),
        "landmarks": _cell(case.id),
        "split": case.split or split or "train",
        "spacing": ";".join(f"{float(v)!r}" for v in case.spacing or ()),
        "form": case.form or "",
    }


def write_manifest(rows: list[dict[str, str]], out: Path) -> None:
    """``cases.csv``, in which columns that are blank throughout are left out; those that somebody added stay; without
    rows there is no such file. Raises InputError where the disk refuses."""
    if not rows:
        (out / CASES).unlink(missing_ok=True)
        return
    used = dict.fromkeys([*COLUMNS, *(column for row in rows for column in row)])
    columns = [c for c in used if c in COLUMNS[:4] or any(row.get(c) for row in rows)]
    write_csv(out / CASES, rows, columns)


def _cell(case: str) -> str:
    return f"{TRUTH}/{case}.csv#{CORRECTED}"


def _image_cell(path: Path | None, out: Path) -> str:
    """An image's path relative to ``out`` where it lies near it, so that both can be moved together."""
    image, near = Path(os.path.abspath(path or "")), Path(os.path.abspath(out)).parent
    return os.path.relpath(image, near / out.name) if near in image.parents and near != Path("/") else str(image)
