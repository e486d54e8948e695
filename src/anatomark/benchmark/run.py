"""``anatomark benchmark``: do what of a suite is not done, cell by cell, and write the tables after each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from anatomark.benchmark.cells import Cell, chosen, plan_cells
from anatomark.benchmark.results import Result, fewer_landmarks, read_result, same_truth
from anatomark.benchmark.suite import Suite, read_suite
from anatomark.benchmark.tables import table_files, write_tables
from anatomark.benchmark.work import State, do_cell, state_of, terminable
from anatomark.engine.base import Engine
from anatomark.engine.jobs import Job, Side, done
from anatomark.errors import InputError
from anatomark.io.claim import Claim, claimed
from anatomark.progress import Reporter, clock

LOG = "cell.log"  # of a cell that is done side by side with others


@dataclass(frozen=True)
class Benchmarked:
    """What a benchmark found, or with ``dry`` would do: the ``states`` of the cells asked for, reasons of those that
    ``failed``, ``files`` written, training ``minutes`` that are left (None: not all are known), ``notes`` on results
    that are not of all landmarks."""

    out: Path
    states: dict[str, State]
    failed: dict[str, str]
    files: list[Path]
    minutes: dict[str, float | None]
    dry: bool
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "cells": {n: {"state": str(s), "minutes_left": self.minutes[n]} for n, s in self.states.items()},
            "failed": self.failed,
            "files": [str(f) for f in self.files],
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """How much is finished and where the table is, or cell by cell what is to be done."""
        done = sum(s is State.FINISHED for s in self.states.values())
        if not self.dry:
            ends = [f"{done} of {len(self.states)} cells finished"]
            return ends + self.notes + ([f"table: {self.files[0]}"] if self.files else [])
        lines = []
        for name, state in self.states.items():
            budget = self.minutes[name]
            lines.append(f"{name}: {state}" + (f", {budget:g} min" if budget else ""))
        left = [m for m in self.minutes.values() if m]
        unknown = sum(m is None for m in self.minutes.values())
        more = f", and {unknown} of unknown length (no minutes given)" if unknown else ""
        return [*lines, f"{len(lines)} cells, {done} finished; about {clock(60 * sum(left))} of training left{more}"]


def benchmark(
    suite_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    minutes: float | None = None,
    dry_run: bool = False,
    tables_only: bool = False,
    engine: Engine | None = None,
    report: Reporter | None = None,
) -> Benchmarked:
    """Train and evaluate the cells of a suite that are not finished, one after the other, and write tables of all.

    ``only``: names of data sets and methods; ``minutes`` replaces the suite's budgets; ``dry_run`` only says what is to
    be done and writes nothing; ``tables_only`` trains nothing; an ``engine`` does cells side by side, each in processes
    of one thread, averages of them last. A cell that fails does not stop the others (``failed``);
    one that was killed goes on where it stood. Raises InputError for a bad suite, where a cell there was made with
    other settings, and where another run writes in ``out``.
    """
    path, out, report = Path(suite_path), Path(out), report or Reporter(quiet=True)
    suite = read_suite(path, minutes)
    cells = plan_cells(suite, path, out)
    asked = chosen(suite, cells, only)
    if dry_run:
        states = {c.name: state_of(c) for c in asked}
        return Benchmarked(out, states, {}, [], {c.name: _minutes_left(c, states[c.name]) for c in asked}, True)
    with claimed(out) as claim, terminable():
        _check_tables(out, suite, claim)
        states = {c.name: state_of(c) for c in cells}
        results = {c.name: r for c in cells if (r := read_result(c)) is not None}
        same_truth(list(results.values()))
        failed: dict[str, str] = {}
        todo = [] if tables_only else [c for c in asked if states[c.name] is not State.FINISHED]
        files = [] if todo or not results else _tables(suite, out, cells, results, states)
        side = None if engine is None else Side(engine, out, claim.lock)
        for cell, reason in _done(todo, side, report):
            if not reason:
                reason = _added(cell, results)
            if reason:
                failed[cell.name] = reason
                report.say(f"  {reason}")
            states[cell.name] = State.FAILED if reason else State.FINISHED
            if results:
                files = _tables(suite, out, cells, results, states)
    left = {c.name: _minutes_left(c, states[c.name]) for c in asked}
    notes = fewer_landmarks([results[c.name] for c in cells if c.name in results])
    return Benchmarked(out, {c.name: states[c.name] for c in asked}, failed, files, left, False, notes)


def _done(todo: Sequence[Cell], side: Side | None, report: Reporter) -> Iterator[tuple[Cell, str]]:
    """Each cell and why it failed, empty where it did not, as it is done; those that average others come last."""
    number = {cell.name: i + 1 for i, cell in enumerate(todo)}
    single, averages = [c for c in todo if not c.members], [c for c in todo if c.members]
    for cells in (todo,) if side is None else (single, averages):
        jobs = [
            Job(f"{c.name} ({number[c.name]} of {len(todo)}); log: {c.folder}", partial(do_cell, c), c.folder / LOG)
            for c in cells
        ]
        for k, reason in done(jobs, side, report):
            yield cells[k], reason


def _check_tables(out: Path, suite: Suite, claim: Claim) -> None:
    """Raises InputError where a table to write is there, of no benchmark."""
    *tables, record = table_files(suite, out)
    if not record.exists() and (strange := [f for f in tables if f.exists() and not claim.unfinished(f)]):
        raise InputError(f"{strange[0]}: exists already, and {out} holds no benchmark; choose another `out`")


def _added(cell: Cell, results: dict[str, Result]) -> str:
    """Add a fresh result; why not, where it does not fit the others."""
    try:
        result = read_result(cell)
        assert result is not None
        same_truth([*results.values(), result])
    except InputError as error:
        return str(error)
    results[cell.name] = result
    return ""


def _tables(
    suite: Suite, out: Path, cells: Sequence[Cell], results: dict[str, Result], states: dict[str, State]
) -> list[Path]:
    ordered = [results[c.name] for c in cells if c.name in results]
    return write_tables(suite, out, ordered, {c.name: str(states[c.name]) for c in cells})


def _minutes_left(cell: Cell, state: State) -> float | None:
    """Training minutes that a cell still takes at most; 0 where there is nothing to train, None where not known."""
    if cell.config is None or state in (State.FINISHED, State.TRAINED):
        return 0.0
    return cell.config.minutes
