"""The folder that a command writes the results of many cases into."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anatomark.errors import InputError
from anatomark.io.atomic import write_json


def check_folder(out: Path) -> None:
    """Raises InputError, before any work, where ``out`` is no folder, or cannot be written into or made."""
    there = next((p for p in (out, *out.absolute().parents) if p.exists()), Path())
    if not there.is_dir():
        raise InputError(f"--out {out}: {'' if there == out else f'{there} '}is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: cannot be written into; choose another --out")


def check_files(files: Iterable[Path], sources: Iterable[Path], work: str, overwrite: bool) -> None:
    """Raises InputError where one of the ``files`` to write is there (without ``overwrite``), or is one of the
    ``sources`` of the ``work``, a word such as "crop": these are never replaced."""
    there = [f for f in files if f.exists()]
    if there and not overwrite:
        raise InputError(f"{there[0]}: exists already; add --overwrite or choose another --out")
    kept = {source.resolve() for source in sources}
    if own := next((f for f in there if f.resolve() in kept), None):
        raise InputError(f"{own}: is one of the files to {work}; choose another --out")


def remove(files: Iterable[Path]) -> None:
    """Remove those that are there: of a run before, which would contradict this one, or of a case that failed."""
    for file in files:
        file.unlink(missing_ok=True)


def write_record(path: Path, record: Any, written: bool) -> None:
    """Write what a run did, last; of one that has ``written`` nothing there is no record, not even one from before."""
    if written:
        write_json(path, record)
    else:
        remove([path])
