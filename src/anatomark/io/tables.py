"""Landmark tables: CSV and TSV, tidy or wide, many cases, several observers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anatomark.core.grid import Array, Grid
from anatomark.core.landmarks import Landmarks, Status, common_names
from anatomark.errors import InputError, nearest
from anatomark.io.atomic import Where
from anatomark.io.both_units import check_both_units
from anatomark.io.frames import (
    CLEARED,
    MM_PER,
    agree,
    agreed_frame,
    check_kind,
    check_status,
    mm_to_pixels,
    parse_unit,
    stated,
    swap_lps_ras,
)
from anatomark.io.names import clean_name, remarks
from anatomark.io.other_json import json_points
from anatomark.io.other_points import ENDINGS, read_points
from anatomark.io.other_tables import deeplabcut, is_deeplabcut, slicers_frame, slicers_points
from anatomark.io.sheets import COLUMNS, Sheet, misspelt, read_sheet, write_csv

MEAN = "mean"
TIDY = ("case", "label", "observer", "status", "description", "score", "radius90")
BLANK = ("", "nan", "na", "none")


@dataclass(frozen=True)
class Table:
    """Landmarks of many cases: ``cases[case][observer]``, the names ``""`` where the file has no such column.

    Positions are LPS mm in 3D, image mm in 2D; only where ``unit`` is ``px`` they are pixels (column, row).
    """

    path: Path
    frame: str
    unit: str
    cases: Mapping[str, Mapping[str, Landmarks]]

    def observers(self, case: str | None = None) -> Mapping[str, Landmarks]:
        """All observers of one case; ``case`` may be left out where there is only one. Raises InputError."""
        if "" in self.cases:
            return self.cases[""]
        if case is None and len(self.cases) == 1:
            return next(iter(self.cases.values()))
        if case is None:
            some = ", ".join(list(self.cases)[:3])
            raise InputError(f"{self.path}: holds {len(self.cases)} cases ({some}, ...); say which case")
        if case not in self.cases:
            raise InputError(f"{self.path}: has no rows for case {case!r}{nearest(case, list(self.cases))}")
        return self.cases[case]

    def pick(self, case: str | None = None, observer: str | None = None) -> Landmarks:
        """One observer's landmarks of one case; ``mean`` is the mean over all. Raises InputError where the choice is
        missing or unknown."""
        observers = self.observers(case)
        if observer is None and len(observers) == 1:
            return next(iter(observers.values()))
        names = ", ".join(observers)
        if observer is None:
            raise InputError(
                f"{self.path}: holds observers {names}; choose one, e.g. {self.path.name}#{next(iter(observers))}"
            )
        if observer in observers:
            return observers[observer]
        if observer == MEAN:
            return mean_of(observers)
        hint = nearest(observer, list(observers))
        raise InputError(f"{self.path}: has no observer {observer!r}{hint}; it holds {names}")


def mean_of(observers: Mapping[str, Landmarks]) -> Landmarks:
    """Per landmark the mean position over the observers who defined it; absent where none did and one says so."""
    names = common_names(observers.values())
    sets = [one.select(names) for one in observers.values()]
    defined = np.array([one.defined for one in sets])
    total = np.nansum([one.points for one in sets], axis=0)
    count = defined.sum(0)
    points = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan)
    missing = [Status.ABSENT if absent else Status.UNANNOTATED for absent in np.any([one.absent for one in sets], 0)]
    status = [Status.DEFINED if n else other for n, other in zip(count, missing, strict=True)]
    return replace(
        sets[0], points=points, status=tuple(status), score=None, covariance=None, radius90=None,
        meta={**sets[0].meta, "observer": MEAN, CLEARED: ()},
    )  # fmt: skip


def read_table(path: Where, frame: str | None = None, unit: str | None = None, label_from: str = "label") -> Table:
    """Read a CSV/TSV of landmarks: tidy ``case,label,x,y[,z][,observer][,status][,description]`` or wide
    ``case,<label>_x,<label>_y[,<label>_z][,observer]``; ``case`` may be missing where the file holds one case. So are
    read the tables and lists of :mod:`anatomark.io.other_tables` and :mod:`anatomark.io.other_points`.

    Frame (LPS, RAS, image) and unit (mm, px; in 3D also um, cm, m) come from the first line ``# frame=LPS unit=mm`` or
    from the arguments. A blank position means unannotated, unless its status (wide: the x cell) says ``absent``.
    ``label_from``: ``description`` exchanges the columns label and description. Raises InputError, naming file and row.
    """
    path = Path(path)
    try:
        stamp = path.stat().st_mtime_ns, path.stat().st_size
    except (OSError, ValueError):
        stamp = (0, 0)  # read_text has the words for it
    return _read_table(path, frame, unit, label_from, stamp)


@lru_cache(maxsize=16)  # a manifest names one table in every row; the stamp notices a change of the file
def _read_table(path: Path, frame: str | None, unit: str | None, label_from: str, stamp: tuple[int, int]) -> Table:
    unit = parse_unit(unit) if unit else None
    sheet = _sheet(path, frame, unit)
    if "label" in sheet.columns:
        records, axes, own_unit = _tidy(sheet, label_from)
    elif label_from == "label":
        records, axes, own_unit = _wide(sheet)
    else:
        raise InputError(f"{path}: has no descriptions to take the names from")
    frame = agreed_frame(sheet.facts.get("frame"), frame, str(path))
    stated = own_unit or (parse_unit(sheet.facts["unit"]) if "unit" in sheet.facts else None)
    unit = agree(stated, unit, "unit", str(path))
    scale = MM_PER.get(unit, 1.0) if len(axes) == 3 else 1.0
    unit = "mm" if scale != 1.0 else unit
    check_kind(frame, unit, len(axes), str(path))
    groups: dict[str, dict[str, list[_Record]]] = {}
    for record in records:
        groups.setdefault(record.case, {}).setdefault(record.observer, []).append(record)
    meta = {"path": str(path), "frame": frame, "unit": unit, "notes": sheet.notes}
    signs = (swap_lps_ras(np.ones(3)) if frame == "RAS" else np.ones(len(axes))) * scale
    return Table(path, frame, unit, _Cases(groups, signs, path, meta))


@dataclass(frozen=True)
class _Cases(Mapping[str, Mapping[str, Landmarks]]):
    """Landmarks by case and observer, made when they are asked for; what is wrong with a case is said then."""

    groups: Mapping[str, Mapping[str, Sequence[_Record]]]
    signs: Array
    path: Path
    meta: Mapping[str, Any]
    made: dict[str, Mapping[str, Landmarks]] = field(default_factory=dict)

    def __getitem__(self, case: str) -> Mapping[str, Landmarks]:
        if case not in self.made:
            self.made[case] = {
                o: _landmarks(rows, self.signs, self.path, {**self.meta, "case": case, "observer": o})
                for o, rows in self.groups[case].items()
            }
        return self.made[case]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


def _sheet(path: Path, frame: str | None, unit: str | None) -> Sheet:
    """The table in a file, or what says the same in another program's; numbers with a decimal point."""
    if path.suffix.lower() == ".json":
        return json_points(path)
    if path.suffix.lower() in ENDINGS:
        return read_points(path, frame, unit)
    if is_deeplabcut(path):
        return deeplabcut(path)
    sheet = read_sheet(path)
    if own := slicers_frame(sheet):
        stated = agreed_frame(sheet.facts.get("frame"), own, str(path))
        sheet = replace(slicers_points(sheet, own), facts={"unit": "mm", **sheet.facts, "frame": stated})
    return _with_points(sheet)


