"""Landmark files of 3D Slicer: ``.mrk.json`` and ``.fcsv``, both ways, with every field kept on a round trip."""

from __future__ import annotations

import copy
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.atomic import Where, read_json, read_text, write_json, write_text
from anatomark.io.frames import agree, agreed_frame, check_position, swap_lps_ras

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
MM_PER = {"mm": 1.0, "um": 1e-3, "cm": 10.0, "m": 1000.0}
ABSENT = "absent"  # Slicer knows no such state: an undefined point's description says it
FCSV_COLUMNS = ["id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc", "associatedNodeID"]
FCSV_FRAMES = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}


NEW_DOCUMENT: dict[str, Any] = {
    "@schema": SCHEMA,
    "markups": [{
        "type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "locked": False,
        "fixedNumberOfControlPoints": False, "labelFormat": "%N-%d", "lastUsedControlPointNumber": 0,
        "controlPoints": [],
    }],
}  # fmt: skip
NEW_CONTROL: dict[str, Any] = {
    "description": "", "associatedNodeID": "", "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0],
    "selected": True, "locked": False, "visibility": True, "positionStatus": "undefined",
}  # fmt: skip


def read_mrk(path: Where, frame: str | None = None, unit: str | None = None) -> Landmarks:
    """Read a markups file. Frame and unit are the file's (``coordinateSystem``, ``coordinateUnits``; the format's unit
    is mm where it says none); ``frame`` and ``unit`` are for files that state none. The whole document stays in
    ``meta["mrk.json"]``. Files that we wrote for 2D come back 2D. Raises InputError."""
    document = read_json(path)
    markup, scale, lps = _markup(document, path, frame, unit)
    points, status, descriptions = [], [], []
    for i, control in enumerate(markup["controlPoints"]):
        if not isinstance(control, dict) or "label" not in control:
            raise InputError(f"{path}: control point {i + 1} has no label")
        one = _state(control, path)
        where = f"{path}: control point {control['label']!r}"
        point = check_position(control.get("position"), 3, where) if one is Status.DEFINED else np.full(3, np.nan)
        points.append(point * scale if lps else swap_lps_ras(point) * scale)
        status.append(one)
        descriptions.append(_without_absent(str(control.get("description", "")), one))
    ndim = 2 if document.get("anatomark", {}).get("dimension") == 2 else 3
    return Landmarks(
        tuple(str(c["label"]) for c in markup["controlPoints"]),
        np.array(points).reshape(-1, 3)[:, :ndim],
        tuple(status),
        descriptions=tuple(descriptions),
        meta={"path": str(path), "frame": "LPS" if lps else "RAS", "unit": "mm", "mrk.json": document},
    )


def write_mrk(landmarks: Landmarks, path: Where) -> None:
    """Write a markups file (LPS, mm; 2D with z = 0 and a mark that says so).

    Landmarks that came from such a file keep its document: frame, unit, ids, display and unknown fields; a position
    changes only where the point moved. Landmarks that are not defined have ``positionStatus`` ``undefined`` and no
    position; an absent one's description starts with ``absent``.
    """
    document = copy.deepcopy(landmarks.meta.get("mrk.json") or NEW_DOCUMENT)
    markup, scale, lps = _markup(document, path, None, None)
    before = {str(c["label"]): c for c in markup["controlPoints"]}
    if landmarks.ndim == 2:
        document["anatomark"] = {**document.get("anatomark", {}), "dimension": 2}
    points = np.hstack([landmarks.points, np.zeros((len(landmarks), 3 - landmarks.ndim))])
    controls = []
    for i, name in enumerate(landmarks.names):
        control = before.get(name) or {"id": str(i + 1), "label": name, **copy.deepcopy(NEW_CONTROL)}
        state, description = landmarks.status[i], landmarks.descriptions[i]
        if _state(control, path) is not state or state is Status.DEFINED:
            _place(control, points[i] if state is Status.DEFINED else None, scale, lps)
        was = _state(control, path)
        if was is not state or _without_absent(str(control.get("description", "")), was) != description:
            control["description"] = _with_absent(description, state)
        controls.append(control)
    markup["controlPoints"] = controls
    if "mrk.json" not in landmarks.meta:
        markup["lastUsedControlPointNumber"] = len(controls)
    write_json(path, document)


