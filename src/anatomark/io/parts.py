"""One writer per part of an output: several runs, such as the shards of a cohort, write into one folder at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anatomark.errors import InputError
from anatomark.io.claim import (
    LOCK,
    PARTS,
    TEMPORARY,
    Claim,
    Where,
    check_out,
    existing,
    held,
    let_go,
    locked,
    open_regular,
    refused,
    remove_empty,
    remove_temporary,
    take,
)

NAME = re.compile(r"shard-(\d+)-of-(\d+)\.lock")


def part_file(out: Path, part: int, of: int, ending: str) -> Path:
    """A file that belongs to a part of the folder ``out``."""
    return out / PARTS / f"shard-{part}-of-{of}.{ending}"


@contextmanager
def claimed_part(out: Where, part: int, of: int) -> Iterator[Claim]:
    """Take part ``part`` (from 1) ``of`` so many of the folder ``out``, as :func:`anatomark.io.claim.claimed` takes the
    whole: other runs may take the other parts meanwhile, but no run the whole, nor parts of another count, which would
    overlap. The claim knows what runs of any part left that did not come to their end.

    Raises InputError, before any work, where another run is in the way, or nothing can be written there.
    """
    path = Path(out)
    there = existing(path)
    whole = own = None
    try:
        check_out(path, False)
        whole = _shared(path)
        own = take(path, path, part_file(path, part, of, "lock"))
        for lock in sorted((path / PARTS).glob("*.lock")):
            if lock != own.lock:
                _check_beside(path, lock, of)
                own.learn(lock)
        for name, digests in whole.written.items():
            own.written.setdefault(name, set()).update(digests)
    except (OSError, ValueError, InputError) as error:
        _release(path, whole, own, of, False)
        remove_empty(path, there)
        raise error if isinstance(error, InputError) else refused(path, error) from None
    held(whole)
    held(own)
    done = False
    try:
        yield own
        done = True
    finally:
        if let_go(own) and let_go(whole):
            _release(path, whole, own, of, done)
            if not done:
                remove_empty(path, there)


def is_held(lock: Path) -> bool:
    """Whether a run has the lock file now, as far as the file system tells."""
    try:
        handle = open_regular(lock, os.O_RDONLY)
    except (OSError, InputError):
        return False
    try:
        return locked(handle, shared=True) is False
    finally:
        os.close(handle)


class Helper(Claim):
    """In a process that works for the one which holds the claim of ``lock``: files are listed there, and not
    remembered."""

    def __init__(self, folder: Path, lock: Path):
        self.folder, self.lock = folder, lock
        self.written, self.left = {}, set()
        self.handle = os.open(lock, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
        self.sign()
        held(self)

    def note(self, path: Path, content: Path) -> None:
        super().note(path, content)
        self.written.clear()

    def close(self) -> None:
        if let_go(self):
            os.close(self.handle)


def _shared(path: Path) -> Claim:
    """The lock of the whole folder, shared with the other parts. Who is alone removes what killed runs left."""
    while True:
        whole = take(path, path, path / LOCK, shared=True)
        if not whole.alone:
            return whole
        if whole.left:
            remove_temporary(path.glob(f"**/{TEMPORARY}*"))
        if locked(whole.handle, shared=True) is not False:
            return whole
        os.close(whole.handle)  # another was quicker


def _check_beside(path: Path, lock: Path, of: int) -> None:
    match = NAME.fullmatch(lock.name)
    if match and int(match[2]) != of and is_held(lock):
        raise InputError(
            f"`out` {path}: another run is writing shard {match[1]}/{match[2]} here; wait until it has ended, "
            f"or divide into {match[2]} as well"
        )


def _release(path: Path, whole: Claim | None, own: Claim | None, of: int, done: bool) -> None:
    """The folder's lock file goes with the last part, unless a killed run's list is still needed."""
    if own is not None:
        if done and of == 1:  # whatever others began is finished
            for lock in (path / PARTS).glob("*.lock"):
                lock.unlink(missing_ok=True)
        own.release(done)
    if whole is not None:
        if not (whole.written and of != 1) and locked(whole.handle) and not any((path / PARTS).glob("*.lock")):
            with suppress(OSError):
                whole.lock.unlink()
        os.close(whole.handle)
    with suppress(OSError):  # where a journal is in it
        (path / PARTS).rmdir()
