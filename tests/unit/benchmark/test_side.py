"""Cells side by side: all of them once, averages behind the runs that they average, in processes that engines start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anatomark.benchmark import run
from anatomark.engine.jobs import Side
from anatomark.progress import Reporter


class Backwards:
    """An engine that needs no process and does the last first."""

    workers = 2

    def __call__(self, start: Callable[[], Any], items: Iterable[Any], threads: int = 1) -> Iterator[tuple[Any, Any]]:
        worker = start()
        yield from ((item, worker(item)) for item in reversed([*items]))
        worker.close()


def test_averages_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"a": (), "both": (tmp_path / "a", tmp_path / "b"), "b": ()}
    cells: Any = [SimpleNamespace(name=n, folder=tmp_path / n, members=m) for n, m in members.items()]

    def do(cell: Any, report: Reporter) -> str:
        report.say(f"doing {cell.name}")
        return "failed" if cell.name == "b" else ""

    monkeypatch.setattr(run, "do_cell", do)
    (tmp_path / "lock").touch()
    side = Side(Backwards(), tmp_path, tmp_path / "lock")
    made = [(c.name, reason) for c, reason in run._done(cells, side, Reporter(quiet=True))]
    assert made == [("b", "failed"), ("a", ""), ("both", "")]
    assert (tmp_path / "both" / run.LOG).read_text() == "doing both\n"
    assert [c.name for c, _ in run._done(cells, None, Reporter(quiet=True))] == ["a", "both", "b"]
