"""PNG, JPEG, BMP, TIFF and JPEG 2000: known by their content, checked for what readers leave out; no spacing."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from anatomark.errors import InputError
from anatomark.io.files import CUT_OFF, check_claim
from anatomark.io.geometry import Geometry, Opened, checked_size
from anatomark.io.headers import NOT_STATED
from anatomark.io.itk import open_with, quiet, read_with
from anatomark.io.tiff import Page, check_tiff, first_tags

JPEG_2000 = "Pillow"  # damaged files end the process in ITK's reader
STARTS = {
    b"\x89PNG": "PNGImageIO", b"\xff\xd8": "JPEGImageIO", b"BM": "BMPImageIO", b"II*\0": "TIFFImageIO",
    b"MM\0*": "TIFFImageIO", b"II+\0": "TIFFImageIO", b"MM\0+": "TIFFImageIO", b"\0\0\0\x0cjP  ": JPEG_2000,
    b"\xff\x4f\xff\x51": JPEG_2000,
}  # fmt: skip
TURNED = (
    "is stored rotated (EXIF orientation {}), so pixel positions would be ambiguous; "
    "save it upright first, e.g. with ImageMagick: mogrify -auto-orient FILE"
)


def picture_reader(start: bytes) -> str:
    """The name of ITK's reader of a picture that begins with ``start``; blank where it is none."""
    return next((reader for sign, reader in STARTS.items() if start.startswith(sign)), "")


def open_picture(path: Path, reader: str) -> Opened:
    """Read the header of a picture. Raises InputError where it is cut off, stored rotated, or of a kind that would be
    read as something else."""
    page, by_pillow = None, reader == JPEG_2000
    try:
        with open(path, "rb") as file:
            if reader == "JPEGImageIO":
                _check_jpeg(path, file)
            elif reader == "PNGImageIO":
                by_pillow = _check_png(path, file)
            elif reader == "BMPImageIO":
                _check_bmp(path, file)
            elif reader == "TIFFImageIO":
                page = check_tiff(path, file.read())
                _refuse_turned(path, page.orientation)
                by_pillow = (page.tiled and page.bits != 8) or page.samples == 2  # as ITK's reader makes other values
    except (struct.error, EOFError):
        raise InputError(f"{path}: {CUT_OFF}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    size = page.size if page and by_pillow else _pillow_size(path) if by_pillow else _size(path, reader)
    geometry = Geometry(
        size, np.eye(len(size)), np.zeros(len(size)), (False,) * len(size),
        {"spacing": NOT_STATED, "origin": "the first pixel", "direction": "rows and columns"},
    )  # fmt: skip

    def pixels() -> NDArray[Any]:
        array = _by_pillow(path) if by_pillow else read_with(reader, path)
        if page and by_pillow and (page.bits, page.kind) == (32, 1):
            array = array.view(np.uint32)  # which Pillow takes for signed
        return _black_is_0(path, array, page) if page and page.white_is_0 else array

    return Opened(geometry, pixels, picture=True)


def _size(path: Path, reader: str) -> tuple[int, ...]:
    itk = open_with(path, reader)
    size = checked_size(path, itk.GetSize())
    check_claim(path, int(np.prod(size, dtype=np.int64)) * itk.GetNumberOfComponents(), True)
    return size


def _black_is_0(path: Path, array: NDArray[Any], page: Page) -> NDArray[Any]:
    """A TIFF whose white is 0, turned round; those of fewer bits, and tiles of 8, are by ITK's reader."""
    if page.bits < 8 or page.samples != 1 or (page.tiled and page.bits == 8):
        return array
    if array.dtype.kind == "f":
        raise InputError(f"{path}: is a TIFF of floats whose white is 0; save it with black as 0")
    return np.invert(array)


def _by_pillow(path: Path) -> NDArray[Any]:
    """Grey or colours as Pillow reads them, without transparency."""
    from PIL import Image as Pillow

    try:
        with quiet(), Pillow.open(path) as picture:
            grey = picture.getchannel("L") if picture.mode == "LA" else picture
            if grey.mode not in ("L", "I;16", "I;16B", "I;16L", "I", "F", "RGB", "RGBA"):
                raise InputError(
                    f"{path}: is a picture of a kind ({picture.mode}) that is not read; save it as plain PNG"
                )
            array = np.array(grey)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _pillow_size(path: Path) -> tuple[int, ...]:
    from PIL import Image as Pillow

    try:
        with quiet(), Pillow.open(path) as picture:
            size = checked_size(path, picture.size)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    check_claim(path, 4 * size[0] * size[1], True)
    return size


def _check_jpeg(path: Path, file: BinaryIO) -> None:
    data = file.read()
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = struct.unpack_from(">H", data, at + 2)[0]
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            _refuse_turned(path, _orientation(data[at + 10 :]))
        at += 2 + length
    if data.find(b"\xff\xd9", at) < 0:  # the end marker cannot occur inside the coded data
        raise InputError(f"{path}: {CUT_OFF}")


def _check_png(path: Path, file: BinaryIO) -> bool:
    """Whether it is grey with transparency, which ITK's reader does not know."""
    start = file.read(33)
    bits, colours = struct.unpack_from("2B", start, 24)
    file.seek(8)
    transparent = colours == 4
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            _refuse_turned(path, _orientation(file.read(min(length, 1 << 20))))
            file.seek(max(length - (1 << 20), 0) + 4, os.SEEK_CUR)
        elif kind == b"IEND":
            if transparent and bits != 8:
                raise InputError(
                    f"{path}: is grey of {bits} bits with transparency, which is not read; save it without transparency"
                )
            return transparent
        else:
            transparent |= kind == b"tRNS" and colours == 0 and bits == 8
            file.seek(length + 4, os.SEEK_CUR)
    raise InputError(f"{path}: {CUT_OFF}")


def _check_bmp(path: Path, file: BinaryIO) -> None:
    header = file.read(34)
    offset, width, height = (struct.unpack_from("<i", header, at)[0] for at in (10, 18, 22))
    bits, compression = struct.unpack_from("<HI", header, 28)
    if compression in (0, 3) and path.stat().st_size < offset + (width * bits + 31) // 32 * 4 * abs(height):
        raise InputError(f"{path}: {CUT_OFF}")


def _refuse_turned(path: Path, orientation: int) -> None:
    if orientation in range(2, 9):
        raise InputError(f"{path}: {TURNED.format(orientation)}")


def _orientation(exif: bytes) -> int:
    try:
        return first_tags(exif).get(274, (1,))[0]
    except struct.error:  # a damaged EXIF block does not make the picture unreadable
        return 1