def _markup(document: Any, path: Any, frame: str | None, unit: str | None) -> tuple[dict[str, Any], float, bool]:
    """The one markups list of a document, mm per its unit, and whether it is in LPS."""
    lists = document.get("markups") if isinstance(document, dict) else None
    if not isinstance(lists, list) or not all(isinstance(m, dict) for m in lists):
        raise InputError(f"{path}: is not a 3D Slicer markups file (it has no list 'markups')")
    if len(lists) != 1 or not isinstance(lists[0].get("controlPoints"), list):
        raise InputError(f"{path}: holds {len(lists)} markups lists; exactly one, with control points, is needed")
    markup = lists[0]
    frame = agreed_frame(markup.get("coordinateSystem") or None, frame, str(path))
    if frame == "image":
        raise InputError(f"{path}: frame image in a markups file; it must be LPS or RAS")
    units = markup.get("coordinateUnits")
    units = units[0] if isinstance(units, list) and units else units
    units = agree(units, unit or (None if units else "mm"), "unit", str(path))
    if units not in MM_PER:
        raise InputError(f"{path}: unit {units!r} is not known; it is one of {', '.join(MM_PER)}")
    return markup, MM_PER[units], frame == "LPS"


def _state(control: Mapping[str, Any], path: Any) -> Status:
    text = control.get("positionStatus", "defined" if "position" in control else "undefined")
    if text == "defined":
        return Status.DEFINED
    if text not in ("undefined", "preview", "missing"):
        raise InputError(f"{path}: control point {control.get('label')!r}: positionStatus {text!r} is not known")
    marked = re.match(rf"{ABSENT}(: |$)", str(control.get("description", "")))
    return Status.ABSENT if marked or text == "missing" else Status.UNANNOTATED


def _without_absent(description: str, status: Status) -> str:
    return re.sub(rf"^{ABSENT}(: |$)", "", description) if status is Status.ABSENT else description


def _with_absent(description: str, status: Status) -> str:
    return (f"{ABSENT}: {description}" if description else ABSENT) if status is Status.ABSENT else description


def _place(control: dict[str, Any], point: Array | None, scale: float, lps: bool) -> None:
    """Set or remove a control point's position; one that means the same place is left as it is, digit by digit."""
    if point is None:
        control.pop("position", None)
        control["positionStatus"] = "undefined"
        return
    old = control.get("position")
    if old is not None and len(old) == 3:
        here = np.array(old, dtype=np.float64)
        if np.array_equal((here if lps else swap_lps_ras(here)) * scale, point):
            return
    control["position"] = ((point if lps else swap_lps_ras(point)) / scale).tolist()
    control["positionStatus"] = "defined"


@dataclass(frozen=True)
class _Fcsv:
    """An .fcsv as it was: comment lines, column names, and the cells of each label's row."""

    header: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]
    lps: bool


HEADER = ("# Markups fiducial file version = 5.0", "# CoordinateSystem = LPS", f"# columns = {','.join(FCSV_COLUMNS)}")
NEW_FCSV = _Fcsv(HEADER, tuple(FCSV_COLUMNS), {}, True)


def read_fcsv(path: Where, frame: str | None = None) -> Landmarks:
    """Read an .fcsv: ``CoordinateSystem`` 0 or RAS, 1 or LPS (``frame`` is for files that state none), columns as the
    ``# columns`` line says. A 15th cell is the position's status (2 = defined). ``label`` is the name, ``desc`` the
    description; all cells are kept in ``meta["fcsv"]``. Raises InputError, naming the row."""
    path = Path(path)
    lines = read_text(path).splitlines()
    header = [line for line in lines if line.startswith("#")]
    facts = {m[1].lower(): m[2].strip() for line in header if (m := re.match(r"#\s*(\w+)\s*=\s*(.*)", line))}
    columns = [c.strip() for c in facts.get("columns", ",".join(FCSV_COLUMNS)).split(",")]
    if missing := [c for c in ("x", "y", "z", "label") if c not in columns]:
        raise InputError(f"{path}: its '# columns' line has no {missing[0]!r}")
    system = facts.get("coordinatesystem")
    if system is not None and system.upper() not in FCSV_FRAMES:
        raise InputError(f"{path}: CoordinateSystem = {system} is not known; it is 0 or RAS, 1 or LPS")
    frame = agreed_frame(FCSV_FRAMES[system.upper()] if system else None, frame, str(path))
    rows: dict[str, list[str]] = {}
    parsed = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = next(csv.reader([line]))
        label, *_ = row = _fcsv_row(cells, columns, f"{path}: row {number}")
        if label in rows:
            raise InputError(f"{path}: row {number}: label {label!r} appears more than once")
        rows[label] = cells
        parsed.append(row)
    if not rows:
        raise InputError(f"{path}: holds no landmarks")
    points = np.array([point for _, point, _, _ in parsed])
    dimension = 2 if facts.get("dimension") == "2" else 3
    return Landmarks(
        tuple(rows),
        (swap_lps_ras(points) if frame == "RAS" else points)[:, :dimension],
        tuple(status for _, _, status, _ in parsed),
        descriptions=tuple(text for *_, text in parsed),
        meta={
            "path": str(path), "frame": frame, "unit": "mm",
            "fcsv": _Fcsv(tuple(header), tuple(columns), rows, frame == "LPS"),
        },
    )  # fmt: skip


