"""The manifest ``cases.csv``: which image, which landmarks, which split. Every problem is reported at once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from anatomark.cases.case import Case, Reading, in_plane
from anatomark.cases.names import other_names, unknown_names
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError, ManyInputErrors, listed, nearest
from anatomark.io.frames import CLEARED, parse_spacing
from anatomark.io.images import squeeze_grid
from anatomark.io.nifti import FORMS
from anatomark.io.sheets import misspelt, read_sheet

COLUMNS = ("case", "image", "landmarks", "split", "spacing")  # and form, too near to common words to be guessed
SPLITS = ("train", "val", "test", "")
NOTES_SHOWN = 8
FILE = "\0"  # stands for a file's name
BLANK = "the landmarks cell is blank; blank the split too to leave the case out"


@dataclass(frozen=True)
class Manifest:
    """The cases of a manifest in the order of its rows; ``notes``: remarks on how their files were read; ``more``: the
    others, where several were read as one (:mod:`anatomark.cases.manifests`)."""

    path: Path
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    more: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path, *self.more)

    @property
    def name(self) -> str:
        """The path, or the paths joined by +."""
        return " + ".join(map(str, self.paths))

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of ``train``, ``val`` or ``test``. Raises InputError where there is none."""
        found = tuple(case for case in self.cases if case.split == name)
        if not found:
            there = ", ".join(f"{n} {s or 'unused'}" for s in SPLITS if (n := sum(c.split == s for c in self.cases)))
            raise InputError(f"{self.name}: no case has split {name!r} (it holds {there})")
        return found

    def labelled(self) -> tuple[Case, ...]:
        """:attr:`annotated`, of which there is one at least. Raises InputError where there is none."""
        self.split("train")
        if not self.annotated:
            raise InputError(f"{self.name}: no training case has landmarks; some must show which there are")
        return self.annotated

    @property
    def annotated(self) -> tuple[Case, ...]:
        """The training cases that have landmarks."""
        return tuple(case for case in self.cases if case.split == "train" and case.has_landmarks)

    @property
    def blank(self) -> tuple[Case, ...]:
        """The training cases without landmarks."""
        return tuple(case for case in self.cases if case.split == "train" and not case.has_landmarks)

    def has_split(self, name: str) -> bool:
        return any(case.split == name for case in self.cases)


def read_manifest(
    path: str | os.PathLike[str],
    *,
    need_landmarks: bool = True,
    frame: str | None = None,
    unit: str | None = None,
    label_from: str = "label",
    check_images: bool = True,
    unlabelled: bool = False,
) -> Manifest:
    """Read ``case,image,landmarks,split[,spacing][,form]``; paths are relative to the file; no split column: all train.

    ``frame``, ``unit``, ``label_from``: for the landmark files, as in ``read_landmarks``. ``check_images`` False: an
    image that is there but cannot be read is no problem here, but is said when it is read. ``unlabelled``: training
    cases may have a blank landmarks cell. Files of rows with a blank split are not looked at. Raises ManyInputErrors
    with every problem found, each with its (first) rows: missing columns and files, duplicate cases, bad splits,
    spacings and forms, images without a spacing, landmark files that cannot be read, name another set of landmarks than
    the first training case (:mod:`anatomark.cases.names`), or do not fit the image's dimension.
    """
    path = Path(path)
    sheet = read_sheet(path)
    needed = ("case", "image", *(("landmarks",) if need_landmarks else ()))
    problems = [f"{path}: {line}" for line in misspelt(sheet.columns, COLUMNS)]
    for column in needed:
        if column not in sheet.columns and not any(repr(column) in line for line in problems):
            problems.append(f"{path}: has no column {column!r}{nearest(column, sheet.columns)}")
    if problems:
        raise ManyInputErrors(problems)
    reading = Reading(frame, unit, label_from)
    cases: list[Case] = []
    names: dict[str, tuple[str, ...]] = {}
    notes: dict[str, None] = {}
    found: dict[str, list[tuple[int, str]]] = {}  # rows, and the file of each, by what is wrong with them
    remarked: dict[str, list[str]] = {}  # cases by what is to be known of their image's geometry
    for row, cells in sheet.rows:
        case, wrong = _case(path, row, cells, reading, sheet.delimiter != ",")
        case = replace(case, apart=len(sheet.rows) > 1)
        twin = next((c for c in cases if c.id == case.id and case.id), None)
        if twin:
            wrong.append(f"case {case.id!r} is already in row {twin.row}; every case needs its own name")
        cases.append(case)
        if case.split and not wrong:
            needed_here = need_landmarks and not (unlabelled and case.split == "train" and case.source is None)
            wrong, landmarks, remarks = _problems(case, needed_here, check_images)
            for remark in remarks:
                remarked.setdefault(remark, []).append(case.id)
            if landmarks is not None and landmarks.names:
                names[case.id] = landmarks.names
                notes |= dict.fromkeys(landmarks.meta.get("notes", ()))
        for line in dict.fromkeys(wrong):
            kind, file = _without_file(line, case)
            found.setdefault(kind, []).append((row, file))
    problems = [f"{path}: {_at_rows(kind, at)}" for kind, at in found.items()]
    named = [c for c in cases if c.id in names]
    problems += [f"{path}: {line}" for line in other_names(named, names)]
    if problems:
        raise ManyInputErrors(problems)
    notes |= dict.fromkeys(f"{path}: {line}" for line in unknown_names(named, names))
    notes |= dict.fromkeys(f"{listed(ids, 3)}: {remark}" for remark, ids in remarked.items())
    more = [f"{path}: {len(notes) - NOTES_SHOWN} more remarks on its files"] if len(notes) > NOTES_SHOWN else []
    return Manifest(path, tuple(cases), (*list(notes)[:NOTES_SHOWN], *more))


