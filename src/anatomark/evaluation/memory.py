"""How much memory a process took."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def peak_memory_gb(pid: int | None = None) -> float | None:
    """Largest resident memory so far in GB, of this process or, on Linux, of ``pid``; None where the system does not
    say. Linux carries a parent's peak over into what ``getrusage`` says of its child, so its VmHWM is read instead."""
    with suppress(OSError):  # no such file elsewhere, and none of a process that has ended
        for line in Path(f"/proc/{pid or 'self'}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    if pid is not None:
        return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
