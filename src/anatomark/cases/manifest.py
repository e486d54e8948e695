"""The manifest ``cases.csv``: which image, which landmarks, which split. Every problem is reported at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError, ManyInputErrors, nearest
from anatomark.io.frames import parse_spacing
from anatomark.io.images import image_grid, read_image, squeeze_grid, squeeze_to_2d
from anatomark.io.landmarks import in_mm, landmark_format, load_landmarks, named_by, split_observer
from anatomark.io.sheets import misspelt, read_sheet
from anatomark.io.tables import read_table

COLUMNS = ("case", "image", "landmarks", "split", "spacing")
SPLITS = ("train", "val", "test", "")


@dataclass(frozen=True)
class Reading:
    """What the user said about landmark files that do not say it themselves."""

    frame: str | None = None
    unit: str | None = None
    label_from: str = "label"


@dataclass(frozen=True)
class Case:
    """One row of a manifest. ``landmarks``: absolute path, with ``#observer`` where given; None where the cell is
    blank. ``split``: train, val, test or blank (unused). ``spacing``: mm along x, y[, z], or None. ``row``: line of
    the file."""

    id: str
    image: Path
    landmarks: str | None
    split: str
    spacing: tuple[float, ...] | None
    row: int
    reading: Reading = Reading()

    def read_image(self) -> Image:
        """The image; 2D also where a 3D file has a slowest axis of length 1 and the landmarks are 2D."""
        image = read_image(self.image, self.spacing)
        flat = image.ndim == 3 and image.grid.shape[0] == 1 and self.landmarks is not None
        return squeeze_to_2d(image) if flat and self._load().ndim == 2 else image

    def read_landmarks(self, names: Sequence[str] | None = None) -> Landmarks:
        """The landmarks in world mm, in the order of ``names`` where given (a missing one is unannotated). Raises
        InputError where there are none, or they do not fit the image's dimension."""
        return self._fitted(self._load(), names)

    def observers(self, names: Sequence[str] | None = None) -> dict[str, Landmarks]:
        """All observers of this case in its table, as :meth:`read_landmarks`; one entry ``""`` for other files."""
        file, _ = split_observer(self._path())
        if landmark_format(file) not in (".csv", ".tsv"):
            return {"": self.read_landmarks(names)}
        found = read_table(file, self.reading.frame, self.reading.unit).observers(self.id)
        return {
            observer: self._fitted(named_by(one, self.reading.label_from, file), names)
            for observer, one in found.items()
        }

    def _path(self) -> str:
        if self.landmarks is None:
            raise InputError(f"case {self.id!r} (row {self.row}) has no landmarks")
        return self.landmarks

    def _load(self) -> Landmarks:
        r = self.reading
        return load_landmarks(self._path(), case=self.id, frame=r.frame, unit=r.unit, label_from=r.label_from)

    @cached_property
    def _grid(self) -> Grid:
        return image_grid(self.image, self.spacing)

    def _fitted(self, landmarks: Landmarks, names: Sequence[str] | None) -> Landmarks:
        if landmarks.ndim == 2:
            grid = squeeze_grid(self._grid) if landmarks.meta.get("unit") == "px" else None
            landmarks = in_mm(landmarks, grid, self._path())
        elif self._cheap and self._grid.ndim == 2 and self._all_in_plane(landmarks):
            landmarks = Landmarks(
                landmarks.names, landmarks.points[:, :2], landmarks.status,
                descriptions=landmarks.descriptions, meta=landmarks.meta,
            )  # fmt: skip
        return landmarks if names is None else landmarks.select(names)

    @property
    def _cheap(self) -> bool:
        return not self.image.is_dir()

    @staticmethod
    def _all_in_plane(landmarks: Landmarks) -> bool:
        return bool((np.nan_to_num(landmarks.points[:, 2]) == 0).all())

    def check(self, need_landmarks: bool) -> tuple[list[str], tuple[str, ...]]:
        """What is wrong with the files of this row, one line each, and the landmark names; pixels are not read."""
        found = []
        try:
            if not self.image.exists():
                raise InputError(f"image {self.image}: no such file")
            grid = self._grid if self._cheap else None
        except InputError as error:
            found, grid = [str(error)], None
        if not need_landmarks:
            return found, ()
        if self.landmarks is None:
            return [*found, "the landmarks cell is blank; blank the split too to leave the case out"], ()
        try:
            landmarks = self._load()
            if all(s is Status.UNANNOTATED for s in landmarks.status):
                found.append(f"{self.landmarks}: no landmark is defined, or known to be absent")
            if grid is not None and landmarks.ndim == 2:
                squeeze_grid(grid)
            elif grid is not None and grid.ndim == 2 and not self._all_in_plane(landmarks):
                found.append(f"{self.landmarks}: the landmarks are 3D, but the image is 2D")
        except InputError as error:
            text = str(error)
            found.append(text if str(split_observer(self.landmarks)[0]) in text else f"{self.landmarks}: {text}")
            return found, ()
        return found, landmarks.names


