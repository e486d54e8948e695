"""A short run of the fuzzer, and that it sees each kind of fault."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from anatomark import Grid, Image
from fuzzing import child, images, texts, truth

SLOW = ("manifest", "settings", "options", "bomb")  # need more than readers
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and time of a process are read from /proc")


def test_no_input_is_at_fault(study: Callable[[str], ModuleType], tmp_path: Path) -> None:
    fuzz = study("fuzz")
    inputs = (fuzz.made(n, 2, tmp_path / "input") for n in range(160))
    seen = [(one.kind, counts, said) for one, counts, said in fuzz.outcomes(i for i in inputs if i.kind not in SLOW)]
    assert [row for row in seen if "faults" in row[1]] == []
    assert {kind for kind, _, _ in seen} == {*fuzz.MAKERS} - {*SLOW}
    for count in ("read", "checked", "refused"):
        assert sum(count in counts for _, counts, _ in seen) > 20


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "metaimage", "mgh", "dicom series", "dicom frames"])
def test_a_shift_is_silent_geometry(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, said = "", ""
    seeds = iter(range(20))
    while said != "checked":  # some state no geometry
        path = images.MAKERS[kind](texts.clear(tmp_path / "a"), np.random.default_rng(next(seeds)))
        state, said = child.tried(kind, path, False)
    assert state == "read"
    read = child.read_image(path)
    grid = Grid.from_axes(read.grid.shape, read.grid.axes, read.grid.origin + 0.01)
    monkeypatch.setattr(child, "read_image", lambda *_, **__: Image(read.array, grid, read.meta))
    monkeypatch.setattr(child, "image_grid", lambda *_, **__: grid)
    assert child.tried(kind, path, False)[0] == "fault"
    place = truth.place_of(path)
    assert place is not None and truth.apart(grid, place) > 1e-3


def test_an_error_that_is_no_input_error_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(child, "read_landmarks", fails)
    assert child.tried("landmarks", tmp_path / "a.csv", False) == ("fault", "KeyError: 'x'")


def test_a_process_that_is_killed_is_seen_and_replaced(
    study: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz = study("fuzz")
    ends = "import os, sys; {!r}; print('ready', flush=True); sys.stdin.readline(); os.kill(os.getpid(), 6)"
    monkeypatch.setattr(fuzz, "CHILD", ends)
    one = fuzz.Input(0, "nifti", tmp_path, False)
    for _, counts, said in fuzz.outcomes(iter([one, one])):
        assert counts == ["faults", "killed"] and str(-signal.SIGABRT) in said
