"""A journal outlives a kill in the middle of a line, and what is none of it; shards are disjoint and together all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anatomark.cases.case import Case
from anatomark.errors import InputError
from anatomark.io.parts import part_file
from anatomark.scale.journal import DONE, FAILED, End, Journal, Row, read_journal
from anatomark.scale.shard import Shard


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
        b'{"case": "a", "state": "done", "at": "x"}\n{"case": "a", "state": "done", "later": 1}\n' + b"[" * 9999 + b"\n"
    )
    assert [*read_journal(path)] == [Row("a", DONE)]


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
