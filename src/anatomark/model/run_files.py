"""The files of a run folder as they were written: ``SHA256SUMS``, which ``sha256sum -c`` reads, too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from anatomark.errors import InputError
from anatomark.io.atomic import read_text, write_text
from anatomark.io.files import check_regular

LIST = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][\w.-]*)")
# what a finished run may hold; checkpoints and caches are gone by then, folds are run folders of their own
FILES = (
    "request.yaml", "config.yaml", "plan.json", "calibration.json", "reference.safetensors", "weights.safetensors",
    "card.md", "log.csv", "LICENSE.txt",
)  # fmt: skip


def write_list(folder: Path, coming: Mapping[str, bytes] | None = None) -> None:
    """Write the list of the run's files that are there, and of those still ``coming``, with what they will hold.
    Raises InputError where the disk refuses."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in (coming or {}).items()}
    sums = {n: sums.get(n) or _sum(folder / n) for n in FILES if n in sums or (folder / n).exists()}
    write_text(folder / LIST, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def check_list(folder: Path) -> None:
    """Raises InputError where a listed file is missing or differs from what was written. Files that are not listed, and
    folders of earlier versions, which have no list, are left to the types of what they hold."""
    path = folder / LIST
    if not path.exists() and not path.is_symlink():
        return
    seen = set()
    for number, line in enumerate(read_text(path, 2**16).splitlines(), start=1):
        match = LINE.fullmatch(line)
        if match is None or match[2] in seen:
            raise InputError(f"{path}: line {number} is no SHA-256 and name of a file; copy the folder again")
        seen.add(match[2])
        if not (folder / match[2]).exists():
            raise InputError(f"{folder}: has no {match[2]}, which {LIST} names; copy the folder again")
        if _sum(folder / match[2]) != match[1]:
            raise InputError(
                f"{folder / match[2]}: is not the file that was written here (its SHA-256 differs from {LIST}); copy "
                f"the folder again, or, if you changed it on purpose, delete its line in {LIST}"
            )
    if not seen:
        raise InputError(f"{path}: lists no file; copy the folder again")


def _sum(path: Path) -> str:
    if not path.is_file() or path.stat().st_size:  # an empty file may be right, a pipe would be waited for
        check_regular(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
