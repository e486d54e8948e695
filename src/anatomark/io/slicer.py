"""Point lists of 3D Slicer, ``.mrk.json`` (or ``.json``), both ways, with every field kept on a round trip."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError, listed
from anatomark.io.atomic import Where, read_json, write_json
from anatomark.io.confidence import confidence, known, with_confidence, without_confidence
from anatomark.io.frames import MM_PER, agree, agreed_frame, check_position, parse_unit, swap_lps_ras
from anatomark.io.names import clean_name, named

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
ABSENT = "absent"  # Slicer knows no such state: an undefined point's description says it
SYSTEMS = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}

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


def read_mrk(
    path: Where,
    frame: str | None = None,
    unit: str | None = None,
    label_from: str = "label",
    chosen: str | None = None,
) -> Landmarks:
    """Read a markups file. Frame and unit are the file's (``coordinateSystem``, ``coordinateUnits``; the format's unit
    is mm where it says none); ``frame`` and ``unit`` are for files that state none. Of several lists the one that is
    ``chosen`` by its name or number is read, else the only one of points. A point that is ``preview`` and has a
    position is defined. ``label_from`` as in ``read_landmarks``.

    Score and radius at a description's end (:mod:`anatomark.io.confidence`) are read as such. The whole document stays
    in ``meta["mrk.json"]``; ``meta["notes"]`` are remarks. Files that we wrote for 2D come back 2D. Raises InputError.
    """
    document = read_json(path)
    at, notes = _chosen(document, path, chosen)
    markup = document["markups"][at]
    scale, lps = _units(markup, path, frame, unit)
    controls = [_control(c, i, path) for i, c in enumerate(markup["controlPoints"])]
    points, status, texts = [], [], []
    for label, control in controls:
        one = _state(control, path)
        where = f"{path}: control point {label!r}"
        point = check_position(control.get("position"), 3, where) if one is Status.DEFINED else np.full(3, np.nan)
        points.append(point * scale if lps else swap_lps_ras(point) * scale)
        status.append(one)
        texts.append(_description(control, one))
    labels, rows = [label for label, _ in controls], [f"control point {i + 1}" for i in range(len(controls))]
    names, descriptions, remarks = named(labels, [text for text, _, _ in texts], label_from, path, rows)
    preview = [n for n, (_, c), s in zip(names, controls, status, strict=True) if s is Status.DEFINED and _preview(c)]
    if preview:
        notes.append(f"{path}: positionStatus of {listed(preview)} is 'preview'; the positions are taken as they stand")
    flat = 2 if _ours(document).get("dimension") == 2 else 3
    kept = {"mrk.json": document, "mrk.list": at} if label_from == "label" else {}
    return Landmarks(
        tuple(names),
        np.array(points).reshape(-1, 3)[:, :flat],
        tuple(status),
        score=known([score for _, score, _ in texts]),
        radius90=known([radius for _, _, radius in texts]),
        descriptions=tuple(descriptions),
        meta={
            "path": str(path), "frame": "LPS" if lps else "RAS", "unit": "mm", "notes": tuple(notes),
            "name_notes": tuple(remarks), **kept,
        },
    )  # fmt: skip


def write_mrk(landmarks: Landmarks, path: Where) -> None:
    """Write a markups file (LPS, mm; 2D with z = 0 and a mark that says so). Score and radius stand at the end of the
    description.

    Landmarks that came from such a file keep its document: frame, unit, ids, display and unknown fields; a position
    changes only where the point moved. Landmarks that are not defined have ``positionStatus`` ``undefined`` and no
    position; an absent one's description starts with ``absent``.
    """
    write_json(path, mrk_document(landmarks, path))


def mrk_document(landmarks: Landmarks, path: Where) -> dict[str, Any]:
    """What :func:`write_mrk` writes into ``path``."""
    document = copy.deepcopy(landmarks.meta.get("mrk.json") or NEW_DOCUMENT)
    markup = document["markups"][landmarks.meta.get("mrk.list", 0)]
    scale, lps = _units(markup, path, None, None)
    before = {clean_name(str(c["label"])): c for c in markup["controlPoints"]}
    if landmarks.ndim == 2:
        document["anatomark"] = {**_ours(document), "dimension": 2}
    points = np.hstack([landmarks.points, np.zeros((len(landmarks), 3 - landmarks.ndim))])
    controls = []
    for i, (name, text) in enumerate(zip(landmarks.names, with_confidence(landmarks), strict=True)):
        control = before.get(name) or {"id": str(i + 1), "label": name, **copy.deepcopy(NEW_CONTROL)}
        state = landmarks.status[i]
        was = _state(control, path)
        same = was is state and says_the_same(_description(control, was), landmarks, i)
        if was is not state or state is Status.DEFINED:
            _place(control, points[i] if state is Status.DEFINED else None, scale, lps)
        if not same:
            control["description"] = with_absent(text, state)
        controls.append(control)
    markup["controlPoints"] = controls
    if "mrk.json" not in landmarks.meta:
        markup["lastUsedControlPointNumber"] = len(controls)
    return document


def says_the_same(old: tuple[str, float, float], landmarks: Landmarks, i: int) -> bool:
    """Whether a description in a file, as read, is that of landmark ``i``, with its score and radius."""
    text, score, radius = old
    was = Landmarks(("x",), np.zeros((1, landmarks.ndim)), score=known([score]), radius90=known([radius]))
    return text == landmarks.descriptions[i] and confidence(was, 0) == confidence(landmarks, i)


def is_markups(document: Any) -> bool:
    """Whether a JSON document is of Slicer's kind."""
    return isinstance(document, dict) and isinstance(document.get("markups"), list)


