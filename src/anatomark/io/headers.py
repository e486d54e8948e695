"""What the text headers of NRRD and MetaImage have in common: numbers, whatever the locale, and data in other files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.errors import InputError
from anatomark.io.files import CUT_OFF, check_claim, check_regular, read_data

MOST_FILES = 100_000
LONGEST = 64  # characters of a number
NOT_STATED = "not stated"
_alone: ContextVar[bool] = ContextVar("_alone", default=False)


@contextmanager
def in_one_file() -> Iterator[None]:
    """As long as it lasts, a header that names other files is refused: for files of a sender who may not choose what is
    read here."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def numbers(path: Path, name: str, text: str, count: int | None = None) -> list[float]:
    """Numbers with a decimal point, NaN too. Raises InputError, naming the field, where they are none or too few."""
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        much = "numbers" if count is None else f"{count} numbers"
        raise InputError(f"{path}: its header is damaged: {name} {text[:60]!r} is not {much}")
    return values


def whole_numbers(path: Path, name: str, text: str, count: int | None = None) -> list[int]:
    """As :func:`numbers`, whole ones."""
    values = numbers(path, name, text, count)
    if not all(np.isfinite(v) and v == int(v) and abs(v) < 2**53 for v in values):
        raise InputError(f"{path}: its header is damaged: {name} {text[:60]!r} is not whole numbers")
    return [int(v) for v in values]


def data_files(path: Path, text: str, following: Sequence[str]) -> list[Path]:
    """The files that hold the voxels: one by name, those of a pattern ``name%03d.raw FIRST LAST STEP``, or with
    ``LIST`` those of the lines that follow. Raises InputError where one is missing."""
    if _alone.get():
        raise InputError(f"{path}: its voxels are in another file; send one file that holds header and voxels")
    names = [text]
    pattern = re.fullmatch(r"(.*%0?\d*d.*?)\s+(\d+)\s+(\d+)(?:\s+(-?\d+))?(?:\s+\d+)?", text)
    if text.split()[:1] == ["LIST"]:
        names = [line.strip() for line in following if line.strip()]
    elif pattern:
        first, last, step = int(pattern[2]), int(pattern[3]), int(pattern[4] or 1)
        if step == 0 or not 0 <= (last - first) * (1 if step > 0 else -1) < MOST_FILES:
            raise InputError(f"{path}: its header is damaged: the pattern {text[:60]!r} names no files")
        number = re.search(r"%0?(\d*)d", pattern[1])
        assert number
        width = int(number[1] or 1)
        names = [
            pattern[1].replace(number[0], f"{n:0{width}d}") for n in range(first, last + (1 if step > 0 else -1), step)
        ]
    files = [path.parent / name for name in names]
    if not files:
        raise InputError(f"{path}: its header is damaged: it names no file with its voxels")
    for file in files:
        if not os.path.exists(file):  # False also where it can be no name
            raise InputError(f"{path}: {file.name[:200]}, which holds its voxels, is not there")
        check_regular(file)
    return files


def check_parts(
    path: Path, files: Sequence[Path], start: int, count: int, dtype: np.dtype[Any], wbits: int | None
) -> None:
    """Raise InputError where the files cannot hold ``count`` values."""
    if count % len(files):
        raise InputError(f"{path}: its {len(files)} files cannot hold equal parts of {count} values")
    for file in files:
        claimed = count // len(files) * dtype.itemsize
        check_claim(path, claimed if wbits else start + claimed, wbits is not None, file)


def read_parts(
    files: Sequence[Path], start: int, skip: int, count: int, dtype: np.dtype[Any], wbits: int | None
) -> NDArray[Any]:
    """``count`` values in native byte order, of which each file holds an equal part, as :func:`read_data`."""
    each = count // len(files)
    return joined([read_data(f, start, skip, each, dtype, wbits) for f in files])


def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Parts of the values as one array in native byte order."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.astype(whole.dtype.newbyteorder("="), copy=False)


def read_written(
    path: Path, files: Sequence[Path], start: int, count: int, dtype: np.dtype[Any], hexadecimal: bool = False
) -> NDArray[Any]:
    """As :func:`read_parts`, values that are written as decimal numbers, or their bytes in hexadecimal digits. Raises
    InputError where there are fewer, or others than numbers."""
    each, parts = count // len(files), []
    for file in files:
        with open(file, "rb") as opened:
            opened.seek(start)
            data = opened.read()
        try:
            if hexadecimal:
                digits = b"".join(data.split())[: 2 * each * dtype.itemsize]
                digits = digits[: len(digits) // (2 * dtype.itemsize) * 2 * dtype.itemsize]  # whole values
                values = np.frombuffer(bytes.fromhex(digits.decode("ascii")), dtype)
            else:
                words = data.split()[:each]
                if words and max(map(len, words)) > LONGEST:
                    raise ValueError
                values = np.array(words).astype(dtype)
        except (ValueError, OverflowError):
            raise InputError(f"{path}: {file.name} holds other text than numbers of its type; it is damaged") from None
        if len(values) < each:
            raise InputError(f"{path}: {CUT_OFF}")
        parts.append(values[:each])
    return joined(parts)