def _with_points(sheet: Sheet) -> Sheet:
    """The same with decimal points where the coordinates have decimal commas, as Excel writes them in many countries;
    not where the comma is the delimiter. Raises InputError where both occur, for a comma may then be of thousands."""
    if sheet.delimiter == ",":
        return sheet
    columns = [c for c in sheet.columns if (c[:1] in "xyz" and c in COLUMNS) or c[-2:].lower() in ("_x", "_y", "_z")]
    columns += [c for c in ("score", "radius90") if c in sheet.columns]
    comma = next((row for row, cells in sheet.rows if any("," in cells[c] for c in columns)), None)
    point = next((row for row, cells in sheet.rows if any("." in cells[c] for c in columns)), None)
    if comma is None:
        return sheet
    if point is not None:
        raise InputError(f"{sheet.path}: row {comma} has decimal commas, row {point} decimal points; write one of them")
    rows = [(row, cells | {c: cells[c].replace(",", ".") for c in columns}) for row, cells in sheet.rows]
    return replace(sheet, rows=rows)


class _Record(NamedTuple):
    row: int
    case: str
    observer: str
    label: str
    point: tuple[float, ...]  # all finite, or all NaN
    status: str
    extra: Mapping[str, str] = {}


def _tidy(sheet: Sheet, label_from: str) -> tuple[list[_Record], str, str | None]:
    unit, suffix = next(((u, f"_{u}") for u in ("mm", "px") if {f"x_{u}", f"y_{u}"} <= set(sheet.columns)), (None, ""))
    axes = "xyz" if f"z{suffix}" in sheet.columns else "xy"
    for axis in axes:
        if axis + suffix not in sheet.columns:
            raise InputError(f"{sheet.path}: has no column {axis!r}{nearest(axis, sheet.columns)}")
    coordinates = {f"{a}{s}" for a in "xyz" for s in ("", "_mm", "_px")}
    if wrong := misspelt([c for c in sheet.columns if c not in coordinates], TIDY):
        raise InputError(f"{sheet.path}: {wrong[0]}")
    if label_from not in ("label", "description"):
        raise InputError(f"labels come from 'label' or 'description', not {label_from!r}")
    records, columns = [], [a + suffix for a in axes]
    head = f"{sheet.path}: row "
    for row, cells in sheet.rows:
        where = head + str(row)
        label = clean_name(cells.get(label_from, ""))
        if label_from != "label":
            cells = {**cells, "description": cells["label"]}
        if not label:
            remedy = "; the descriptions may be names: give `label_from` description" * bool(cells.get("description"))
            raise InputError(f"{where}: the {label_from} is blank{remedy if label_from == 'label' else ''}")
        point = _point([cells[c] for c in columns], where)
        case, observer = cells.get("case", ""), cells.get("observer", "")
        if "case" in cells and not case:
            raise InputError(f"{where}: the case is blank")
        records.append(_Record(row, case, observer, label, point, cells.get("status", ""), cells))
    return records, axes, unit


