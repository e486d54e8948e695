"""One writer per output: a lock that dies with its process, and a list by which the next run knows what a killed one
wrote."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import socket
import stat
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anatomark.errors import InputError

Where = str | os.PathLike[str]  # of a file or folder
LOCK = ".anatomark.lock"
PARTS = ".anatomark"  # folder of the locks and journals of parts, see ``io.parts``
TEMPORARY = ".tmp-"  # what a killed process may leave behind begins with this
LONGEST = 3600  # bytes of an output's path, so that those of the files in it stay below the 4096 of most systems
WAIT_S = 2.0  # for a run that is just ending
PATIENCE = 30  # times longer for one that shares, and first removes what a killed run left
TAKEN = {errno.EAGAIN, errno.EACCES}  # by another; other errors mean that the file system knows no locks
TAIL = 32  # characters of a long name that are kept, so that a name of our own fits beside it

_claims: list[Claim] = []  # of this process, the innermost last


class Claim:
    """An output that this process alone writes to, as long as its lock file is open. The lock file lists the SHA-256 of
    each file about to appear in ``folder``; only a run that does not come to its end leaves it there."""

    def __init__(self, folder: Path, lock: Path, handle: int, alone: bool | None = True):
        self.folder, self.lock, self.handle = folder, lock, handle
        self.alone = alone  # nobody shares the lock; None where there are no locks
        self.written: dict[str, set[str]] = {}
        self.left: set[int] = set()  # processes that did not come to their end
        self.learn(lock)
        self.sign()

    def learn(self, lock: Path) -> None:
        """Know the list of another run that did not come to its end."""
        for entry in _entries(lock):
            if isinstance(entry, list):
                self.written.setdefault(str(entry[0]), set()).add(str(entry[1]))
            elif isinstance(entry, dict) and isinstance(process := entry.get("process"), int):
                self.left.add(process)

    def sign(self) -> None:
        """Say which process writes here."""
        self._add({"process": os.getpid(), "host": socket.gethostname()})

    def unfinished(self, path: Path) -> bool:
        """Whether ``path`` is as a run left it that did not come to its end: its own half-done work, nobody else's."""
        hashes = self.written.get(_name(path, self.folder), ())
        try:
            return bool(hashes) and _sha256(path) in hashes
        except OSError:
            return False

    def note(self, path: Path, content: Path) -> None:
        """Before ``path`` appears: what it will hold."""
        name, digest = _name(path, self.folder), _sha256(content)
        self.written.setdefault(name, set()).add(digest)
        self._add([name, digest])

    def release(self, done: bool) -> None:
        """Let go of the output; the list stays where the run is not ``done`` and something of it is there."""
        if not done:
            self.learn(self.lock)  # what its helpers wrote
        if done or not any((self.folder / name).exists() for name in self.written):
            with suppress(OSError):  # while it is locked: nobody can have taken it over
                self.lock.unlink()
        os.close(self.handle)

    def _add(self, entry: object) -> None:
        os.write(self.handle, f"\n{json.dumps(entry)}\n".encode())


@contextmanager
def claimed(out: Where, *, beside: bool = False) -> Iterator[Claim]:
    """Take the folder ``out`` (made where it is missing), or with ``beside`` a file or folder of that name that is yet
    to appear, so that no other run writes there. Where the work raises, empty folders that were made are removed.

    Raises InputError, before any work, where another run has it, or nothing can be written there. The lock is the
    system's (flock): it ends with its process, however that ends, and holds on the file systems that know it, between
    machines too (NFS from version 4 on); where there is none (Windows, some network drives) nothing is locked.
    """
    path = Path(out)
    folder = path.parent if beside else path
    there = existing(folder)
    try:
        check_out(path, beside)
        claim = take(path, folder, folder / (f".anatomark-{path.name[-TAIL:]}.lock" if beside else LOCK))
        if beside:
            for process in claim.left:
                remove_temporary(folder.glob(f"{TEMPORARY}{process}-*"))
        else:
            for lock in folder.glob(f"{PARTS}/*.lock"):
                claim.learn(lock)
            if claim.left:
                remove_temporary(folder.glob(f"**/{TEMPORARY}*"))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        remove_empty(folder, there)
        raise refused(path, error) from None
    _claims.append(claim)
    done = False
    try:
        yield claim
        done = True
    finally:
        if claim in _claims:  # not so in a forked process
            _claims.remove(claim)
            claim.release(done)
            if not done:
                remove_empty(folder, there)


def refused(path: Path, error: Exception) -> InputError:
    """That the system refuses ``path`` as an output."""
    return InputError(f"`out` {_shown(path)}: cannot be written into: {getattr(error, 'strerror', None) or error}")


def held(claim: Claim) -> None:
    """From now on what appears in the folder of ``claim`` is noted there, until the process ends."""
    _claims.append(claim)


def let_go(claim: Claim) -> bool:
    """The end of :func:`held`; False in a forked process, which holds none."""
    there = claim in _claims
    if there:
        _claims.remove(claim)
    return there


def note(path: Path, content: Path) -> None:
    """Before ``path`` appears with the content of the file ``content``: tell the claim that it belongs to, if any."""
    claim = next((c for c in reversed(_claims) if c.folder in path.parents), None)
    if claim is not None:
        claim.note(path, content)


