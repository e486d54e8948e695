"""NRRD (.nrrd, .nhdr): the header is read here, so that what it does not state is not made up."""

from __future__ import annotations

import bz2
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.errors import InputError
from anatomark.io.files import CUT_OFF, check_claim, check_regular
from anatomark.io.geometry import Geometry, Opened, checked_size, length_unit
from anatomark.io.headers import (
    NOT_STATED,
    check_parts,
    data_files,
    joined,
    numbers,
    read_parts,
    read_written,
    whole_numbers,
)

MOST = 16 << 20  # bytes of a header
TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
TEXTS = ("ascii", "text", "txt", "hex")
SIGNS = {"left": 1, "right": -1, "posterior": 1, "anterior": -1, "superior": 1, "inferior": -1}
NAMED = {x + y + z for x in "lr" for y in "ap" for z in "is"}
LETTERS = {word[0]: word for word in SIGNS}
PLACES = ("domain", "space", "time", "???", "none", "")  # kinds of axes along which the image extends


def looks_like_nrrd(start: bytes) -> bool:
    """Whether ``start`` is the first line of a NRRD file."""
    return start.startswith(b"NRRD000")


def open_nrrd(path: Path) -> Opened:
    """Read the header of a NRRD file. Raises InputError where it is damaged, or its data are not there whole."""
    fields, end, following = _fields(path)
    dimension = whole_numbers(path, "dimension", fields.get("dimension", ""), 1)[0]
    if not 2 <= dimension <= 16:
        raise InputError(f"{path}: its header is damaged: dimension is {dimension}")
    sizes = whole_numbers(path, "sizes", fields.get("sizes", ""), dimension)
    if min(sizes) < 1:
        raise InputError(f"{path}: its header is damaged: sizes are {fields['sizes'][:60]}")
    dtype = _dtype(path, fields)
    vectors = _vectors(path, fields, dimension)
    domain = _domain(path, fields, vectors, dimension)
    size = checked_size(path, [sizes[a] for a in domain])
    across = [a for a in range(dimension) if a not in domain]
    count = int(np.prod(sizes, dtype=np.float64))
    read = _data(path, fields, end, following, count, dtype)

    def pixels() -> NDArray[Any]:
        values = read().reshape(sizes[::-1])
        if across:
            values = np.moveaxis(values, dimension - 1 - across[0], -1)
        return values.reshape(*size[::-1], *[sizes[a] for a in across])

    return Opened(_geometry(path, fields, vectors, domain[:3], size), pixels)


def _fields(path: Path) -> tuple[dict[str, str], int, list[str]]:
    """The header's fields by lower-case name, where the data begin, and the lines after a ``data file: LIST``."""
    check_regular(path)
    fields: dict[str, str] = {}
    listed: list[str] = []
    with open(path, "rb") as file:
        while file.tell() < MOST:
            line = file.readline(MOST)
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if not line or not text:
                break
            if "data file" in fields and fields["data file"].startswith("LIST"):
                listed.append(text)
                continue
            match = re.match(r"([^:=#]+): ?(?!=)(.*)", text)
            if match and ":=" not in text[: match.end(1) + 2]:
                name = match[1].strip().lower()
                name = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(name, name)
                fields.setdefault(name, match[2].strip())
        else:
            raise InputError(f"{path}: its header is damaged, or no image: it does not end")
        return fields, file.tell(), listed


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    kind = " ".join(fields.get("type", "").lower().split())
    if kind not in TYPES:
        raise InputError(f"{path}: its type {fields.get('type', '')[:40]!r} is not read; save it as short or float")
    dtype = np.dtype(TYPES[kind])
    endian = fields.get("endian", "").lower()
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise InputError(f"{path}: its header is damaged: endian is {endian[:40]!r}, not little or big")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _vectors(path: Path, fields: dict[str, str], dimension: int) -> list[Array | None]:
    """The space direction of each axis; None where it has none."""
    if "space directions" not in fields:
        return [None] * dimension
    parts = re.findall(r"\([^)]*\)|none", fields["space directions"])
    if len(parts) != dimension:
        raise InputError(f"{path}: its header is damaged: {len(parts)} space directions for {dimension} axes")
    return [None if p == "none" else _vector(path, "space directions", p) for p in parts]


