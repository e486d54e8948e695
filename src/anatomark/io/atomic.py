"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anatomark.errors import InputError
from anatomark.io.claim import TAIL, TEMPORARY, note

Where = str | os.PathLike[str]  # of a file or folder
MOST_BYTES = 256 * 2**20  # of a text file that is read as a whole
MOST_DIGITS = 300  # of a whole number: more do not fit into a float
MOST_NESTED = 100
LONE_HALF = re.compile("[\ud800-\udfff]")  # Python's stand-in for a byte of a file's name that is not UTF-8
LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def atomic_path(path: Where) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffixes, so that a writer picks the same format); on success it is
    synced to disk and renamed to ``path``, on any failure it is removed and ``path`` stays as it was. The run that has
    claimed the folder (``claim.claimed``) lists it first.

    Missing parent folders are made. An OSError (disk full, not writable) becomes an InputError of one line, and so does
    a folder or device of that name.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name[-TAIL:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # it would be replaced
            raise InputError(f"{path}: cannot be written: is there, and no regular file")
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        note(path, temporary)
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
    """Write ``text`` as UTF-8 with newlines as they are, atomically; bytes of a file's name that are not UTF-8 as
    escapes. Raises InputError where the disk refuses."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Where, obj: Any) -> None:
    """Write ``obj`` as indented strict JSON (no NaN), atomically. Raises ValueError on NaN, InputError where the disk
    refuses."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, LONE_HALF.sub(lambda m: rf"\\u{ord(m[0]):04x}", text))


def read_bytes(path: Where, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises InputError where it is missing, something else
    (a folder, a pipe, a device), or larger."""
    path = Path(path)
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            raise InputError(f"{path}: is a folder, a file is needed")
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(f"{path}: is no regular file (a pipe or a device)")
        if facts.st_size > most:
            raise InputError(f"{path}: has {facts.st_size / 1e6:.0f} MB; such a file has at most {most / 1e6:.0f} MB")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_text(path: Where, most: int = MOST_BYTES, *, newlines: bool = True) -> str:
    """The text of a UTF-8 file, or a UTF-16 file that begins with a byte order mark (which is dropped). ``newlines``:
    each end of a line becomes ``\\n``. Raises InputError as :func:`read_bytes`, and where it is no text."""
    data = read_bytes(path, most)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and data[:64].count(0) > 16:
        raise InputError(f"{path}: is no UTF-8 text (UTF-16 without a byte order mark, or no text); save it as UTF-8")
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a UTF-8 text file; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if newlines else text


def read_json(path: Where) -> Any:
    """The object in a JSON file. Raises InputError, naming the line, where it is no strict JSON (NaN and Infinity are
    none), nested deeper than ``MOST_NESTED``, or holds numbers or text that cannot be written again."""
    text = read_text(path)
    try:
        document = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not valid JSON: {error.msg} in line {error.lineno}") from None
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: is not valid JSON: {reason}") from None
    if _nested_deeper(document, MOST_NESTED):
        raise InputError(f"{path}: is not valid JSON: is nested more than {MOST_NESTED} levels deep")
    if LONE_SURROGATE.search(text) and _has_surrogate(document):
        raise InputError(f"{path}: is not valid JSON: holds half of a character (a lone surrogate)")
    return document


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"holds a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"holds a number that is too large, {text[:20]}")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"holds {text}, which is no number in JSON; write null")


def _nested_deeper(document: Any, most: int) -> bool:
    level = [document]
    for _ in range(most + 1):
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
    return bool(level)


def _has_surrogate(document: Any) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
