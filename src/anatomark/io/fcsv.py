"""Point lists of older 3D Slicer, ``.fcsv``, both ways, with every cell kept on a round trip."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError, listed
from anatomark.io.atomic import Where, read_text, write_text
from anatomark.io.confidence import known, with_confidence, without_confidence
from anatomark.io.frames import agree, agreed_frame, parse_unit, swap_lps_ras
from anatomark.io.names import named
from anatomark.io.sheets import Lines, read_records, split_lines
from anatomark.io.slicer import SYSTEMS, says_absent, says_the_same, with_absent, without_absent

COLUMNS = ["id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc", "associatedNodeID"]
NODE, NODES = "associatedNodeID", "vtkMRML"  # the last column, and how its cells begin
NOWHERE = (math.nan,) * 3
PLACED, MISSING = "2", "3"  # position status, in the cell after the last column


@dataclass(frozen=True)
class _Fcsv:
    """An .fcsv as it was: comment lines, column names, and the cells of each label's row."""

    header: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]
    lps: bool


class _Row(NamedTuple):
    label: str
    point: tuple[float, ...]  # NaN where not defined
    status: Status
    text: str
    score: float
    radius: float


HEADER = ("# Markups fiducial file version = 5.0", "# CoordinateSystem = LPS", f"# columns = {','.join(COLUMNS)}")
NEW_FCSV = _Fcsv(HEADER, tuple(COLUMNS), {}, True)


def read_fcsv(path: Where, frame: str | None = None, unit: str | None = None, label_from: str = "label") -> Landmarks:
    """Read an .fcsv: ``CoordinateSystem`` 0 or RAS, 1 or LPS (``frame`` is for files that state none), mm, columns as
    the ``# columns`` line says. A 15th cell is the position's status (2 = defined). ``label_from`` as in
    ``read_landmarks``. Score and radius at a description's end (:mod:`anatomark.io.confidence`) are read as such.

    A comma in a description that is not quoted is taken as a part of it, trailing commas are dropped; ``meta["notes"]``
    are remarks. All cells are kept in ``meta["fcsv"]``. Raises InputError, naming the row.
    """
    path = Path(path)
    lines = split_lines(read_text(path, newlines=False))
    top = itertools.takewhile(lambda line: _is_comment(line) or not line.strip(), lines)
    header = [line.rstrip("\r\n") for line in top if line.strip()]
    facts, columns = _header(header, path)
    first = next((line for line in lines if line.strip() and not _is_comment(line)), "")
    delimiter = max(",;\t", key=first.count)
    system = facts.get("coordinatesystem")
    if system is not None and system.upper() not in SYSTEMS:
        raise InputError(f"{path}: CoordinateSystem = {system[:40]} is not known; it is 0 or RAS, 1 or LPS")
    frame = agreed_frame(SYSTEMS[system.upper()] if system else None, frame, str(path))
    agree("mm", parse_unit(unit) if unit else None, "unit", str(path))
    rows: list[_Row] = []
    at = {c: i for i, c in enumerate(columns)}
    records: list[list[str]] = []
    numbers: list[str] = []
    for number, cells in read_records(lines, delimiter, path, skip=_is_comment):
        where = f"{path}: row {number}"
        cells = cells if delimiter == "," else _with_decimal_points(cells, at, where)
        records.append(_mended(cells, columns, where))
        numbers.append(f"row {number}")
        rows.append(_row(records[-1], at, where))
    if not rows:
        raise InputError(f"{path}: holds no landmarks")
    labels, texts = [r.label for r in rows], [r.text for r in rows]
    names, descriptions, name_notes = named(labels, texts, label_from, path, numbers)
    joined = [n for n, c in zip(names, records, strict=True) if isinstance(c, _Joined)]
    quoted = f"{path}: commas in the description of {listed(joined)} are not quoted; read as part of it"
    points = np.array([r.point for r in rows])
    kept = {"fcsv": _Fcsv(tuple(header), tuple(columns), dict(zip(names, records, strict=True)), frame == "LPS")}
    return Landmarks(
        tuple(names),
        (swap_lps_ras(points) if frame == "RAS" else points)[:, : 2 if facts.get("dimension") == "2" else 3],
        tuple(r.status for r in rows),
        score=known([r.score for r in rows]),
        radius90=known([r.radius for r in rows]),
        descriptions=tuple(descriptions),
        meta={
            "path": str(path), "frame": frame, "unit": "mm",
            "notes": (quoted,) if joined else (), "name_notes": tuple(name_notes),
            **(kept if label_from == "label" else {}),
        },
    )  # fmt: skip


def _is_comment(line: str) -> bool:
    quoted = line.startswith('"#') and re.match(r'"#\s*(Markups|\w+\s*=)', line)  # as Excel saves it
    return line.startswith("#") or bool(quoted)


def _header(header: Sequence[str], path: Path) -> tuple[dict[str, str], list[str]]:
    """Facts of the comment lines, also where Excel padded them with commas or put them into quotes; the names of the
    columns."""
    facts = {}
    for line in header:
        if match := re.match(r'"?#\s*(\w+)\s*=\s*(.*)', line):
            facts[match[1].lower()] = match[2].strip().rstrip(',;" ').strip()
    text = facts.get("columns", ",".join(COLUMNS))
    columns = [c.strip('" ') for c in re.split("[,;\t]", text)]
    if missing := [c for c in ("x", "y", "z", "label") if c not in columns]:
        raise InputError(f"{path}: its '# columns' line has no {missing[0]!r}")
    if twice := [c for c, n in Counter(columns).items() if n > 1]:
        raise InputError(f"{path}: its '# columns' line names {twice[0]!r} twice")
    return facts, columns


