"""A running service for tests: the command in a process of its own, with the method of ``tiny.py``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import anatomark
import tiny

START_S = 240.0  # on a busy machine


def trained(folder: Path, ndim: int, cases: int = 6, steps: int = 40) -> Path:
    """The run folder of a small model, in ``folder``; its cases are in ``folder/data``."""
    from anatomark.progress import Reporter
    from anatomark.training.fit import fit

    tiny.register()
    study = tiny.write_study(folder / "data", cases, ndim=ndim)
    return fit(study, folder / f"tiny{ndim}d", method="tiny", steps=steps, report=Reporter(quiet=True)).run


def environment(folder: Path) -> dict[str, str]:
    """In which other processes know the method ``tiny``: as that of another package, by its entry point."""
    facts = folder / "tiny_method-1.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-method\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[anatomark.methods]\ntiny = tiny:Tiny\n")
    source = Path(anatomark.__file__).parents[1]
    paths = [str(source), str(Path(__file__).parent), str(folder)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


class Service:
    """The running command: its URL, what it said, its process; ``client`` speaks to it."""

    def __init__(self, process: subprocess.Popen[str], token: str | None):
        self.process, self.lines = process, []
        threading.Thread(target=self._listen, daemon=True).start()
        self.ready = threading.Event()
        self.url, self.token = "", token

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if match := re.search(r"anatomark is at (http://[^/]+)/", line):
                self.url = match[1]
                self.ready.set()
        self.ready.set()

    @property
    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.Client(base_url=self.url, timeout=120, headers=headers, trust_env=False)


@contextmanager
def running(folder: Path, *arguments: object, token: str | None = None) -> Iterator[Service]:
    """``anatomark ARGUMENTS`` with a free port, until it says where it is; killed in the end."""
    command = [sys.executable, "-m", "anatomark", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(folder)
    )
    service = Service(process, token)
    try:
        assert service.ready.wait(START_S) and service.url, "\n".join(service.lines)
        yield service
    finally:
        process.kill()
        process.wait()
