"""A journal outlives a kill in the middle of a line, and what is none of it; shards are disjoint and together all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from anatomark.cases.case import Case
from anatomark.errors import InputError
from anatomark.io.parts import part_file
from anatomark.scale.journal import DONE, FAILED, End, Journal, Row, Run, digest_of, merge, read_journal, write_list
from anatomark.scale.shard import Shard
from anatomark.scale.status import status


def _journal(out: Path) -> Journal:
    part_file(out, 1, 1, "jsonl").parent.mkdir(exist_ok=True)
    return Journal(out, Shard())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [
        Row("a", DONE, "", 0.5, True, "m", "k", 7.25),
        Row("é\udcff b", FAILED, "cannot be read:\n'x'", model="m", key="missing", at=8.0),
    ]
    journal = _journal(tmp_path)
    for row in rows:
        journal.add(row)
    journal.end()
    journal.close()
    assert [*read_journal(journal.path)] == [*rows, End()]


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.add(Row("a", DONE))
    journal.add(Row("b", DONE))
    journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-9])
    journal = _journal(tmp_path)
    journal.add(Row("c", DONE))
    journal.close()
    assert [row.case for row in read_journal(journal.path) if isinstance(row, Row)] == ["a", "c"]


def test_lines_that_are_none_of_ours_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(
        b'\xff\xfe\n[1]\n7\n{}\n{"case": 3, "state": "done"}\n{"case": "a", "state": "odd"}\n{"run": 1}\n{"run": {}}\n'
        b'{"case": "a", "state": "done", "at": "x"}\n{"case": "a", "state": "done", "at": NaN}\n'
        b'{"case": "a", "state": "done", "at": 1%s}\n{"case": "a", "state": "done", "later": 1}\n'
        % (b"0" * 400)
        + b"[" * 9999
        + b"\n"
    )
    assert [*read_journal(path)] == [Row("a", DONE)]


@pytest.mark.parametrize("facts", [{"of": 0}, {"shard": 2}, {"of": 10**9}, {"total": 1}, {"cases": -1}])
def test_a_run_that_cannot_be_is_left_out(tmp_path: Path, facts: dict[str, int]) -> None:
    run = asdict(Run(1, 1, 2, 2, "x", "m", "model", "here", 1, 1, 5.0))
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps({"run": run | facts}) + "\n")
    assert not [*read_journal(path)]
    path.write_text(json.dumps({"run": run}) + "\n")
    assert [*read_journal(path)] == [Run(**run)]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.parents[2] / "mine")])
def test_a_journal_that_is_no_file_of_ours_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "mine").write_text("mine")
    path = part_file(tmp_path / "out", 1, 1, "jsonl")
    path.parent.mkdir(parents=True)
    make(path)
    for work in (lambda: status(tmp_path / "out"), lambda: _journal(tmp_path / "out")):
        with pytest.raises(InputError, match=r"is (no regular file|a symbolic link); move it away"):
            work()
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_stands_later_in_a_journal_counts_where_the_clock_was_set_back(tmp_path: Path) -> None:
    run = Run(1, 1, 1, 1, "x", "m", "model", "here", 1, 1, 5.0)
    journal = _journal(tmp_path)
    journal.add(Row("a", FAILED, "no", model="m", at=9e9))
    journal.begin(run)
    journal.add(Row("a", DONE, model="m", at=6.0))
    journal.end()
    journal.close()
    (tmp_path / "a.json").write_text("{}")
    assert status(tmp_path).complete


@pytest.mark.parametrize(("first", "second"), [(1.0, 2.0), (2.0, 1.0)])
def test_between_journals_the_later_time_counts(first: float, second: float) -> None:
    rows: dict[str, Row] = {}
    merge(rows, {"a": Row("a", FAILED, "no", at=first)})
    merge(rows, {"a": Row("a", DONE, at=second)})
    assert rows["a"].state == (DONE if second > first else FAILED)


@pytest.mark.parametrize("damaged", [False, True])
def test_cases_that_are_no_more_in_the_list_do_not_count(tmp_path: Path, damaged: bool) -> None:
    journal = _journal(tmp_path)
    for name in ("gone", "also gone", "a"):
        journal.add(Row(name, DONE, model="m", at=4.0))
        (tmp_path / f"{name}.json").write_text("{}")
    journal.add(Row("broken and gone", FAILED, "no", model="m", at=4.0))
    names = ["a", "b\n\udcff"]
    write_list(tmp_path, names)
    if damaged:
        (file,) = journal.path.parent.glob("cases-*")
        file.write_text("[1")
        write_list(tmp_path, names)
    journal.begin(Run(1, 1, 2, 2, digest_of(names), "m", "model", "here", 1, 1, 5.0))
    journal.end()
    journal.close()
    found = status(tmp_path)
    assert (found.done, found.left, found.failed, found.complete) == (1, 1, [], False)


def test_status_loads_no_torch() -> None:
    code = "import sys, anatomark.scale.status; sys.exit('torch' in sys.modules)"
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    assert subprocess.run([sys.executable, "-c", code], env=where).returncode == 0


@pytest.mark.parametrize("of", [1, 3, 7, 12])
def test_shards_are_disjoint_and_together_all(of: int) -> None:
    cases = [Case(name) for name in "hgfedcba"]
    parts = [[c.id for c in Shard(k, of).pick(cases)] for k in range(1, of + 1)]
    assert sorted(name for part in parts for name in part) == list("abcdefgh")
    assert parts == [[c.id for c in Shard(k, of).pick(cases[::-1])] for k in range(1, of + 1)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1.0/3", "²/3", "1/9999999"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    assert Shard.parse("3/20") == Shard(3, 20)
    with pytest.raises(InputError, match=r"`shard` .*: give K/N"):
        Shard.parse(text)