def _vector(path: Path, name: str, text: str) -> Array:
    return np.array(numbers(path, name, text.strip().strip("()").replace(",", " ")))


def _domain(path: Path, fields: dict[str, str], vectors: list[Array | None], dimension: int) -> list[int]:
    """The axes along which the image extends; of the others there is at most one, with a voxel's components."""
    kinds = fields.get("kinds", "").lower().split() or ["???"] * dimension
    if len(kinds) != dimension:
        raise InputError(f"{path}: its header is damaged: {len(kinds)} kinds for {dimension} axes")
    if any(v is not None for v in vectors):
        domain = [a for a in range(dimension) if vectors[a] is not None]
    else:
        domain = [a for a in range(dimension) if kinds[a] in PLACES]
    if len(domain) < 2 or dimension - len(domain) > 1:
        raise InputError(f"{path}: has {len(domain)} axes in space of {dimension}; give one 2D image or 3D volume")
    return domain


def _data(path: Path, fields: dict[str, str], end: int, following: list[str], count: int, dtype: np.dtype[Any]) -> Any:
    """What reads the values. Raises InputError where they are not there, or are fewer than the sizes say."""
    encoding = fields.get("encoding", "").lower()
    detached = "data file" in fields
    files = data_files(path, fields["data file"], following) if detached else [path]
    start = _after_lines(path, files[0], 0 if detached else end, fields)
    skip = whole_numbers(path, "byte skip", fields.get("byte skip", "0"), 1)[0]
    if encoding in TEXTS:
        start, width = start + max(skip, 0), 2 * dtype.itemsize if encoding == "hex" else 1
        check_parts(path, files, start, count, np.dtype(f"S{width}"), None)
        return lambda: read_written(path, files, start, count, dtype, encoding == "hex")
    if encoding not in ENCODINGS:
        raise InputError(f"{path}: its encoding {encoding[:40]!r} is not known; save it as raw or gzip")
    if ENCODINGS[encoding] == "bzip2":
        check_claim(path, count * dtype.itemsize, True)
        return lambda: _bunzipped(path, files, start, max(skip, 0), count, dtype)
    wbits = 31 if ENCODINGS[encoding] == "gzip" else None
    if skip < 0:  # the data are the file's end
        start, skip = files[0].stat().st_size - count // len(files) * dtype.itemsize, 0
        if start < 0 or wbits:
            raise InputError(f"{path}: {CUT_OFF}")
    check_parts(path, files, start + (0 if wbits else skip), count, dtype, wbits)
    return lambda: read_parts(files, start, skip, count, dtype, wbits)


def _after_lines(path: Path, file: Path, start: int, fields: dict[str, str]) -> int:
    lines = whole_numbers(path, "line skip", fields.get("line skip", "0"), 1)[0]
    if not 0 <= lines <= 10_000:
        raise InputError(f"{path}: its header is damaged: line skip is {lines}")
    with open(file, "rb") as opened:
        opened.seek(start)
        for _ in range(lines):
            opened.readline(MOST)
        return opened.tell()