def _fcsv_row(cells: Sequence[str], columns: Sequence[str], where: str) -> tuple[str, Array, Status, str]:
    at = {c: i for i, c in enumerate(columns)}
    if len(cells) <= max(at[c] for c in ("x", "y", "z", "label")):
        raise InputError(f"{where}: has {len(cells)} cells, {len(columns)} columns are announced")
    label, desc = cells[at["label"]].strip(), at.get("desc", len(cells))
    text = cells[desc] if desc < len(cells) else ""
    state = cells[len(columns)].strip() if len(cells) > len(columns) else "2"
    if not label:
        raise InputError(f"{where}: the label is blank")
    if state != "2":
        status = Status.ABSENT if state == "3" or re.match(rf"{ABSENT}(: |$)", text) else Status.UNANNOTATED
        return label, np.full(3, np.nan), status, _without_absent(text, status)
    try:
        point = [float(cells[at[a]]) for a in "xyz"]
    except ValueError:
        point = []
    return label, check_position(point or [cells[at[a]] for a in "xyz"], 3, where), Status.DEFINED, text


def write_fcsv(landmarks: Landmarks, path: Where) -> None:
    """Write an .fcsv (LPS, mm; 2D with z = 0 and a comment that says so). Landmarks that came from an .fcsv keep its
    header, frame and cells; a position changes only where the point moved. Not defined: status cell 0."""
    old: _Fcsv = landmarks.meta.get("fcsv") or NEW_FCSV
    out = io.StringIO(newline="")
    marked = any("dimension = 2" in line for line in old.header)
    header = [*old.header, *(["# dimension = 2"] if landmarks.ndim == 2 and not marked else [])]
    out.write("".join(f"{line}\n" for line in header))
    writer = csv.writer(out, lineterminator="\n")
    points = np.hstack([landmarks.points, np.zeros((len(landmarks), 3 - landmarks.ndim))])
    for i, name in enumerate(landmarks.names):
        cells = _fcsv_cells(old, name, i)
        point = points[i] if old.lps else swap_lps_ras(points[i])
        writer.writerow(_fcsv_updated(cells, old.columns, point, landmarks.status[i], landmarks.descriptions[i]))
    write_text(path, out.getvalue())


def _fcsv_cells(old: _Fcsv, name: str, i: int) -> list[str]:
    if name in old.rows:
        return list(old.rows[name])
    fresh = {"id": str(i + 1), "label": name, "ow": "1", "vis": "1", "sel": "1", "desc": "", "associatedNodeID": ""}
    fresh |= dict.fromkeys("xyz", "nan")  # a reader that knows no status must not take (0, 0, 0) for a place
    return [fresh.get(c, "0") for c in old.columns] + ["0", "0"]


def _fcsv_updated(
    cells: list[str], columns: Sequence[str], point: Array, status: Status, description: str
) -> list[str]:
    at = {c: i for i, c in enumerate(columns)}
    _, before, was, text = _fcsv_row(cells, columns, "fcsv")
    if was is not status:
        own = cells[: len(columns)] + [""] * (len(columns) - len(cells))
        cells = [*own, "2" if status is Status.DEFINED else "0", *(cells[len(columns) + 1 :] or ["0"])]
    if not np.array_equal(before, point, equal_nan=True):
        for axis, value in zip("xyz", point, strict=True):
            cells[at[axis]] = repr(float(value))
    if (text != description or was is not status) and "desc" in at:
        cells[at["desc"]] = _with_absent(description, status)
    return cells
