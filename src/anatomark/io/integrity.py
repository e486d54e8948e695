"""Checks that the readers of SimpleITK leave out: files that were cut off, and pictures stored rotated."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from anatomark.errors import InputError

TURNED = (
    "is stored rotated (EXIF orientation {}), so pixel positions would be ambiguous; "
    "save it upright first, e.g. with ImageMagick: mogrify -auto-orient FILE"
)


NOT_FINITE = "holds NaN or infinite values; replace them (e.g. by the background's value) first"


def check_file(path: Path, values: bool = False) -> None:
    """Raise InputError where ``path`` is missing, empty, cut off, not what its name says, or stored rotated; with
    ``values`` also where a NIfTI file holds NaN or infinity, which ITK's reader would silently make 0."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            if not start:
                raise InputError(f"{path}: is empty")
            if path.name.lower().endswith((".nii", ".nii.gz")):
                _check_nifti(path, start[:2] == b"\x1f\x8b", values)
            elif start[:2] == b"\xff\xd8":
                _check_jpeg(path, file)
            elif start[:4] in (b"II*\0", b"MM\0*"):
                _check_tiff(path, file)
            elif start[:4] == b"\x89PNG":
                _check_png(path, file)
            elif start[:2] == b"BM":
                _check_bmp(path, file)
    except (struct.error, EOFError, zlib.error, gzip.BadGzipFile):
        raise _cut_off(path) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _cut_off(path: Path) -> InputError:
    return InputError(f"{path}: is cut off or damaged (fewer bytes than its header announces); copy it again")


def _from_start(file: BinaryIO, count: int = -1) -> bytes:
    file.seek(0)
    return file.read(count)


def _check_nifti(path: Path, zipped: bool, values: bool) -> None:
    with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
        header = file.read(348)
    size = struct.unpack("<i", header[:4])[0] if len(header) >= 348 else 0
    order = {348: "<", 0x5C010000: ">"}.get(size)  # 348, or its bytes the other way round
    if size in (540, 0x1C020000):
        raise InputError(f"{path}: is a NIfTI-2 file, which is not read; save it as NIfTI-1")
    if order is None:
        raise InputError(f"{path}: is not a NIfTI file, although it is named so")
    dim, (kind, bits) = struct.unpack_from(f"{order}8h", header, 40), struct.unpack_from(f"{order}2h", header, 70)
    offset = int(struct.unpack_from(f"{order}f", header, 108)[0])
    voxels = int(np.prod([max(1, n) for n in dim[1 : 1 + max(0, min(7, dim[0]))]], dtype=np.int64))
    expected = offset + (voxels * bits + 7) // 8
    if (_unzipped_size(path, expected) if zipped else path.stat().st_size) < expected:
        raise _cut_off(path)
    if values and kind in (16, 64):  # float32, float64
        _check_finite(path, zipped, offset, f"{order}f{bits // 8}")


def _check_finite(path: Path, zipped: bool, offset: int, dtype: str) -> None:
    with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
        file.seek(offset)
        while chunk := file.read(1 << 22):
            block = np.frombuffer(chunk[: len(chunk) // 8 * 8], dtype=dtype)
            if not np.isfinite(block).all():
                raise InputError(f"{path}: {NOT_FINITE}")


def _unzipped_size(path: Path, expected: int) -> int:
    """Bytes that a gzip file holds; its last four bytes say so in nearly every file, else it is read through."""
    with open(path, "rb") as raw:
        raw.seek(-4, os.SEEK_END)
        if struct.unpack("<I", raw.read(4))[0] == expected % 2**32:
            return expected
    total = 0
    with gzip.open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            total += len(chunk)
    return total


def _check_jpeg(path: Path, file: BinaryIO) -> None:
    data = _from_start(file)
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = struct.unpack_from(">H", data, at + 2)[0]
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            _refuse_turned(path, _exif_tags(data, at + 10))
        at += 2 + length
    if data.find(b"\xff\xd9", at) < 0:  # the end marker cannot occur inside the coded data
        raise _cut_off(path)


def _check_png(path: Path, file: BinaryIO) -> None:
    if _from_start(file, 26)[25:] == b"\x04":
        raise InputError(f"{path}: is grey with transparency, which is not read; save it without transparency")
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            _refuse_turned(path, _exif_tags(file.read(length), 0))
            file.seek(4, os.SEEK_CUR)
        elif kind == b"IEND":
            return
        else:
            file.seek(length + 4, os.SEEK_CUR)
    raise _cut_off(path)


def _check_bmp(path: Path, file: BinaryIO) -> None:
    header = _from_start(file, 34)
    offset, width, height = (struct.unpack_from("<i", header, at)[0] for at in (10, 18, 22))
    bits, compression = struct.unpack_from("<HI", header, 28)
    if compression in (0, 3) and path.stat().st_size < offset + (width * bits + 31) // 32 * 4 * abs(height):
        raise _cut_off(path)


def _check_tiff(path: Path, file: BinaryIO) -> None:
    tags = _tags(_from_start(file), 0)
    _refuse_turned(path, tags)
    for starts, counts in ((273, 279), (324, 325)):  # strips, tiles: where the pixels lie and how many bytes
        ends = [s + n for s, n in zip(tags.get(starts, ()), tags.get(counts, ()), strict=False)]
        if ends and max(ends) > path.stat().st_size:
            raise _cut_off(path)


def _refuse_turned(path: Path, tags: dict[int, tuple[int, ...]]) -> None:
    orientation = tags.get(274, (1,))[0]
    if orientation in range(2, 9):
        raise InputError(f"{path}: {TURNED.format(orientation)}")


def _exif_tags(data: bytes, base: int) -> dict[int, tuple[int, ...]]:
    try:
        return _tags(data, base)
    except struct.error:  # a damaged EXIF block does not make the picture unreadable
        return {}


def _tags(data: bytes, base: int) -> dict[int, tuple[int, ...]]:
    """The whole-number tags of the first directory of a TIFF (or EXIF) block that starts at ``base``."""
    order = {b"II": "<", b"MM": ">"}.get(data[base : base + 2])
    if order is None:
        return {}
    start = base + struct.unpack_from(f"{order}I", data, base + 4)[0]
    tags = {}
    for n in range(struct.unpack_from(f"{order}H", data, start)[0]):
        entry = start + 2 + 12 * n
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, entry)
        if kind not in (3, 4):  # SHORT, LONG
            continue
        code, width = ("H", 2) if kind == 3 else ("I", 4)
        at = entry + 8 if count * width <= 4 else base + struct.unpack_from(f"{order}I", data, entry + 8)[0]
        tags[tag] = struct.unpack_from(f"{order}{count}{code}", data, at)
    return tags