def _wide(sheet: Sheet) -> tuple[list[_Record], str, None]:
    small = {c: c[:-2] + c[-2:].lower() for c in sheet.columns if c[-2:] in ("_X", "_Y", "_Z")}
    if small and not set(small.values()) & set(sheet.columns):
        rows = [(row, {small.get(c, c): text for c, text in cells.items()}) for row, cells in sheet.rows]
        sheet = replace(sheet, columns=[small.get(c, c) for c in sheet.columns], rows=rows)
    columns = set(sheet.columns)
    labels = [c[:-2] for c in sheet.columns if c.endswith("_x") and f"{c[:-2]}_y" in columns]
    if not labels:
        raise InputError(
            f"{sheet.path}: has neither a column 'label'{nearest('label', sheet.columns)} (tidy: case,label,x,y[,z]) "
            "nor pairs <label>_x,<label>_y (wide)"
        )
    axes = "xyz" if f"{labels[0]}_z" in columns else "xy"
    known = {f"{label}_{a}" for label in labels for a in axes} | {"case", "observer"}
    odd = [c for c in sheet.columns if c not in known] + sorted(known - columns - {"case", "observer"})
    if odd:
        raise InputError(f"{sheet.path}: column {odd[0]!r} does not go with the others (<label>_{', _'.join(axes)})")
    records = []
    names = {label: clean_name(label) for label in labels}
    for row, cells in sheet.rows:
        for label in labels:
            values = [cells[f"{label}_{a}"] for a in axes]
            status = "absent" if values[0].lower() == "absent" else ""
            point = _point([""] * len(axes) if status else values, f"{sheet.path}: row {row}, {label}")
            records.append(_Record(row, cells.get("case", ""), cells.get("observer", ""), names[label], point, status))
    return records, axes, None


