"""2D tables that hold mm and pixels: a row whose two are not the same place was corrected in one of them alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anatomark.core.grid import Array
from anatomark.errors import InputError

COLUMNS = ("x_mm", "x_px", "y_mm", "y_px")
SAME, OTHER = 0.1, 0.5  # pixels off the line of most rows: up to the first on it, beyond the second elsewhere
MOST_PAIRS = 60  # of rows that tell the step


def check_both_units(rows: Sequence[tuple[int, Mapping[str, str]]], path: Path) -> None:
    """Raise InputError where, in the rows (number, cells) of one image, mm and pixels along an axis go together as
    those of most rows do, but for some. Fewer than three rows, or an image whose axes are turned, say nothing."""
    if len(rows) < 3 or not set(COLUMNS) <= set(rows[0][1]):
        return
    for axis in "xy":
        mm, pixels = (np.array([_number(cells[f"{axis}_{u}"]) for _, cells in rows]) for u in ("mm", "px"))
        if (odd := _odd_one(mm, pixels)) is not None:
            where = f"{path}: row {rows[odd][0]}: {axis}_mm {mm[odd]:g} and {axis}_px {pixels[odd]:g}"
            raise InputError(f"{where} are not the same place; correct both, or delete the columns that do not count")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _odd_one(mm: Array, pixels: Array) -> int | None:
    """The index of the row that is farthest off the line through most; None where none is, or most are."""
    known = np.flatnonzero(np.isfinite(mm) & np.isfinite(pixels))
    a, b = mm[known], pixels[known]
    i, j = np.triu_indices(min(len(known), MOST_PAIRS), 1)
    apart = np.abs(b[i] - b[j]) > 1
    if len(known) < 3 or not apart.any():
        return None
    step = float(np.median((a[i] - a[j])[apart] / (b[i] - b[j])[apart]))
    off = np.abs(a - step * b - np.median(a - step * b)) / max(abs(step), 1e-12)
    return int(known[off.argmax()]) if off.max() > OTHER and (off <= SAME).mean() > 0.5 else None