def _ours(document: Mapping[str, Any]) -> Mapping[str, Any]:
    value = document.get("anatomark")
    return value if isinstance(value, dict) else {}


def list_alone(landmarks: Landmarks) -> Landmarks:
    """The same without the other lists of their markups file."""
    meta = dict(landmarks.meta)
    if document := meta.get("mrk.json"):
        meta |= {"mrk.json": {**document, "markups": [document["markups"][meta["mrk.list"]]]}, "mrk.list": 0}
    return replace(landmarks, meta=meta)


def _chosen(document: Any, path: Any, name: str | None) -> tuple[int, list[str]]:
    """Which list of a document is read, and remarks: the one of this name (or number, from 1 on, where none is called
    so); without a name the only one, or the only one of points that has any."""
    lists = document["markups"] if is_markups(document) else None
    if lists is None or not all(isinstance(m, dict) for m in lists):
        raise InputError(f"{path}: is not a 3D Slicer markups file (it has no list 'markups')")
    own = range(len(lists))
    names = [str(m.get("name") or m.get("type"))[:40] for m in lists]
    if name is not None:
        wanted = [i for i in own if lists[i].get("name") == name] or [i for i in own if str(i + 1) == name]
    else:
        fiducial = [i for i in own if len(lists) == 1 or str(lists[i].get("type")).lower() == "fiducial"]
        wanted = [i for i in fiducial if lists[i].get("controlPoints")] or fiducial[:1]
    if len(wanted) != 1 or not isinstance(lists[wanted[0]].get("controlPoints"), list):
        raise InputError(_which(path, lists, names, name))
    others = [str(m.get("type"))[:40] for i, m in enumerate(lists) if i != wanted[0] and name is None]
    return wanted[0], [f"{path}: the list of points is read; beside it stand: {listed(others)}"] if others else []


def _which(path: Any, lists: Sequence[Mapping[str, Any]], names: Sequence[str], name: str | None) -> str:
    """The line that says which lists there are, and how one is chosen."""
    kinds = f" ({listed(names)})" if len(lists) > 1 else ""
    holds = f"{path}: holds {len(lists)} markups lists{kinds}"
    good = next((i for i, m in enumerate(lists) if isinstance(m.get("controlPoints"), list) and len(lists) > 1), None)
    if name is not None:
        return f"{holds}; none that has control points, or more than one, is called {name[:40]!r}"
    if good is None:
        return f"{holds}; exactly one, with control points, is needed"
    twice = names.count(names[good]) > 1 or not lists[good].get("name")
    return f"{holds}; choose one by its name or number, such as {path}#{good + 1 if twice else names[good]}"


