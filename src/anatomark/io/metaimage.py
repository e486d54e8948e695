"""MetaImage (.mha, .mhd): the header is read here, so that what it does not state is not made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.errors import InputError
from anatomark.io.files import CUT_OFF, start_of
from anatomark.io.geometry import Geometry, Opened, checked_size, length_unit
from anatomark.io.headers import NOT_STATED, check_parts, data_files, numbers, read_parts, read_written, whole_numbers

MOST = 1 << 16  # bytes of a header
KINDS = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
ORIGINS = ("Offset", "Position", "Origin")
DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
SPACINGS = ("ElementSpacing", "ElementSize")


def looks_like_metaimage(start: bytes) -> bool:
    """Whether ``start`` begins with a field of a MetaImage header."""
    first = start.split(b"=", 1)[0].strip().lower()
    return first in (b"objecttype", b"ndims", b"comment", b"objectsubtype", b"transformtype", b"name", b"id")


def open_metaimage(path: Path) -> Opened:
    """Read the header of a MetaImage. Raises InputError where it is damaged, or its data are not there whole."""
    fields, end, following = _fields(path)
    ndims = whole_numbers(path, "NDims", fields.get("NDims", ""), 1)[0]
    if not 2 <= ndims <= 10:
        raise InputError(f"{path}: its header is damaged: NDims is {ndims}")
    sizes = whole_numbers(path, "DimSize", fields.get("DimSize", ""), ndims)
    size = checked_size(path, sizes)
    channels = whole_numbers(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), 1)[0]
    if not 1 <= channels <= 1000:
        raise InputError(f"{path}: its header is damaged: ElementNumberOfChannels is {channels}")
    kind = fields.get("ElementType", "").removesuffix("_ARRAY")
    if kind not in KINDS:
        raise InputError(f"{path}: its ElementType {kind[:40]!r} is not read; save it as MET_SHORT or MET_FLOAT")
    big = _true(fields, "BinaryDataByteOrderMSB") or _true(fields, "ElementByteOrderMSB")
    dtype = np.dtype((">" if big else "<") + KINDS[kind])
    written = "BinaryData" in fields and not _true(fields, "BinaryData")
    wbits = 47 if _true(fields, "CompressedData") else None
    count = int(np.prod([*size, channels], dtype=np.int64))
    where = fields["ElementDataFile"]
    local = where.upper() == "LOCAL"
    files = [path] if local else data_files(path, where, following)
    start = end if local else whole_numbers(path, "HeaderSize", fields.get("HeaderSize", "0"), 1)[0]
    if start < 0:  # the data are the file's end
        start = files[0].stat().st_size - count // len(files) * dtype.itemsize
        if start < 0 or wbits:
            raise InputError(f"{path}: {CUT_OFF}")
    check_parts(path, files, start, count, np.dtype("S1") if written else dtype, wbits)

    def pixels() -> NDArray[Any]:
        values = (
            read_written(path, files, start, count, dtype)
            if written
            else read_parts(files, start, 0, count, dtype, wbits)
        )
        return values.reshape(*size[::-1], channels) if channels > 1 else values.reshape(size[::-1])

    modality = fields.get("Modality", "").removeprefix("MET_MOD_")
    return Opened(_geometry(path, fields, size, ndims), pixels, modality if modality in ("CT", "MR", "US") else None)


def _fields(path: Path) -> tuple[dict[str, str], int, list[str]]:
    """The header's fields, where it ends, and the lines that follow."""
    data, _ = start_of(path, MOST)
    fields: dict[str, str] = {}
    at = 0
    while at < len(data):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        key, sign, value = data[at:end].decode("latin-1").partition("=")
        at = end + 1
        if sign:
            fields.setdefault(key.strip(), value.strip())
        elif key.strip():
            break
        if key.strip() == "ElementDataFile":
            return fields, at, data[at:].decode("utf-8", "replace").splitlines() if value.strip()[:4] == "LIST" else []
    raise InputError(f"{path}: its header is damaged, or no image: it names no ElementDataFile")


def _true(fields: dict[str, str], key: str) -> bool:
    return fields.get(key, "").lower() in ("true", "t", "1")


def _geometry(path: Path, fields: dict[str, str], size: tuple[int, ...], ndims: int) -> Geometry:
    d = len(size)
    origin_key, direction_key, spacing_key = (
        next((k for k in keys if k in fields), NOT_STATED) for keys in (ORIGINS, DIRECTIONS, SPACINGS)
    )
    unit = length_unit(path, fields.get("DistanceUnits", ""))
    stated = spacing_key in fields
    spacing = np.array(numbers(path, spacing_key, fields[spacing_key], ndims) if stated else np.ones(ndims))[:d]
    sound = np.isfinite(spacing) & (spacing > 0) & stated
    steps = np.where(sound, spacing * unit, 1.0)
    origin = np.zeros(d)
    if origin_key in fields:
        origin = np.array(numbers(path, origin_key, fields[origin_key], ndims))[:d] * unit
    direction = np.eye(d)
    if direction_key in fields:
        values = np.array(numbers(path, direction_key, fields[direction_key], ndims * ndims))
        direction = values.reshape(ndims, ndims).T[:d, :d]
    lengths = np.linalg.norm(direction, axis=0)
    notes = [f"its unit is {fields['DistanceUnits']}; its numbers were made mm"] if unit != 1 else []
    if np.isfinite(lengths).all() and (abs(lengths - 1) > 0.01).any() and lengths.min() > 0:
        notes.append(f"the axes in its {direction_key} are not of length 1; they count as directions alone")
    if d == 3 and (origin_key not in fields or direction_key not in fields):
        unstated = [what for what, key in (("place", origin_key), ("direction", direction_key)) if key not in fields]
        notes.append(f"states no {' and no '.join(unstated)}; it is taken as lying at 0 along the axes, LPS")
    with np.errstate(all="ignore"):
        axes = direction / lengths * steps
    missing = f"{spacing_key} is {fields[spacing_key]}" if stated else "its header has no ElementSpacing"
    sources = {"spacing": spacing_key, "origin": origin_key, "direction": direction_key}
    return Geometry(size, axes, origin, tuple(map(bool, sound)), sources, notes, [], missing)
