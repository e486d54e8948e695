"""The border between the files' frames and units and ours: LPS mm in 3D; x right, y down, mm in 2D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anatomark.core.grid import Array, Grid
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError, nearest

CLEARED = "cleared"  # unannotated, whatever another file says of it; the names stand in ``meta``
FRAMES = {"LPS": "LPS", "RAS": "RAS", "IMAGE": "image"}
MM_PER = {"mm": 1.0, "um": 1e-3, "cm": 10.0, "m": 1000.0}
UNITS = {"pixel": "px", "pixels": "px", "µm": "um", "μm": "um", "micron": "um", "microns": "um"}
UNITS |= {f"{long}{end}{s}": short for long, short in (("milli", "mm"), ("micro", "um"), ("centi", "cm"), ("", "m"))
          for end in ("meter", "metre") for s in ("", "s")}  # fmt: skip
Spacing = Sequence[float] | float | None


def parse_frame(text: str, where: str) -> str:
    """``LPS``, ``RAS`` or ``image``, whatever the case of ``text``. Raises InputError, naming ``where``, for others."""
    try:
        return FRAMES[text.strip().upper()]
    except KeyError:
        raise InputError(f"{where}: frame {text!r} is not known; it is LPS, RAS or image (2D)") from None


def parse_unit(text: str) -> str:
    """``mm``, ``px``, ``um``, ``cm``, ``m`` in capitals or in full; another text as it is, in small letters."""
    small = text.strip().lower()
    return UNITS.get(small, small)


def agree(stated: str | None, given: str | None, what: str, where: str) -> str:
    """The one value that file (``stated``) and user (``given``) agree on. Raises InputError where neither says it, or
    where they contradict each other."""
    if stated and given and stated != given:
        raise InputError(f"{where}: the file says {what} {stated}, but {given} was given; leave out `{what}`")
    if not (stated or given):
        line = "add a first line such as '# frame=LPS unit=mm' (2D: '# frame=image unit=px'), or "
        table = where.lower().endswith((".csv", ".tsv"))
        raise InputError(f"{where}: the {what} is not stated; {line if table else ''}give `{what}`")
    return str(stated or given)


def agreed_frame(stated: str | None, given: str | None, where: str) -> str:
    """The frame by :func:`agree`, and :func:`parse_frame` of both. Raises InputError."""
    stated = None if stated is None else parse_frame(stated, where)
    return agree(stated, parse_frame(given, where) if given else None, "frame", where)


def swap_lps_ras(points: Array) -> Array:
    """(N, 3) points between LPS and RAS, either way: x and y change their signs."""
    return points * np.array([-1.0, -1.0, 1.0])


def parse_spacing(text: str, where: str) -> tuple[float, ...] | None:
    """``0.1`` or ``0.1;0.1`` (mm along x, y[, z]) as numbers, also ``0,1;0,1``; None for a blank. Raises InputError for
    anything else."""
    if not text.strip():
        return None
    parts = text.split(";")
    try:
        return check_spacing([float(p.replace(",", ".") if len(parts) > 1 else p) for p in parts], where)
    except ValueError:
        raise InputError(f"{where}: spacing {text!r} is not a number such as 0.1, or 0.1;0.1 for x;y (mm)") from None


def check_spacing(spacing: Sequence[float] | float, where: str) -> tuple[float, ...]:
    """1 to 3 positive finite numbers, mm along x, y[, z]. Raises InputError otherwise."""
    values = tuple(float(v) for v in np.atleast_1d(np.asarray(spacing, dtype=np.float64)))
    if not 1 <= len(values) <= 3 or not all(np.isfinite(v) and v > 0 for v in values):
        raise InputError(f"{where}: spacing {';'.join(f'{v:g}' for v in values)} must be 1 to 3 positive numbers in mm")
    return values


def spacing_for(spacing: Sequence[float] | float, ndim: int, where: str) -> tuple[float, ...]:
    """``ndim`` numbers, mm along x, y[, z]; one number stands for all. Raises InputError where the count is wrong."""
    values = check_spacing(spacing, where)
    if len(values) == 1:
        return values * ndim
    if len(values) != ndim:
        raise InputError(f"{where}: {len(values)} spacings for an image of {ndim} dimensions; give one or {ndim}")
    return values


def pixel_grid(spacing: Sequence[float] | float, where: str = "spacing") -> Grid:
    """The 2D image frame for a spacing in mm along x, y: its origin is the centre of the first pixel."""
    x, y = spacing_for(spacing, 2, where)
    return Grid.from_axes((1, 1), [[0.0, x], [y, 0.0]], (0.0, 0.0))


def pixels_to_mm(landmarks: Landmarks, grid: Grid) -> Landmarks:
    """2D landmarks in pixels (column, row) as world mm (x, y) of ``grid``."""
    return replace(landmarks, points=grid.to_world(landmarks.points[:, ::-1]))


def mm_to_pixels(points: Array, grid: Grid) -> Array:
    """World mm (N, 2) as pixels (column, row) (N, 2) of ``grid``."""
    return grid.to_index(points)[:, ::-1]


def check_kind(frame: str, unit: str, ndim: int, where: str) -> None:
    """Raise InputError where frame, unit and dimension do not go together."""
    if (frame == "image") != (ndim == 2):
        right = "image" if ndim == 2 else "LPS or RAS"
        raise InputError(f"{where}: frame {frame} for {ndim}D positions; it must be {right}")
    if unit not in ("mm", "px") or (unit == "px" and ndim == 3):
        raise InputError(f"{where}: unit {unit!r} is not known here; it is mm" + (" or px" if ndim == 2 else ""))


def stated(landmarks: Landmarks) -> list[str]:
    """The statuses as a table states them: ``cleared`` where ``meta`` names an unannotated landmark so."""
    cleared = landmarks.meta.get(CLEARED, ())
    pairs = zip(landmarks.names, landmarks.status, strict=True)
    return [CLEARED if s is Status.UNANNOTATED and n in cleared else s for n, s in pairs]


def check_status(text: str, positioned: bool, where: str) -> Status:
    """The status that a file states, or that a position implies where it states none. Raises InputError on a
    contradiction or an unknown word."""
    if not text:
        return Status.DEFINED if positioned else Status.UNANNOTATED
    if text.lower() == CLEARED:
        return Status.UNANNOTATED
    try:
        status = Status(text.lower())
    except ValueError:
        words = ", ".join(Status)
        raise InputError(
            f"{where}: status {text!r} is not known{nearest(text, [*map(str, Status)])}; it is {words}"
        ) from None
    if status is Status.DEFINED and not positioned:
        raise InputError(f"{where}: status is defined, but there is no position")
    return status


def check_position(position: Any, ndim: int, where: str) -> Array:
    """``ndim`` finite numbers of a JSON list. Raises InputError otherwise."""
    try:
        values = np.array(position, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.shape != (ndim,) or not np.isfinite(values).all():
        raise InputError(f"{where}: position {str(position)[:80]} is not {ndim} numbers")
    return values