def _units(markup: Mapping[str, Any], path: Any, frame: str | None, unit: str | None) -> tuple[float, bool]:
    """mm per the unit of a markups list, and whether it is in LPS."""
    system = markup.get("coordinateSystem")
    if not isinstance(system, str | int | None) or isinstance(system, bool):
        raise InputError(f"{path}: coordinateSystem {str(system)[:40]} is not known; it is LPS or RAS")
    stated = None if system is None or system == "" else SYSTEMS.get(str(system).strip().upper(), str(system))
    frame = agreed_frame(stated, frame, str(path))
    if frame == "image":
        raise InputError(f"{path}: frame image in a markups file; it must be LPS or RAS")
    units = markup.get("coordinateUnits")
    listing = units if isinstance(units, list) else [units]
    if listing[1:2] == ["UCUM"]:  # a coded entry: value, scheme, meaning
        listing = listing[:1]
    if len({str(u) for u in listing}) > 1:
        raise InputError(f"{path}: its axes have different units, {listed([str(u)[:20] for u in listing])}")
    own = None if not listing or listing[0] in (None, "") else parse_unit(str(listing[0]))
    text = agree(own, parse_unit(unit) if unit else None if own else "mm", "unit", str(path))
    if text not in MM_PER:
        raise InputError(f"{path}: unit {text[:40]!r} is not known; it is one of {', '.join(MM_PER)}")
    return MM_PER[text], frame == "LPS"


def _control(control: Any, i: int, path: Any) -> tuple[str, dict[str, Any]]:
    """A control point's label (blank where the names may stand in the descriptions), and itself."""
    label = control.get("label") if isinstance(control, dict) else None
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise InputError(f"{path}: control point {i + 1} has no label")
    return str(label), control


def _description(control: Mapping[str, Any], status: Status) -> tuple[str, float, float]:
    """Text, score and radius90 of a control point."""
    text = control.get("description")
    return without_confidence(without_absent(text if isinstance(text, str) else "", status))


def _preview(control: Mapping[str, Any]) -> bool:
    return control.get("positionStatus") == "preview"


def _state(control: Mapping[str, Any], path: Any) -> Status:
    placed = control.get("position") is not None
    text = control.get("positionStatus", "defined" if placed else "undefined")
    if text == "defined" or (text == "preview" and placed):
        return Status.DEFINED
    if text not in ("undefined", "preview", "missing"):
        label = control.get("label")
        raise InputError(f"{path}: control point {label!r}: positionStatus {str(text)[:40]!r} is not known")
    return Status.ABSENT if text == "missing" or says_absent(control.get("description")) else Status.UNANNOTATED


def says_absent(description: Any) -> bool:
    """Whether a description is that of a point which is known not to be in the image."""
    return isinstance(description, str) and re.match(rf"{ABSENT}(: |\Z)", description) is not None


def without_absent(description: str, status: Status) -> str:
    """A description without the word that says ``absent``."""
    return re.sub(rf"\A{ABSENT}(: |\Z)", "", description) if status is Status.ABSENT else description


def with_absent(description: str, status: Status) -> str:
    """The inverse of :func:`without_absent`."""
    return (f"{ABSENT}: {description}" if description else ABSENT) if status is Status.ABSENT else description


def _place(control: dict[str, Any], point: Array | None, scale: float, lps: bool) -> None:
    """Set or remove a control point's position; one that means the same place is left as it is, digit by digit."""
    if point is None:
        control.pop("position", None)
        control["positionStatus"] = "undefined"
        return
    old = control.get("position")
    if isinstance(old, list) and len(old) == 3 and all(isinstance(v, int | float) for v in old):
        here = np.array(old, dtype=np.float64)
        if np.array_equal((here if lps else swap_lps_ras(here)) * scale, point):
            return
    control["position"] = ((point if lps else swap_lps_ras(point)) / scale).tolist()
    control["positionStatus"] = "defined"
