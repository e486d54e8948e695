"""The one error a user can cause: a clear line and exit code 2."""

from __future__ import annotations

import errno
from collections.abc import Sequence

REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
REFUSALS |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


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
    """Whether the user can mend it: bad input, or a disk that refuses."""
    return isinstance(error, InputError) or (isinstance(error, OSError) and error.errno in REFUSALS)


def reason_of(error: Exception) -> str:
    """Why something failed, in a line: an InputError's own, a disk's refusal, or that it is our fault."""
    if isinstance(error, InputError):
        return str(error)
    if is_users(error) and isinstance(error, OSError):
        what = "cannot be used" if error.errno == errno.ENAMETOOLONG else "cannot be written"
        return f"{str(error.filename or 'output')[:200]}: {what}: {error.strerror}"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first} (our fault, not yours)"


def nearest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word closest to ``word``; empty where none is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listed(names: Sequence[str], most: int = 8, quote: bool = False) -> str:
    """``a, b and 3 more``: the first ``most`` of the names; with ``quote`` each in quotation marks."""
    shown = [repr(name) if quote else name for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
