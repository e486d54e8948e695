"""Bytes of image files within bounds: what a header claims is held against the file before memory is taken for it."""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from anatomark.errors import InputError

CUT_OFF = "is cut off or damaged (fewer bytes than its header announces); copy it again"
GZIP = b"\x1f\x8b"
CHUNK = 1 << 20
RATIO, FREE = 50, 128 << 20  # an image unpacks to so many times its file at most, where it is larger than FREE bytes
LARGEST = 1 << 36


def check_name(path: Path) -> None:
    """Raise InputError where a file's name is not UTF-8, on which ITK ends the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise InputError(f"{shown}: the file's name is not UTF-8; rename it") from None


def check_regular(path: Path) -> None:
    """Raise InputError where ``path`` is missing, empty, not a regular file, or its name is not UTF-8."""
    check_name(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is no regular file")
    if not status.st_size:
        raise InputError(f"{path}: is empty")


def start_of(path: Path, count: int = 1024) -> tuple[bytes, bool]:
    """The first ``count`` bytes, unpacked where the file is gzip-compressed, and whether it is. Raises InputError."""
    check_regular(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(max(count, 512))
            if not raw.startswith(GZIP):
                return raw[:count], False
            file.seek(0)
            start = b"".join(_unpacked(file, count, zlib.MAX_WBITS | 16))
            return start, True
    except (EOFError, zlib.error):
        raise InputError(f"{path}: {CUT_OFF}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def check_claim(path: Path, claimed: int, packed: bool, file: Path | None = None) -> None:
    """Raise InputError where ``claimed`` bytes cannot lie in the file, or would be suspiciously many from it."""
    size = (file or path).stat().st_size
    if not packed and claimed > size:
        raise InputError(f"{path}: {CUT_OFF}" if file is None or file == path else f"{path}: {file.name} is cut off")
    if claimed > LARGEST or (packed and claimed > FREE and claimed > RATIO * size):
        raise InputError(
            f"{path}: its header claims {claimed / 1e9:.3g} GB in a file of {size / 1e6:.3g} MB; "
            "it is damaged, or no image"
        )


def check_unpacked_size(path: Path, least: int) -> None:
    """Raise InputError where a gzip file of one member says, in its last four bytes, that it holds fewer bytes."""
    with open(path, "rb") as file:
        file.seek(-4, 2)
        if int.from_bytes(file.read(4), "little") < least < 1 << 32:
            raise InputError(f"{path}: {CUT_OFF}")


def check_unpacking(path: Path, start: int) -> None:
    """Raise InputError where the deflated bytes from ``start`` on are damaged, or unpack to more than images do."""
    most = max(FREE, RATIO * path.stat().st_size)
    try:
        with open(path, "rb") as file:
            file.seek(start)
            unpacked = sum(map(len, _unpacked(file, most + 1, -zlib.MAX_WBITS)))
    except (EOFError, zlib.error):
        raise InputError(f"{path}: {CUT_OFF}") from None
    if unpacked > most:
        raise InputError(f"{path}: unpacks to more than {most / 1e9:.3g} GB; it is damaged, or no image")


def read_data(
    path: Path, start: int, skip: int, count: int, dtype: np.dtype[Any], wbits: int | None = None
) -> NDArray[Any]:
    """``count`` values of ``dtype``, ``skip`` bytes after byte ``start`` of the file.

    ``wbits``: None for a file as it is, zlib's number for a compressed stream that begins at ``start`` (``skip`` counts
    its unpacked bytes then). Reading stops at the announced size. Raises InputError where there is less.
    """
    size = skip + count * dtype.itemsize
    check_claim(path, size if wbits else start + size, wbits is not None)
    try:
        with open(path, "rb") as file:
            file.seek(start if wbits else start + skip)
            if wbits is None:
                values = np.fromfile(file, dtype, count)
            else:
                data = b"".join(_unpacked(file, size, wbits))
                values = np.frombuffer(bytearray(data), dtype, count, skip) if len(data) == size else np.empty(0)
    except (EOFError, zlib.error):
        raise InputError(f"{path}: {CUT_OFF}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(values) != count:
        raise InputError(f"{path}: {CUT_OFF}")
    return values


def _unpacked(file: BinaryIO, count: int, wbits: int) -> Iterator[bytes]:
    """At most ``count`` bytes of a compressed stream, of one or several members, in pieces. What follows is not
    unpacked, but the checksum of a member that ends here is held against it. Raises EOFError where there are fewer."""
    stream, left, rest = zlib.decompressobj(wbits), count, b""
    while left > 0:
        rest = rest or file.read(CHUNK)
        if not rest:
            return
        piece = stream.decompress(rest, min(left, CHUNK * 4))
        left -= len(piece)
        yield piece
        rest = stream.unconsumed_tail
        if stream.eof:
            rest = stream.unused_data or file.read(CHUNK)
            if not rest.startswith(GZIP):
                return
            stream = zlib.decompressobj(wbits)
    if not stream.eof:
        stream.decompress(rest + file.read(64), 1)  # raises where the checksum that follows is wrong