def _without_file(line: str, case: Case) -> tuple[str, str]:
    """A problem with a mark in place of the case's file that it names, by which rows with the same problem are known;
    and that file."""
    files = (str(case.path), (case.source or "").partition("#")[0])
    file = max((f for f in files if f and f in line), key=len, default="")  # one may begin with the other
    return (line.replace(file, FILE) if file else line), file


def _at_rows(kind: str, at: list[tuple[int, str]]) -> str:
    """One line for all rows that have the problem ``kind``, with the first of their files."""
    others = len({file for _, file in at}) - 1
    file = at[0][1] + (f" (and {others} more)" if others else "")
    return f"row{'s' * (len(at) > 1)} {listed([str(row) for row, _ in at])}: {kind.replace(FILE, file)}"


def _problems(case: Case, need_landmarks: bool, check_images: bool) -> tuple[list[str], Landmarks | None, list[str]]:
    """What is wrong with the files of a case, one line each, the landmarks, and what is to be known of the image's
    geometry; pixels are not read."""
    problems, grid, notes = [], None, []
    assert case.path is not None
    missing = not os.path.exists(case.path)
    try:
        if missing:
            raise InputError(f"image {case.path}: no such file")
        grid, notes = case.header, [*case.remarks]
    except InputError as error:
        problems = [str(error)] if check_images or missing else []
    if not need_landmarks:
        return problems, None, notes
    if case.source is None:
        return [*problems, BLANK], None, notes
    try:
        landmarks = case.load_landmarks()
        if all(s is Status.UNANNOTATED for s in landmarks.status) and not landmarks.meta.get(CLEARED):
            problems.append(f"{case.source}: no landmark is defined, or known to be absent")
        if grid is not None and landmarks.ndim == 2:
            squeeze_grid(grid)
        elif grid is not None and grid.ndim == 2 and in_plane(landmarks).ndim == 3:
            problems.append(f"{case.source}: the landmarks are 3D, but the image is 2D")
    except InputError as error:
        text = str(error)
        problems.append(text if case.source.partition("#")[0] in text else f"{case.source}: {text}")
        return problems, None, notes
    return problems, landmarks, notes


def _case(path: Path, row: int, cells: dict[str, str], reading: Reading, decimal_comma: bool) -> tuple[Case, list[str]]:
    """One row as a Case, and what is wrong with its cells."""
    wrong = []
    name, split = cells["case"], cells.get("split", "train").lower()
    if not name or "/" in name or "\\" in name:
        wrong.append(f"case {name!r} must be a name that can be part of a file name")
    if split not in SPLITS:
        wrong.append(
            f"split {cells['split']!r} is not known{nearest(split, SPLITS[:3])}; it is train, val, test or blank"
        )
    spacing = None
    try:
        given = cells.get("spacing", "")
        spacing = parse_spacing(given.replace(",", ".") if decimal_comma else given, "column spacing")
    except InputError as error:
        wrong.append(str(error))
    if not cells["image"]:
        wrong.append("the image cell is blank")
    wrong += [
        f"{cells[c]!r} is a path of Windows; write it relative to the manifest"
        for c in ("image", "landmarks")
        if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", cells.get(c, ""))
    ]
    marks = cells.get("landmarks", "")
    landmarks = _located(path.parent, marks) if marks else None
    image = Path(_located(path.parent, cells["image"]))
    form = cells.get("form", "").lower() or None
    if form not in (None, *FORMS):
        wrong.append(f"form {cells['form']!r} is not known{nearest(form, FORMS)}; it is sform, qform or blank")
    return Case(name, image, landmarks, split, spacing, form, row, reading), wrong


def _located(folder: Path, cell: str) -> str:
    """The path in a cell, from ``folder`` on; ``~`` is the home, and back-slashes part folders, unless a file is called
    so."""
    path = os.path.abspath(folder / cell)
    return path if os.path.exists(path) else os.path.abspath(folder / os.path.expanduser(cell.replace("\\", "/")))
