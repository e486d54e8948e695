"""How many workers predict where nobody says."""

from __future__ import annotations

from pathlib import Path

import pytest

from anatomark.engine import local
from anatomark.model import worker
from anatomark.model.worker import MANY, usual_workers


def test_usual_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"0" * 1_000_000)
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 9 kB\nMemAvailable: 20000000 kB\n")
    monkeypatch.setattr(worker, "cores", lambda: 8)
    monkeypatch.setattr(worker, "MEMORY", memory)
    assert usual_workers([image] * (MANY - 1), "cpu") == 1
    assert usual_workers([image] * MANY, "cpu") == 8
    assert usual_workers([image] * MANY, "cpu", threads=4) == 2
    assert usual_workers([image] * MANY, "cpu", threads=16) == 1
    memory.write_text("MemAvailable: 7000000 kB\n")
    assert usual_workers([image] * MANY, "cpu") == 3
    memory.write_text("MemAvailable: 70000 kB\n")
    assert usual_workers([image] * MANY, "cpu") == 1
    memory.unlink()
    assert usual_workers([image] * MANY, "cpu") == 8


def test_cores_are_those_of_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(local, "QUOTA", tmp_path / "cpu.max")
    assert local.cores() == 8
    for text, count in (("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), ("", 8)):
        local.QUOTA.write_text(text + "\n")
        assert local.cores() == count
