"""The one error a user can cause: a clear line and exit code 2."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Sequence

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
REFUSALS = FULL | {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
NAMES = {errno.ENAMETOOLONG, errno.ELOOP}
ALLOCATION = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)


class InputError(Exception):
    """Bad input or usage. The message names the file, the row, what was found and what would be right."""


class ManyInputErrors(InputError):
    """Several problems found in one reading (a manifest, say), all reported at once.

    ``problems`` holds one line each.
    """

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def is_users(error: Exception) -> bool:
    """Whether the user can mend it: bad input, too little memory, or a disk that refuses."""
    refused = isinstance(error, OSError) and error.errno in REFUSALS | NAMES
    return isinstance(error, InputError) or refused or _out_of_memory(error)


def reason_of(error: Exception) -> str:
    """Why something failed, in a line: an InputError's own, too little memory, a disk's refusal, or that it is our
    fault."""
    if isinstance(error, InputError):
        return str(error)
    if _out_of_memory(error):
        return "there is not enough memory for this; take smaller images, batches or blocks"
    if isinstance(error, OSError) and error.errno in NAMES:
        return f"{str(error.filename)[:200]}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in REFUSALS:
        what = "written" if error.errno in FULL else "read"  # what is written refuses in its own words
        return f"{str(error.filename or 'a file')[:200]}: cannot be {what}: {error.strerror}"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first} (our fault, not yours)"


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(ALLOCATION.search(str(error))))


def nearest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word closest to ``word``; empty where none is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_range(name: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raises InputError unless the option ``name`` is a finite number from ``low`` to ``high``; ``above``: greater than
    ``low``."""
    if (low < value if above else low <= value) and value <= high and value != math.inf:
        return
    first, last = (f"{limit:,}".removesuffix(".0") for limit in (low, high))
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    limits = f"above {first}" if above else f"from {first}"
    raise InputError(f"`{name}` {shown[:40]}: give a number {limits}" + (f" to {last}" if math.isfinite(high) else ""))


def counted(count: int, thing: str) -> str:
    """``1 case``, ``2 cases``: so many of a thing whose plural takes an s."""
    return f"{count} {thing}" + "s" * (count != 1)


def listed(names: Sequence[str], most: int = 8, quote: bool = False) -> str:
    """``a, b and 3 more``: the first ``most`` of the names; with ``quote`` each in quotation marks."""
    shown = [repr(name) if quote else name for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
