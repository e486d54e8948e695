"""Python processes that work for this one over pipes: of so many torch threads, ended with all that belongs to them."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def start_child(code: str, threads: int = 1) -> subprocess.Popen[bytes]:
    """Run Python ``code`` in a process of so many threads, its standard input and output as pipes; what it prints on
    its own goes nowhere. Raises OSError where none can be started."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
    )


def end_child(process: subprocess.Popen[bytes] | None) -> None:
    """End a process, if there is one, and wait until it has."""
    if process is None:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not sent
                pipe.close()
