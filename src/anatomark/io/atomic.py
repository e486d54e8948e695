"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anatomark.errors import InputError

Where = str | os.PathLike[str]  # of a file or folder
TEMPORARY = ".tmp-"  # what a killed process may leave behind begins with this


def remove_temporary(folder: Path) -> None:
    """Remove files that a process which was killed in the middle of writing left in ``folder``."""
    for left in folder.glob(f"{TEMPORARY}*"):
        if left.is_file():
            left.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Where) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffixes, so that a writer picks the same format); on success it is
    synced to disk and renamed to ``path``, on any failure it is removed and ``path`` stays as it was.

    Missing parent folders are made. An OSError (disk full, not writable) becomes an InputError of one line.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where the folder itself is unreachable, nothing of ours is in it
            temporary.unlink(missing_ok=True)


def write_bytes(path: Where, data: bytes) -> None:
    """Write ``data`` atomically. Raises InputError where the disk refuses."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Where, text: str) -> None:
    """Write ``text`` as UTF-8 with newlines as they are, atomically. Raises InputError where the disk refuses."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Where, obj: Any) -> None:
    """Write ``obj`` as indented strict JSON (no NaN), atomically. Raises ValueError on NaN, InputError where the disk
    refuses."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Where) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped). Raises InputError where it is missing or no text."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, a file is needed") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a UTF-8 text file; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_json(path: Where) -> Any:
    """The object in a JSON file. Raises InputError, naming the line, where it is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not valid JSON: {error.msg} in line {error.lineno}") from None
