"""How far a predicted scan plane lies from the true one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anatomark.core.landmarks import Landmarks
from anatomark.tools.planes.geometry import Plane, find_planes
from anatomark.tools.planes.schema import PlaneSet


def plane_error(predicted: Plane, truth: Plane) -> dict[str, float]:
    """Angle and offset between two planes in one world (LPS mm). Only the predicted plane's place counts, not its
    rectangle: sliding or turning the slice within its plane is no error.

    ``angle_deg``: between the normals, whichever way they point, 0 to 90. ``offset_mm``: distance of the true
    rectangle's middle from the predicted plane. ``mean_mm``: the same, averaged over the true rectangle, so that it
    holds the tilt as well.
    """
    sine = float(np.linalg.norm(np.cross(predicted.normal, truth.normal)))
    angle = float(np.degrees(np.arctan2(sine, abs(predicted.normal @ truth.normal))))
    u, v = (np.linspace(-0.5, 0.5, 41) * size for size in truth.size_mm)
    lattice = truth.origin + u[:, None, None] * truth.right + v[None, :, None] * truth.up
    offset, mean = abs(float(predicted.distance(truth.origin))), float(np.abs(predicted.distance(lattice)).mean())
    return {"angle_deg": angle, "offset_mm": offset, "mean_mm": mean}


def plane_rows(
    definition: PlaneSet, truth: Mapping[str, Landmarks], predicted: Mapping[str, Landmarks | None]
) -> list[dict[str, Any]]:
    """One row per case and plane: errors (None where one of both planes is not defined) and ``reason``.

    ``state``: ``measured``; ``undefined``, a failure: the truth defines this plane and the prediction does not;
    ``no truth``: it is left out of the summary. Raises InputError for 2D landmarks.
    """
    rows = []
    for case, landmarks in truth.items():
        true, given = find_planes(definition, landmarks), predicted.get(case)
        planes = dict.fromkeys(true, "no prediction") if given is None else find_planes(definition, given)
        rows += [{"case": case, "plane": name, **_row(planes[name], true[name])} for name in true]
    return rows


def plane_summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per plane of :func:`plane_rows`: how many are measured and undefined, median and 95th percentile of
    angle, offset and mean distance over the measured ones (None where there is none)."""
    out = []
    for name in dict.fromkeys(row["plane"] for row in rows):
        own = [row for row in rows if row["plane"] == name]
        measured = [row for row in own if row["state"] == "measured"]
        line: dict[str, Any] = {
            "plane": name,
            "measured": len(measured),
            "undefined": sum(row["state"] == "undefined" for row in own),
        }
        for key, unit in (("angle", "deg"), ("offset", "mm"), ("mean", "mm")):
            values = [row[f"{key}_{unit}"] for row in measured]
            line[f"{key}_median_{unit}"] = float(np.median(values)) if values else None
            line[f"{key}_p95_{unit}"] = float(np.percentile(values, 95)) if values else None
        out.append(line)
    return out


def plane_lines(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """:func:`plane_summary` as text, one line per plane."""
    lines = []
    for row in summary:
        text = f"plane {row['plane']}: not measured"
        if row["measured"]:
            text = (
                "plane {plane}: median {angle_median_deg:.2f} degrees and {offset_median_mm:.2f} mm off, "
                "95th percentile {angle_p95_deg:.2f} and {offset_p95_mm:.2f}, {measured} cases"
            ).format(**row)
        lines.append(text + (f", {row['undefined']} undefined" if row["undefined"] else ""))
    return lines


def _row(predicted: Plane | str, truth: Plane | str) -> dict[str, Any]:
    if isinstance(truth, str) or isinstance(predicted, str):
        state, reason = ("no truth", truth) if isinstance(truth, str) else ("undefined", predicted)
        return {"state": state, "angle_deg": None, "offset_mm": None, "mean_mm": None, "reason": reason}
    return {"state": "measured", **plane_error(predicted, truth), "reason": ""}
