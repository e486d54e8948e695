"""Images that clients send: into files whose names are ours."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile
from starlette.formparsers import MultiPartParser

from anatomark.io.frames import parse_spacing
from anatomark.io.images import PICTURES, READ_ALSO, VOLUMES

MultiPartParser.spool_max_size = 32 << 20  # bytes of an upload in memory; beyond, each piece is written by a thread
ENDINGS = sorted({*VOLUMES, *PICTURES, *READ_ALSO, ".dcm"}, key=len, reverse=True)


@contextmanager
def stored(files: Sequence[UploadFile]) -> Iterator[Path]:
    """The image of a request on disk: a file, or of several the folder of a DICOM series. What it holds decides its
    format; of the client's name only a known ending is kept. All is removed again."""
    with tempfile.TemporaryDirectory(prefix="anatomark-") as folder:
        names = [Path(folder) / f"image{ending_of(files[0])}"]
        if len(files) > 1:
            names = [Path(folder) / "series" / f"{i:05d}{ending_of(f)}" for i, f in enumerate(files)]
            names[0].parent.mkdir()
        for file, name in zip(files, names, strict=True):
            with open(name, "wb") as out:
                shutil.copyfileobj(file.file, out, 1 << 20)
        yield names[0].parent if len(files) > 1 else names[0]


def ending_of(file: UploadFile) -> str:
    """The ending of an image file's name, empty for an unknown one."""
    name = (file.filename or "").lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def shown_name(files: Sequence[UploadFile]) -> str:
    """What a message calls an image that was sent: the end of the client's name for it."""
    name = (files[0].filename or "").replace("\\", "/").rpartition("/")[2]
    text = "".join(c for c in name if c.isprintable())[-80:] or "the image"
    return text if len(files) == 1 else f"{text} and {len(files) - 1} more"


def given_spacing(text: str | None) -> list[float] | None:
    """What ``spacing`` says, mm along x, y[, z]: ``0.1`` or ``0.1;0.1``. Raises InputError."""
    spacing = parse_spacing(text, "spacing") if text else None
    return None if spacing is None else list(spacing)
