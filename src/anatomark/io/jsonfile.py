"""Our own JSON of one image's landmarks, with score, covariance and radius where known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.atomic import Where, read_json, write_json
from anatomark.io.frames import agree, agreed_frame, check_kind, check_position, check_status, parse_unit, swap_lps_ras
from anatomark.io.names import clean_name


def landmarks_to_dict(landmarks: Landmarks) -> dict[str, Any]:
    """Landmarks as JSON-ready ``{"frame", "unit": "mm", "landmarks": [{"label", "status", "position", ...}]}``;
    ``position`` is null where not defined; score, covariance (mm^2) and radius90 (mm) where known."""

    def stated(values: Array | None, i: int) -> Any:
        return None if values is None or not np.isfinite(values[i]).all() else values[i].tolist()

    entries = []
    for i, name in enumerate(landmarks.names):
        entry = {
            "label": name,
            "status": str(landmarks.status[i]),
            "position": stated(landmarks.points, i),
            "description": landmarks.descriptions[i] or None,
            "score": stated(landmarks.score, i),
            "covariance": stated(landmarks.covariance, i),
            "radius90": stated(landmarks.radius90, i),
        }
        entries.append({k: v for k, v in entry.items() if v is not None or k == "position"})
    frame = "LPS" if landmarks.ndim == 3 else "image"
    return {"frame": frame, "unit": "mm", "dimension": landmarks.ndim, "landmarks": entries}


def write_json_landmarks(landmarks: Landmarks, path: Where, extra: Mapping[str, Any] | None = None) -> None:
    """Write our JSON; ``extra`` are further top-level facts (model hash, case, ...), put first."""
    write_json(path, {"schema": 1, **(extra or landmarks.meta.get("json", {})), **landmarks_to_dict(landmarks)})


def read_json_landmarks(path: Where, frame: str | None = None, unit: str | None = None) -> Landmarks:
    """Read our JSON; positions as in :class:`Table` (``meta["unit"]`` tells mm from px); further top-level facts stay
    in ``meta["json"]``. Raises InputError."""
    document = read_json(path)
    entries = document.get("landmarks") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "label" in e for e in entries):
        others = "nor is it a file of 3D Slicer, COCO keypoints, labelme, CL-Detection or Aariz"
        raise InputError(f'{path}: has no list "landmarks" of {{"label": ..., "position": [...]}} entries, {others}')
    labels = [_label(e["label"], i, path) for i, e in enumerate(entries)]
    frame = agreed_frame(str(document["frame"])[:40] if "frame" in document else None, frame, str(path))
    stated = document.get("unit")
    unit = agree(parse_unit(str(stated)) if stated else None, parse_unit(unit) if unit else None, "unit", str(path))
    ndim = 2 if frame == "image" else 3
    check_kind(frame, unit, ndim, str(path))
    points, status = np.full((len(entries), ndim), np.nan), []
    for i, entry in enumerate(entries):
        where, position = f"{path}: landmark {labels[i]!r}", entry.get("position")
        if position is not None:
            points[i] = check_position(position, ndim, where)
        status.append(check_status(str(entry.get("status") or ""), position is not None, where))
    signs = swap_lps_ras(np.ones(3)) if frame == "RAS" else np.ones(ndim)
    covariance = _stacked(entries, "covariance", (ndim, ndim), path)
    return Landmarks(
        tuple(labels),
        points * signs,
        tuple(status),
        score=_stacked(entries, "score", (), path),
        covariance=None if covariance is None else covariance * np.outer(signs, signs),
        radius90=_stacked(entries, "radius90", (), path),
        descriptions=tuple(str(e.get("description") or "") for e in entries),
        meta={
            "path": str(path), "frame": frame, "unit": unit,
            "json": {k: v for k, v in document.items() if k not in ("frame", "unit", "dimension", "landmarks")},
        },
    )  # fmt: skip


def _label(label: Any, i: int, path: Any) -> str:
    name = clean_name(str(label)) if isinstance(label, str | int) and not isinstance(label, bool) else ""
    if not name:
        raise InputError(f"{path}: landmark {i + 1} has no label")
    return name


def _stacked(entries: Sequence[Mapping[str, Any]], key: str, shape: tuple[int, ...], path: Any) -> Array | None:
    if not any(e.get(key) is not None for e in entries):
        return None
    try:
        values = [np.broadcast_to(np.array(e.get(key, np.nan), dtype=np.float64), shape) for e in entries]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: some {key} is not {' x '.join(map(str, shape)) or '1'} numbers") from None
    return np.array(values)
