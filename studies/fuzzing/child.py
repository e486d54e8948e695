"""The process in which inputs are tried, one after the other: what each gave, what it cost, where its voxels lie."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from pathlib import Path

import numpy as np

from anatomark import InputError, Landmarks, read_image, read_landmarks, read_manifest, write_landmarks
from anatomark.io import reader_process
from anatomark.io.images import image_grid
from fuzzing import truth

LONGEST = 20_000  # characters of a line: names of 5,000 are quoted
ASKS = "`spacing`"


def main() -> None:
    """Answers requests on standard input, a line of JSON each."""
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    answers.write("ready\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        before = _seconds()
        state, facts = tried(request["kind"], Path(request["path"]), request["apart"])
        answer = {"state": state, "said": facts[:300], "cpu": _seconds() - before, "gb": _peak_gb()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def tried(kind: str, path: Path, apart: bool) -> tuple[str, str]:
    """``read``, ``refused`` or ``fault``, and what was said of it."""
    work = {"landmarks": landmarks, "manifest": manifest, "definition": definition, "settings": settings,
            "options": command}.get(kind)  # fmt: skip
    try:
        return work(path) if work else image(path, apart)
    except InputError as error:
        lines = getattr(error, "problems", [str(error)])
        longest = max(map(len, lines), default=0)
        if any("\n" in line or not line.strip() for line in lines) or longest > LONGEST:
            return "fault", f"no clear line: {str(error)[:200]!r}"
        return "refused", str(error)
    except Exception as error:
        return "fault", f"{type(error).__name__}: {error}"


def image(path: Path, apart: bool) -> tuple[str, str]:
    """Read, with a spacing where the file asks for one, and held against another reading."""
    given: float | None = None
    try:
        read = read_image(path, apart=apart)
    except InputError as error:
        if ASKS not in str(error) or "was given" in str(error):
            raise
        given = 0.7
        read = read_image(path, given, apart=apart)
    grid = image_grid(path, given, apart=apart)
    if grid != read.grid:
        return "fault", "the header's grid is not the image's"
    if read.array.dtype.kind not in "iufb" or not np.isfinite(read.array.astype(np.float64)).all():
        return "fault", f"values of {read.array.dtype}, or not finite"
    if given is not None:
        return "read", "unchecked: with a given spacing"
    try:
        place = truth.place_of(path)
    except Exception as error:  # what others do not read is not held against them
        return "read", f"unchecked: {type(error).__name__}: {error}"
    if place is None:
        return "read", "unchecked: no other reading"
    distance = truth.apart(read.grid, place)
    return ("read", "checked") if distance <= 1e-3 else ("fault", f"silent geometry: {distance:.3g} mm apart")


def landmarks(path: Path) -> tuple[str, str]:
    """Read, with frame and unit where the file asks for them, written and read again."""
    try:
        read = read_landmarks(path, spacing=1)
    except InputError as error:
        if "`frame`" not in str(error) and "`unit`" not in str(error):
            raise
        read = read_landmarks(path, spacing=1, frame="LPS", unit="mm")
    for ending in ("mrk.json", "fcsv", "csv", "json") if len(read) else ():
        written = path.parent / f"written.{ending}"
        write_landmarks(read, written, spacing=1.0)
        again = read_landmarks(written)
        if not _same(read, again):
            return "fault", f"not the same when read back from {ending}"
    return "read", ""


def _same(one: Landmarks, other: Landmarks) -> bool:
    both = one.points[:, : min(one.ndim, other.ndim)], other.points[:, : min(one.ndim, other.ndim)]
    return one.names == other.names and np.allclose(*both, rtol=1e-9, equal_nan=True)


def manifest(path: Path) -> tuple[str, str]:
    return "read", f"{len(read_manifest(path).cases)} cases"


def definition(path: Path) -> tuple[str, str]:
    from anatomark.tools.definitions import read_definition
    from anatomark.tools.measure.schema import Measurements
    from anatomark.tools.planes.schema import PlaneSet

    planes = "planes" in path.name or "planes:" in path.read_text(encoding="utf-8", errors="replace")
    read_definition(path, PlaneSet if planes else Measurements, "planes" if planes else "measurements")
    return "read", ""


def settings(path: Path) -> tuple[str, str]:
    from anatomark.benchmark.suite import read_suite
    from anatomark.model.config import make_config

    if path.name.startswith("suite"):
        read_suite(path)
    else:
        make_config(path)
    return "read", ""


def command(path: Path) -> tuple[str, str]:
    """The command line in this process: exit code 0 or 2, one line."""
    from anatomark.cli.app import main as run

    said = io.StringIO()
    os.chdir(path.parent.parent)  # where a damaged line writes
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            run(json.loads(path.read_text()))
    except SystemExit as end:
        return {0: "read", 2: "refused"}.get(int(end.code or 0), "fault"), said.getvalue().strip()[-300:]
    return "fault", "did not end"


def _seconds() -> float:
    """Processor time of this process and of the one in which images are read."""
    used, other = time.process_time(), _other()
    if other:
        fields = Path(f"/proc/{other}/stat").read_text().rsplit(")", 1)[1].split()
        used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def _peak_gb() -> float:
    """The most memory that either of the two had at once so far."""
    peaks = []
    for process in ("self", *([str(_other())] if _other() else [])):
        status = Path(f"/proc/{process}/status").read_text()
        line = next((x for x in status.splitlines() if x.startswith("VmHWM")), "VmHWM: 0 kB")
        peaks.append(int(line.split()[1]) * 1024 / 1e9)
    return max(peaks)


def _other() -> int:
    reader = reader_process._reader
    return reader.process.pid if reader is not None and reader.process.poll() is None else 0
