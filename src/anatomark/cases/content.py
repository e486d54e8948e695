"""What an image file holds, in a few bytes: to tell whether two are the same without keeping them, or decoding them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from anatomark.cases.case import Case
from anatomark.errors import InputError

BLOCK = 1 << 20  # bytes that are read at the start, in the middle and at the end of a file
DIGITS = 24  # hexadecimal, of a digest
DETACHED = (".hdr", ".img", ".mhd", ".nhdr")  # the voxels may lie in another file
VOXELS = (".hdr", ".img", ".img.gz", ".raw", ".raw.gz", ".zraw", ".gz")  # such other files, or their headers


def digests_of(cases: Iterable[Case]) -> list[str]:
    """Of the images of ``cases`` that lie on disk, sorted. Raises InputError where one cannot be read."""
    return sorted({digest for case in cases if (digest := digest_of(case))})


def digest_of(case: Case) -> str:
    """The same for image files of the same bytes, wherever they lie; another for others. Of a folder all files count.
    Empty for an image in memory, or whose voxels are not found. Raises InputError where it cannot be read."""
    files = [] if case.path is None else _files(case.path)
    if not files:
        return ""
    try:
        parts = sorted(sample(file, BLOCK) for file in files)
    except OSError as error:
        raise InputError(f"{case.path}: cannot be read: {error.strerror or error}") from None
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:DIGITS]


def sample(file: Path, block: int) -> tuple[int, str]:
    """The size of a file, and a hash of ``block`` bytes at its start, in its middle and at its end. Raises OSError."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with open(file, "rb") as stream:
        for at in (0, size // 2, max(0, size - block)):
            stream.seek(at)
            digest.update(stream.read(block))
    return size, digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """Those that hold an image; none where a header is alone, which other images may have too."""
    if path.is_dir():
        return [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    if path.suffix.lower() not in DETACHED:
        return [path]
    beside = [file for ending in VOXELS if (file := path.with_name(path.stem + ending)).is_file() and file != path]
    return [path, *beside] if beside else []