def _with_decimal_points(cells: list[str], at: Mapping[str, int], where: str) -> list[str]:
    """The cells of a row whose delimiter is no comma, with decimal points where x, y and z have decimal commas. Raises
    InputError where both occur."""
    places = [at[a] for a in "xyz" if at[a] < len(cells)]
    text = " ".join(cells[i] for i in places)
    if "," in text and "." in text:
        raise InputError(f"{where}: {text[:80]!r} has decimal commas and points; write one of them")
    return [c.replace(",", ".") if i in places else c for i, c in enumerate(cells)]


class _Joined(list[str]):
    """Cells of a row whose description was put together again."""


def _mended(cells: list[str], columns: Sequence[str], where: str) -> list[str]:
    """The cells of a row without blank ones that Excel added, and with the commas of an unquoted description. Raises
    InputError where it is not clear what the surplus cells are."""
    count = len(columns)
    surplus = cells[count:]
    if not surplus or (surplus[0].strip() in ("0", "1", "2", "3") and _numbers(surplus[1:])):
        return cells
    node = cells[count - 1].strip() if columns[-1] == NODE else ""
    if not any(c.strip() for c in surplus) and (not node or node.startswith(NODES)):
        return cells[:count]
    if list(columns[-2:]) != ["desc", NODE]:
        raise InputError(f"{where}: has {len(cells)} cells for {count} columns; quote text with commas")
    state = cells[-2:] if len(cells) > count + 2 and re.fullmatch("[0-3]", cells[-2].strip()) else []
    body = cells[: len(cells) - len(state)]
    while len(body) > count - 1 and not body[-1].strip():
        body = body[:-1]  # no node, or what Excel added
    node = body.pop() if body[-1].strip().startswith(NODES) else ""
    return _Joined([*body[: count - 2], ",".join(body[count - 2 :]), node, *state])


def _numbers(cells: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\s*(-?\d+(\.\d*)?)?\s*", c) for c in cells)


def _row(cells: Sequence[str], at: Mapping[str, int], where: str) -> _Row:
    """A row whose columns stand ``at`` these places."""
    try:
        label, given = cells[at["label"]], (cells[at["x"]], cells[at["y"]], cells[at["z"]])
    except IndexError:
        raise InputError(f"{where}: has {len(cells)} cells, {len(at)} columns are announced") from None
    desc = at.get("desc", len(cells))
    text = cells[desc] if desc < len(cells) else ""
    state = (cells[len(at)].strip() if len(cells) > len(at) else "") or PLACED
    if state != PLACED:
        status = Status.ABSENT if state == MISSING or says_absent(text) else Status.UNANNOTATED
        return _Row(label, NOWHERE, status, *without_confidence(without_absent(text, status)))
    try:
        point = tuple(map(float, given))
    except ValueError:
        point = NOWHERE
    if not all(map(math.isfinite, point)):
        raise InputError(f"{where}: position {', '.join(given)[:80]!r} is not 3 numbers")
    return _Row(label, point, Status.DEFINED, *without_confidence(text))


def write_fcsv(landmarks: Landmarks, path: Where) -> None:
    """Write an .fcsv (LPS, mm; 2D with z = 0 and a comment that says so). Landmarks that came from an .fcsv keep its
    header, frame and cells; a position changes only where the point moved. Not defined: status cell 0. Score and radius
    stand at the end of the description."""
    old: _Fcsv = landmarks.meta.get("fcsv") or NEW_FCSV
    out = io.StringIO(newline="")
    marked = any("dimension = 2" in line for line in old.header)
    header = [*old.header, *(["# dimension = 2"] if landmarks.ndim == 2 and not marked else [])]
    out.write("".join(f"{line}\n" for line in header))
    writer = csv.writer(Lines(out), lineterminator=Lines.END)
    points = np.hstack([landmarks.points, np.zeros((len(landmarks), 3 - landmarks.ndim))])
    texts = with_confidence(landmarks)
    for i, name in enumerate(landmarks.names):
        point = points[i] if old.lps else swap_lps_ras(points[i])
        writer.writerow(_updated(_cells(old, name, i), old.columns, point, landmarks, i, texts[i]))
    write_text(path, out.getvalue())


def _cells(old: _Fcsv, name: str, i: int) -> list[str]:
    if name in old.rows:
        return list(old.rows[name])
    fresh = {"id": str(i + 1), "label": name, "ow": "1", "vis": "1", "sel": "1", "desc": "", "associatedNodeID": ""}
    fresh |= dict.fromkeys("xyz", "nan")  # a reader that knows no status must not take (0, 0, 0) for a place
    return [fresh.get(c, "0") for c in old.columns] + ["0", "0"]


def _updated(
    cells: list[str], columns: Sequence[str], point: Array, landmarks: Landmarks, i: int, text: str
) -> list[str]:
    at = {c: i for i, c in enumerate(columns)}
    status, was = landmarks.status[i], _row(cells, at, "fcsv")
    if was.status is not status:
        own = cells[: len(columns)] + [""] * (len(columns) - len(cells))
        cells = [*own, PLACED if status is Status.DEFINED else "0", *(cells[len(columns) + 1 :] or ["0"])]
    if not np.array_equal(was.point, point, equal_nan=True):
        for axis, value in zip("xyz", point, strict=True):
            cells[at[axis]] = repr(float(value))
    same = was.status is status and says_the_same((was.text, was.score, was.radius), landmarks, i)
    if not same and "desc" in at:
        cells[at["desc"]] = with_absent(text, status)
    return cells