def _point(cells: Sequence[str], where: str) -> tuple[float, ...]:
    """The numbers of one position; all NaN where every cell is blank."""
    try:
        values = tuple(map(float, cells))
        if all(map(math.isfinite, values)) and (text := "".join(cells)).isascii() and "_" not in text:
            return values
    except ValueError:
        pass
    if all(c.lower() in BLANK for c in cells):
        return (math.nan,) * len(cells)
    remedy = "write decimal points" if any("," in c for c in cells) else "all blank: unannotated"
    raise InputError(f"{where}: position {', '.join(cells)[:80]!r} is not {len(cells)} numbers ({remedy})")


def _landmarks(group: Sequence[_Record], signs: Array, path: Path, meta: dict[str, Any]) -> Landmarks:
    seen: dict[str, int] = {}
    for record in group:
        if record.label in seen:
            of = f" of case {record.case!r}" if record.case else ""
            there = f"label {record.label!r}{of} is already in row {seen[record.label]}"
            raise InputError(f"{path}: row {record.row}: {there}")
        seen[record.label] = record.row
    status = tuple(check_status(r.status, math.isfinite(r.point[0]), f"{path}: row {r.row}") for r in group)
    check_both_units([(record.row, record.extra) for record in group], path)
    texts = tuple(record.extra.get("description", "") for record in group)
    cleared = tuple(record.label for record in group if record.status.lower() == CLEARED)

    def optional(key: str) -> Array | None:
        texts = [record.extra.get(key, "") for record in group]
        try:
            return np.array([float(t or "nan") for t in texts]) if any(texts) else None
        except ValueError:
            raise InputError(f"{path}: column {key!r} holds something that is not a number") from None

    return Landmarks(
        tuple(seen),
        np.array([record.point for record in group]) * signs,
        status,
        score=optional("score"),
        radius90=optional("radius90"),
        descriptions=texts,
        meta={**meta, "name_notes": tuple(remarks(tuple(seen), texts, path)), CLEARED: cleared},
    )


def write_table(
    landmarks: Landmarks,
    path: Where,
    *,
    case: str = "",
    observer: str = "",
    unit: str = "mm",
    grid: Grid | None = None,
) -> None:
    """Write landmarks (world mm) as a tidy CSV, or TSV by suffix, with columns ``case`` and ``observer`` where they are
    named.

    3D: frame LPS, mm. 2D: frame image; ``grid``, that of the image, is needed for ``unit="px"``, and in mm adds the
    columns ``x_px, y_px``. Raises InputError where it is missing.
    """
    frame, axes = ("LPS", "xyz") if landmarks.ndim == 3 else ("image", "xy")
    check_kind(frame, unit, landmarks.ndim, str(path))
    if unit == "px" and grid is None:
        raise InputError(f"{path}: landmarks in px need the spacing; give `spacing`, or write mm")
    places = {"": landmarks.points}
    if grid is not None and landmarks.ndim == 2:
        pixels = mm_to_pixels(landmarks.points, grid)
        places = {"": pixels} if unit == "px" else {"_mm": landmarks.points, "_px": pixels}
    cells: dict[str, Sequence[str]] = {"case": [case] * len(landmarks)} if case else {}
    cells["label"] = landmarks.names
    cells |= {f"{a}{u}": _numbers(points[:, i]) for u, points in places.items() for i, a in enumerate(axes)}
    if observer:
        cells["observer"] = [observer] * len(landmarks)
    if not landmarks.defined.all():
        cells["status"] = stated(landmarks)
    if any(landmarks.descriptions):
        cells["description"] = landmarks.descriptions
    cells |= {k: _numbers(v) for k in ("score", "radius90") if (v := getattr(landmarks, k)) is not None}
    rows = (dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True))
    write_csv(path, rows, list(cells), head=f"# frame={frame} unit={unit}\n")


def _numbers(values: Array) -> list[str]:
    return [repr(float(v)) if np.isfinite(v) else "" for v in values]