@dataclass(frozen=True)
class Manifest:
    """The cases of a manifest in the order of its rows."""

    path: Path
    cases: tuple[Case, ...]

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of ``train``, ``val`` or ``test``. Raises InputError where there is none."""
        found = tuple(case for case in self.cases if case.split == name)
        if not found:
            there = ", ".join(f"{n} {s or 'unused'}" for s in SPLITS if (n := sum(c.split == s for c in self.cases)))
            raise InputError(f"{self.path}: no case has split {name!r} (it holds {there})")
        return found

    def has_split(self, name: str) -> bool:
        """Whether any case has this split."""
        return any(case.split == name for case in self.cases)


def read_manifest(
    path: str | os.PathLike[str],
    *,
    need_landmarks: bool = True,
    frame: str | None = None,
    unit: str | None = None,
    label_from: str = "label",
) -> Manifest:
    """Read ``case,image,landmarks,split[,spacing]``; paths are relative to the file; no split column: all train.

    ``frame``, ``unit``, ``label_from``: for the landmark files, as in ``read_landmarks``. Files of rows with a blank
    split are not looked at. Raises ManyInputErrors with every problem found, each with its row: missing columns and
    files, duplicate cases, bad splits and spacings, images without a spacing, landmark files that cannot be read,
    name another set of landmarks than the first training case, or do not fit the image's dimension.
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
    for row, cells in sheet.rows:
        case, wrong = _case(path, row, cells, reading)
        twin = next((c for c in cases if c.id == case.id and case.id), None)
        if twin:
            wrong.append(f"case {case.id!r} is already in row {twin.row}; every case needs its own name")
        cases.append(case)
        if case.split and not wrong:
            wrong, found = case.check(need_landmarks)
            names |= {case.id: found} if found else {}
        problems += [f"{path}: row {row}: {line}" for line in wrong]
    problems += [f"{path}: {line}" for line in _other_names([c for c in cases if c.id in names], names)]
    if problems:
        raise ManyInputErrors(problems)
    return Manifest(path, tuple(cases))


def _case(path: Path, row: int, cells: dict[str, str], reading: Reading) -> tuple[Case, list[str]]:
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
        spacing = parse_spacing(cells.get("spacing", ""), "column spacing")
    except InputError as error:
        wrong.append(str(error))
    if not cells["image"]:
        wrong.append("the image cell is blank")
    marks = cells.get("landmarks", "")
    landmarks = os.path.abspath(path.parent / marks) if marks else None
    image = Path(os.path.abspath(path.parent / cells["image"]))
    return Case(name, image, landmarks, split, spacing, row, reading), wrong


def _other_names(cases: Sequence[Case], names: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A line for each case that shares no landmark name with the first training case, from which the names come."""
    if not cases:
        return []
    first = next((c for c in cases if c.split == "train"), cases[0])
    return [
        f"row {case.row}: {case.landmarks}: names {_some(names[case.id])}, none of which case {first.id!r} "
        f"(row {first.row}) has: {_some(names[first.id])}; convert --label-from description, or rename"
        for case in cases
        if not set(names[case.id]) & set(names[first.id])
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
