"""The front door for landmark files: the format follows from the name's ending."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from anatomark.core.grid import Grid
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.atomic import Where
from anatomark.io.fcsv import read_fcsv, write_fcsv
from anatomark.io.frames import Spacing, pixel_grid, pixels_to_mm
from anatomark.io.jsonfile import read_json_landmarks, write_json_landmarks
from anatomark.io.other_json import kind_of
from anatomark.io.other_points import ENDINGS
from anatomark.io.slicer import list_alone, read_mrk, write_mrk
from anatomark.io.tables import read_table, write_table

FORMATS = (".mrk.json", ".fcsv", ".csv", ".tsv", ".json")
READ_ONLY = ENDINGS


def landmark_format(path: Where) -> str:
    """The ending of ``path`` that names its format. Raises InputError for an unknown one, and for a folder."""
    name = Path(path).name.lower()
    for ending in (*FORMATS, *READ_ONLY):
        if name.endswith(ending):
            return ending
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give one landmark file, or predict with `format` csv")
    raise InputError(f"{path}: is no name of a landmark file; known endings: {', '.join((*FORMATS, *READ_ONLY))}")


def split_observer(path: Where) -> tuple[Path, str | None]:
    """``table.csv#senior``, an observer of a table, as (``table.csv``, ``senior``), and so ``a.mrk.json#F``, a list of
    a markups file. A file whose own name has a # is left alone."""
    text = os.fspath(path)
    if "#" not in text or Path(text).exists():
        return Path(text), None
    parts = re.fullmatch(r"(.*?\.(?:csv|tsv|json))#(.*)", text, re.IGNORECASE | re.DOTALL)
    if parts is None:
        raise InputError(f"{text}: only tables have observers, and markups files lists, to choose by #")
    return Path(parts[1]), parts[2]


def load_landmarks(
    path: Where,
    *,
    case: str | None = None,
    frame: str | None = None,
    unit: str | None = None,
    label_from: str = "label",
) -> Landmarks:
    """As :func:`read_landmarks`, but positions in pixels stay so: ``meta["unit"]`` is then ``px``."""
    file, chosen = split_observer(path)
    ending = landmark_format(file)
    try:
        kind = kind_of(file) if ending == ".json" else ending
        if kind in (".mrk.json", "markups"):
            return read_mrk(file, frame, unit, label_from, chosen)
        if ending == ".fcsv":
            return read_fcsv(file, frame, unit, label_from)
        if kind != "ours":
            return read_table(file, frame, unit, label_from).pick(case, chosen)
        if chosen is not None:
            raise InputError(f"{file}: is no file of 3D Slicer, whose lists are chosen by #")
        return named_by(read_json_landmarks(file, frame, unit), label_from, file)
    except InputError as error:  # Landmarks itself does not know the file
        line = " ".join(str(error).splitlines())  # text of the file may stand in it
        raise InputError(line if str(file) in line else f"{file}: {line}") from None


def read_landmarks(
    path: Where,
    *,
    case: str | None = None,
    frame: str | None = None,
    unit: str | None = None,
    spacing: Spacing | Grid = None,
    label_from: str = "label",
) -> Landmarks:
    """Read a landmark file into world mm (3D: LPS).

    ``path``: a file with an ending of ``FORMATS`` or ``READ_ONLY``; ``table.csv#senior`` chooses an observer, ``#mean``
    the mean of all, ``a.mrk.json#F`` a list of a markups file, by name or number. ``case``: which case of a table with
    several. ``frame`` (LPS, RAS, image) and ``unit`` (mm, px): for files that state none. ``spacing``: mm along x, y
    for positions in px, or the image's 2D grid. ``label_from``: ``label``, or ``description`` to make the descriptions
    the names (the labels become the descriptions).
    ``meta["notes"]`` are remarks on what was read otherwise than a reader of the file might think,
    ``meta["name_notes"]`` on the names. Raises InputError.
    """
    landmarks = load_landmarks(path, case=case, frame=frame, unit=unit, label_from=label_from)
    return in_mm(landmarks, spacing, os.fspath(path))


def in_mm(landmarks: Landmarks, spacing: Spacing | Grid, where: str) -> Landmarks:
    """Landmarks of :func:`load_landmarks` in mm. Raises InputError where they are in px and ``spacing`` is None."""
    if landmarks.meta.get("unit") != "px":
        return landmarks
    if spacing is None:
        raise InputError(f"{where}: positions are in px; give mm per pixel in the spacing column or with `spacing`")
    grid = spacing if isinstance(spacing, Grid) else pixel_grid(spacing, where)
    return replace(pixels_to_mm(landmarks, grid), meta={**landmarks.meta, "unit": "mm"})


def named_by(landmarks: Landmarks, label_from: str, path: Path) -> Landmarks:
    """Landmarks named by ``label`` (as they are) or by ``description``, which must then be there and differ."""
    if label_from == "label":
        return landmarks
    if label_from != "description":
        raise InputError(f"labels come from 'label' or 'description', not {label_from!r}")
    counts = Counter(landmarks.descriptions)
    for label, description in zip(landmarks.names, landmarks.descriptions, strict=True):
        if not description:
            raise InputError(f"{path}: landmark {label!r} has no description to take the name from")
        if counts[description] > 1:
            raise InputError(f"{path}: description {description!r} appears more than once; names must differ")
    return replace(landmarks, names=landmarks.descriptions, descriptions=landmarks.names)


def write_landmarks(
    landmarks: Landmarks,
    path: Where,
    *,
    case: str | None = None,
    spacing: Spacing | Grid = None,
    unit: str = "mm",
) -> None:
    """Write landmarks (world mm) in the format of ``path``'s ending, atomically.

    What the landmarks' own file held beside is kept where the format is the same. CSV/TSV: tidy, with a column
    ``case`` where ``case`` is given; 2D with ``spacing`` (mm along x, y, or the image's 2D grid) has ``x_mm, y_mm,
    x_px, y_px``, or px alone with ``unit="px"``. Raises InputError for an unknown ending or a disk that refuses.
    """
    ending = landmark_format(path)
    if ending in READ_ONLY:
        raise InputError(f"{path}: {ending} is read, not written; known endings: {', '.join(FORMATS)}")
    if unit != "mm" and ending not in (".csv", ".tsv"):
        raise InputError(f"{path}: only CSV and TSV hold positions in {unit}; write mm")
    if ending == ".mrk.json":
        write_mrk(landmarks, path)
    elif ending == ".fcsv":
        write_fcsv(landmarks, path)
    elif ending == ".json":
        write_json_landmarks(landmarks, path, {"case": case} if case is not None else None)
    else:
        grid = spacing if isinstance(spacing, Grid) or spacing is None else pixel_grid(spacing)
        write_table(landmarks, path, case=case or "", unit=unit, grid=grid if landmarks.ndim == 2 else None)


def convert(
    source: Where,
    target: Where,
    *,
    case: str | None = None,
    frame: str | None = None,
    unit: str | None = None,
    spacing: Spacing | Grid = None,
    label_from: str = "label",
) -> Landmarks:
    """Read ``source``, write ``target``, return what was written. Arguments and errors as :func:`read_landmarks`. Of a
    markups file's lists one that was chosen is written alone."""
    landmarks = read_landmarks(source, case=case, frame=frame, unit=unit, spacing=spacing, label_from=label_from)
    if split_observer(source)[1] is not None:
        landmarks = list_alone(landmarks)
    write_landmarks(landmarks, target, case=case, spacing=spacing if landmarks.ndim == 2 else None)
    return landmarks
