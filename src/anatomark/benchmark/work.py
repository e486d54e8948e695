"""Doing the cells: each in processes of its own, so that memory is measured, and a crash stays, where it belongs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from anatomark.benchmark.cells import Cell, asked, fingerprint
from anatomark.benchmark.provenance import commit, machine
from anatomark.errors import InputError
from anatomark.evaluation.predictions import peak_memory_gb
from anatomark.io.atomic import read_json, write_json, write_text
from anatomark.model.run_folder import WEIGHTS
from anatomark.progress import Reporter, clock

RECORD = "cell.json"  # what a cell is and how it came about
SUMMARY = "summary.json"  # an evaluation is complete when it is there
CHILD = "anatomark.benchmark.child"
POLL_S = 0.2  # between two readings of a child's memory


class State(StrEnum):
    """How far a cell is."""

    NEW = "new"
    BEGUN = "begun"
    TRAINED = "trained"
    FAILED = "failed"
    FINISHED = "finished"


def state_of(cell: Cell) -> State:
    """How far a cell is. Raises InputError where what is there was made with other settings."""
    record = _record(cell)
    changed: list[str] = []
    if record and record.get("hash") != fingerprint(cell.key):
        changed = list(islice(_changed(record.get("key", {}), cell.key), 4)) or ["its settings"]
    elif "inputs" in record:  # earlier versions wrote none
        changed = list(islice(_changed(record["inputs"], cell.inputs), 4))
    if changed:
        raise InputError(
            f"{cell.name}: the suite or its data have changed since this cell was begun ({', '.join(changed)}); change "
            f"them back, remove {cell.folder}, or choose another `out`"
        )
    if (cell.evaluation / SUMMARY).exists():
        return State.FINISHED
    if cell.config is None and cell.evaluation.parent != cell.folder:
        raise InputError(f"{cell.name}: {cell.evaluation} holds no {SUMMARY}; evaluate writes it")
    if record.get("failed"):
        return State.FAILED
    if cell.predictions is not None or all((run / WEIGHTS).exists() for run in cell.runs):
        return State.TRAINED
    return State.BEGUN if record else State.NEW


def _changed(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The keys in which plain data differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for k in [*new, *(k for k in old if k not in new)]:
            yield from _changed(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
    elif old != new:
        short = not isinstance(new, list | dict) and len(f"{old}{new}") < 60
        yield f"{path}: {old} to {new}" if short else path


def _record(cell: Cell) -> dict[str, Any]:
    place = cell.folder / RECORD
    record = read_json(place) if place.exists() else {}
    if not isinstance(record, dict):
        raise InputError(f"{place}: expected keys and values")
    return record


def do_cell(cell: Cell, report: Reporter) -> str:
    """Train and evaluate what of a cell is not done. Returns why it failed, empty where it did not; the reason is kept,
    and the next call tries again. Raises InputError as :func:`state_of` does."""
    if state_of(cell) is State.FINISHED:
        return ""
    record = _record(cell) or {
        "schema": 1, "hash": fingerprint(cell.key), "key": cell.key, "inputs": cell.inputs, "machine": machine(),
        "commit": commit(),
    }  # fmt: skip
    record.pop("failed", None)
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_json(cell.folder / RECORD, record)
    reason = ""
    if cell.config is not None and not (cell.run / WEIGHTS).exists():
        write_text(cell.folder / "config.yaml", yaml.safe_dump(asked(cell.config), sort_keys=False))
        reason = _step(cell, "fit", _fit_command(cell), record, report)
    missing = [run for run in cell.members if not (run / WEIGHTS).exists()]
    if missing:
        reason = record["failed"] = f"ensemble: {missing[0]} is not trained"
        write_json(cell.folder / RECORD, record)
    if not reason:
        reason = _step(cell, "evaluate", _evaluate_command(cell), record, report)
    return reason


def _fit_command(cell: Cell) -> list[str]:
    begun = (cell.run / "config.yaml").exists() or (cell.run / "folds" / "1" / "config.yaml").exists()
    return _command(
        "fit", cell.manifest, config=cell.folder / "config.yaml", out=cell.run, resume=begun, folds=cell.folds,
        init=cell.init,
    )  # fmt: skip


def _evaluate_command(cell: Cell) -> list[str]:
    options: dict[str, Any] = {"out": cell.evaluation, "split": cell.split, "truth": cell.truth}
    if cell.predictions is None:  # a model
        device = cell.device if cell.config is None else cell.config.device
        options |= {"tta": cell.tta, "threads": cell.threads, "device": device}
    return _command("evaluate", cell.model, cell.manifest, **options)


def _command(*words: object, **options: object) -> list[str]:
    """A command line of anatomark; options that are None, False or 0 are left out, True stands without a value."""
    given = {f"--{name}": value for name, value in options.items() if value}
    return [str(w) for w in (*words, *(w for o, v in given.items() for w in ((o,) if v is True else (o, v))))]


def _step(cell: Cell, name: str, command: list[str], record: dict[str, Any], report: Reporter) -> str:
    """Run one command of a cell into ``<name>.log``; the record gets its seconds and peak memory, over all sittings."""
    log, facts = cell.folder / f"{name}.log", record.setdefault(name, {})
    began, before, start = time.monotonic(), facts.get("wall_seconds", 0.0), log.stat().st_size if log.exists() else 0
    peaks = [facts["peak_memory_gb"]] if "peak_memory_gb" in facts else []
    try:
        with open(log, "ab") as file:
            code = _run([sys.executable, "-m", CHILD, *command], file, peaks)
        if code:
            record["failed"] = f"{name}: {_why(code, log, start)}"
    finally:  # also of a sitting that is interrupted
        facts["wall_seconds"] = round(before + time.monotonic() - began, 1)
        if peaks:
            facts["peak_memory_gb"] = round(max(peaks), 4)
        write_json(cell.folder / RECORD, record)
    how = f"failed, see {log}" if code else f"done in {clock(time.monotonic() - began)}"
    report.say(f"  {name}: {how}")
    return str(record.get("failed", ""))


def _run(command: Sequence[str], log: Any, peaks: list[float]) -> int:
    """Exit code of a child, which dies with us; its peak resident memory in GB, so far as the system says it, is added
    to ``peaks`` while it runs. Linux is asked for the child's own (see ``peak_memory_gb``)."""
    paths = os.pathsep.join(dict.fromkeys(p for p in sys.path if p))  # the child finds what we find
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
    ) as child:  # the pipe closes when this process ends, however that is, and the child with it
        try:
            before = len(peaks)
            while (peak := peak_memory_gb(child.pid)) is not None:
                peaks[before:] = [max([peak, *peaks[before:]])]
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(POLL_S)
            if len(peaks) > before or not hasattr(os, "wait4"):
                return child.wait()
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            peaks.append(used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9)
            return child.returncode
        except BaseException:
            child.terminate()
            raise


def _why(code: int, log: Path, start: int) -> str:
    """Why a child failed: the signal that killed it, else the last line that it wrote behind ``start`` of the log."""
    if code < 0:
        return f"killed by signal {-code}" + (" (often: out of memory)" if code == -9 else "")
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"ended with code {code}"


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the work like Ctrl-C."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