def _bunzipped(path: Path, files: list[Path], start: int, skip: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    parts = []
    for file in files:
        each = skip + count // len(files) * dtype.itemsize
        with open(file, "rb") as raw:
            raw.seek(start)
            try:
                with bz2.open(raw) as opened:
                    data = opened.read(each)
            except (OSError, EOFError):
                raise InputError(f"{path}: {CUT_OFF}") from None
        if len(data) < each:
            raise InputError(f"{path}: {CUT_OFF}")
        parts.append(np.frombuffer(bytearray(data), dtype, offset=skip))
    return joined(parts)


def _geometry(
    path: Path, fields: dict[str, str], vectors: list[Array | None], domain: list[int], size: tuple[int, ...]
) -> Geometry:
    directions = [vectors[a] for a in domain]
    if any(v is not None for v in directions):
        return _in_space(path, fields, [v for v in directions if v is not None], size)
    d, dimension = len(domain), len(vectors)
    texts = fields.get("spacings", "")
    spacing = np.array(numbers(path, "spacings", texts, dimension) if texts else [np.nan] * dimension)[domain]
    units = _quoted(fields.get("units", "")) or [""] * dimension
    unit = np.array([length_unit(path, u) for u in np.array(units)[domain]]) if len(units) == dimension else np.ones(d)
    sound = np.isfinite(spacing) & (spacing > 0)
    steps = np.where(sound, spacing * unit, 1.0)
    origin, source = np.zeros(d), NOT_STATED
    if "axis mins" in fields:
        mins = np.array(numbers(path, "axis mins", fields["axis mins"], dimension))[domain]
        centres = fields.get("centers", fields.get("centerings", "")).lower().split() or ["cell"] * dimension
        half = np.array([0.0 if len(centres) > a and centres[a] == "node" else 0.5 for a in domain])
        origin, source = np.where(np.isfinite(mins), mins * unit, 0.0) + half * steps, "axis mins"
    notes = ["states no place and no sides (no space directions); it is taken as lying along the axes, LPS"] * (d == 3)
    notes += ["its unit is not mm; its numbers were made mm"] * bool((unit != 1).any())
    missing = (
        "" if sound.all() else f"spacings are {texts}" if texts else "its header has no spacings and no directions"
    )
    sources = {"spacing": "spacings", "origin": source, "direction": NOT_STATED}
    return Geometry(size, np.diag(steps), origin, tuple(map(bool, sound)), sources, notes, [], missing)


def _in_space(path: Path, fields: dict[str, str], directions: list[Array], size: tuple[int, ...]) -> Geometry:
    d = len(directions[0])
    if any(len(v) != d for v in directions) or d not in (2, 3) or len(directions) > d:
        raise InputError(f"{path}: its header is damaged: its space directions do not fit its dimension")
    axes, notes = np.stack(directions, 1), []
    if axes.shape == (3, 2):  # a slice in space
        normal = np.cross(axes[:, 0], axes[:, 1])
        axes, size = np.column_stack([axes, normal / (np.linalg.norm(normal) or 1.0)]), (*size, 1)
    elif len(directions) != d:
        raise InputError(f"{path}: its header is damaged: its space directions do not fit its dimension")
    text = fields.get("space origin", "")
    origin = _vector(path, "space origin", text) if text else np.zeros(d)
    if len(origin) != d:
        raise InputError(f"{path}: its header is damaged: space origin {text[:60]!r} is not {d} numbers")
    units = _quoted(fields.get("space units", "")) or [""] * d
    unit = np.array([length_unit(path, u) for u in units])
    if len(unit) != d:
        raise InputError(f"{path}: its header is damaged: {len(unit)} space units for {d} directions of space")
    signs, known = _signs(fields.get("space", ""), d)
    if not known and d == 3:
        what = f"its space {fields['space'][:40]!r} names no sides" if "space" in fields else "states no space"
        notes.append(f"{what}, so sides are unknown; it is taken as LPS")
    if (unit != 1).any():
        notes.append(f"its space units are {', '.join(dict.fromkeys(units))}; its numbers were made mm")
    if not text and d == 3:
        notes.append("states no space origin; it is taken as 0")
    scale = (signs * unit)[:, None]
    sources = dict.fromkeys(("spacing", "direction"), "space directions")
    sources["origin"] = "space origin" if text else NOT_STATED
    return Geometry(size, axes * scale, origin * scale[:, 0], (True,) * d, sources, notes)


def _signs(space: str, d: int) -> tuple[Array, bool]:
    """From the header's space to LPS, and whether it names the patient's sides."""
    words = space.strip().strip('"').lower().removesuffix("-time").split("-")
    if len(words) == 1 and len(words[0].rstrip("t")) == 3:
        words = [LETTERS.get(letter, "") for letter in words[0].rstrip("t")]
    if d == 3 and "".join(w[:1] for w in words) in NAMED and all(w in SIGNS for w in words):
        return np.array([float(SIGNS[w]) for w in words]), True
    return np.ones(d), False


def _quoted(text: str) -> list[str]:
    return [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', text)]