def check_sources(files: Iterable[Path], sources: Iterable[Path], work: str) -> None:
    """Raises InputError where one of the ``files`` to write is one of the ``sources`` of the ``work``, a word such as
    "crop": these are never replaced."""
    there = [f for f in files if os.path.exists(f)]
    kept = {os.path.realpath(source) for source in sources} if there else set()
    if own := next((f for f in there if os.path.realpath(f) in kept), None):
        raise InputError(f"{own}: is one of the files to {work}; choose another `out`")


def is_passing(name: str) -> bool:
    """Whether a file of this name is a lock, or what a killed process was writing."""
    return name.startswith(TEMPORARY) or (name.startswith(".anatomark") and name.endswith(".lock"))


def remove_temporary(left: Iterable[Path]) -> None:
    """Remove files and folders that a process which was killed in the middle of writing left."""
    for path in [p for p in left if p.name.startswith(TEMPORARY)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def existing(folder: Path) -> Path:
    """The nearest folder at or above ``folder`` that exists."""
    return next((f for f in (folder, *folder.parents) if os.path.exists(f)), folder)


def remove_empty(folder: Path, until: Path) -> None:
    """Remove ``folder`` and its parents, as far as they are empty, up to but not including ``until``."""
    while folder != until and until in folder.parents:
        with suppress(OSError, ValueError):
            folder.rmdir()
        folder = folder.parent


def check_out(path: Path, beside: bool) -> None:
    """Raises InputError or OSError for a name that cannot be one."""
    try:
        text = os.fspath(path).encode().decode()
    except UnicodeEncodeError:
        raise InputError(f"`out` {_shown(path)}: the name is not UTF-8; choose another") from None
    if any(unicodedata.category(c) == "Cc" for c in text):
        raise InputError(f"`out` {_shown(path)}: the name holds a control character, such as a line's end")
    if len(text.encode()) > LONGEST:
        raise InputError(f"`out` {_shown(path)}: the name is too long")
    mode = None
    with suppress(FileNotFoundError, NotADirectoryError):  # a parent that is a file is named below
        mode = path.stat().st_mode
    if mode is None and path.is_symlink():
        raise InputError(f"`out` {path}: is a symbolic link to nothing; choose another `out`")
    if beside and mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"`out` {path}: is no regular file; choose another `out`")
    folder = path.parent if beside else path
    there = existing(folder)
    if not there.is_dir():
        which = "" if there == path else f"{there} "
        raise InputError(f"`out` {path}: cannot be written into: {which}is a file; give a folder")


def take(path: Path, folder: Path, lock: Path, *, shared: bool = False) -> Claim:
    """The claim of a lock file, for the output ``path``. ``shared``: with others that share it, ``alone`` (and until
    :func:`locked` shares it) where there are none. Raises InputError where another run has it, and OSError."""
    until = time.monotonic() + WAIT_S * (PATIENCE if shared else 1)
    while True:
        missing = itertools.takewhile(lambda f: not os.path.exists(f), (lock.parent, *lock.parent.parents))
        for parent in reversed([*missing]):
            parent.mkdir(exist_ok=True)
        try:
            handle = open_regular(lock, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except FileNotFoundError:  # another run has just removed the folder that it had made
            if time.monotonic() > until:
                raise
            continue
        try:
            alone = locked(handle)
            free = alone is not False or (shared and locked(handle, shared=True) is not False)
            if free and os.path.samestat(os.fstat(handle), os.stat(lock)):
                return Claim(folder, lock, handle, alone)
        except FileNotFoundError:  # removed by the run that had it
            free = True
        except OSError:  # a full disk
            with suppress(OSError):
                if not os.fstat(handle).st_size:
                    lock.unlink()
            os.close(handle)
            raise
        os.close(handle)
        if not free and time.monotonic() > until:
            holder = next((e for e in reversed(_entries(lock)) if isinstance(e, dict)), {})
            who = " ({process} on {host})".format_map({"process": "?", "host": "?", **holder}) if holder else ""
            raise InputError(
                f"`out` {path}: another run{who} is writing here; wait until it has ended, or choose another `out`"
            )
        time.sleep(0.05)


def open_regular(path: Path, flags: int) -> int:
    """Open one of our own files, without waiting for a pipe's other end. Raises OSError, and InputError where it is a
    link or no regular file."""
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link; move it away")
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    handle = os.open(path, flags, 0o666)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise InputError(f"{path}: is no regular file; move it away")


def locked(handle: int, *, shared: bool = False) -> bool | None:
    """Lock an open file, if it is free; whether it was. None where the file system knows no locks. A lock
    that is held and cannot be changed is lost."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in TAKEN else None
    return True


def _entries(lock: Path) -> list[object]:
    """The lines of a lock file; one that was not written whole is left out."""
    entries: list[object] = []
    with suppress(OSError, InputError), open(open_regular(lock, os.O_RDONLY), "rb") as file:
        for line in file.read().splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) or (isinstance(entry, list) and len(entry) == 2):
                    entries.append(entry)
    return entries


def _name(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(path: Path) -> str:
    text = ascii(os.fspath(path))[1:-1] if not os.fspath(path).isprintable() else str(path)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(path.name)} characters)"


def _let_go() -> None:
    """A forked process holds no lock: what outlives its parent would keep the output."""
    for claim in _claims:
        os.close(claim.handle)
    _claims.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
