"""Parts of a folder are written side by side; the whole, or parts of another count, not meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from anatomark.errors import InputError
from anatomark.io import claim
from anatomark.io.atomic import write_text
from anatomark.io.claim import LOCK, PARTS, claimed
from anatomark.io.parts import Helper, claimed_part, is_held, part_file


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "WAIT_S", 0.0)


def test_parts_lie_side_by_side_and_leave_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with claimed_part(out, 1, 3) as first, claimed_part(out, 3, 3):
        assert is_held(first.lock) and not is_held(part_file(out, 2, 3, "lock"))
        for taken in (lambda: claimed_part(out, 1, 3), lambda: claimed_part(out, 1, 2), lambda: claimed(out)):
            with pytest.raises(InputError, match=r"another run .*is writing"), taken():
                pass
        (out / "result").write_text("")
    assert [p.name for p in out.iterdir()] == ["result"]
    with claimed(out), pytest.raises(InputError, match="another run"), claimed_part(out, 1, 3):
        pass
    assert [p.name for p in out.iterdir()] == ["result"]


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claimed_part(tmp_path / "a" / "out", 1, 2):
        raise KeyError
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"), claimed_part(tmp_path / "file", 1, 2):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _killed_in(out: Path, part: int, of: int) -> None:
    """A process whose helper writes a file, is in the middle of another, and is killed."""
    if (pid := os.fork()) == 0:
        with claimed_part(out, part, of) as own:
            Helper(out, own.lock)
            write_text(out / f"{part}.txt", "ours")
            (out / f".tmp-{os.getpid()}-x").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_a_killed_part_wrote_is_known_to_every_later_run(tmp_path: Path) -> None:
    _killed_in(tmp_path, 2, 3)
    done = tmp_path / "2.txt"
    with claimed_part(tmp_path, 1, 3) as first:
        assert first.unfinished(done)
        assert not [*tmp_path.glob(".tmp-*")]
    assert (tmp_path / LOCK).exists() and part_file(tmp_path, 2, 3, "lock").exists()
    with pytest.raises(KeyError), claimed(tmp_path) as whole:
        assert whole.unfinished(done)
        raise KeyError
    with claimed_part(tmp_path, 1, 1) as everything:
        assert everything.unfinished(done)
        done.write_text("corrected")
        assert not everything.unfinished(done)
    assert [p.name for p in tmp_path.iterdir()] == ["2.txt"]


def test_what_runs_beside_keeps_its_temporary_files(tmp_path: Path) -> None:
    _killed_in(tmp_path, 2, 2)
    with claimed_part(tmp_path, 1, 2):
        mine = tmp_path / ".tmp-1-mine"
        mine.write_text("")
        with claimed_part(tmp_path, 2, 2):
            assert mine.exists()
    assert not (tmp_path / PARTS).exists()


def test_a_list_of_a_killed_whole_run_stays_until_all_is_done(tmp_path: Path) -> None:
    if (pid := os.fork()) == 0:
        with claimed(tmp_path):
            write_text(tmp_path / "half.txt", "ours")
            os._exit(9)
    os.waitpid(pid, 0)
    with claimed_part(tmp_path, 1, 2) as part:
        assert part.unfinished(tmp_path / "half.txt")
    with claimed(tmp_path) as whole:
        assert whole.unfinished(tmp_path / "half.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["half.txt"]


def test_parts_that_begin_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "WAIT_S", 2.0)
    _killed_in(tmp_path, 9, 9)  # who comes first cleans up

    def begun(k: int) -> int:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                with claimed_part(tmp_path, k, 9):
                    code = 0
            finally:
                os._exit(code)
        return pid

    assert [os.waitpid(pid, 0)[1] for pid in [begun(k) for k in range(1, 9)]] == [0] * 8
    assert (tmp_path / LOCK).exists() and not [*tmp_path.glob(".tmp-*")]


def test_a_lock_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    lock = part_file(tmp_path, 1, 2, "lock")
    lock.parent.mkdir()
    os.mkfifo(lock)
    with pytest.raises(InputError, match="is no regular file"), claimed_part(tmp_path, 1, 2):
        pass
    with claimed_part(tmp_path, 2, 2):  # it is beside this one, and read
        assert not is_held(lock)
