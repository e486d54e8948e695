"""Trainings side by side give the models that one process gives, one after the other."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import service
import tiny
from anatomark.cli import app as cli
from anatomark.engine.local import Processes
from anatomark.errors import InputError
from anatomark.io.images import read_image
from anatomark.model.predict import load
from anatomark.progress import Reporter
from anatomark.training.fit import fit
from anatomark.training.members import Members, fit_members

QUIET = Reporter(quiet=True)
SAME = ("weights.safetensors", "calibration.json", "plan.json", "request.yaml")  # times and paths stand in the others


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("side")
    tiny.register()
    service.environment(folder)
    sys.path.insert(0, str(folder))  # worker processes find the method there
    yield tiny.write_study(folder / "data", 6, ndim=2, size=16)
    sys.path.remove(str(folder))


def _same(one: Path, two: Path, runs: tuple[str, ...]) -> bool:
    return all((one / run / f).read_bytes() == (two / run / f).read_bytes() for run in runs for f in SAME[:3])


def _members(study: Path, out: Path, **how: Any) -> Members:
    return fit_members(study, out, **{"method": "tiny", "steps": 6, "members": 2, "report": QUIET, **how})


def test_folds(study: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for out, engine in ((one, None), (two, Processes(2))):
        fit(study, out, method="tiny", steps=6, folds=2, engine=engine, report=QUIET)
    assert _same(one, two, (".", "folds/1", "folds/2"))
    for name in ("out_of_fold.csv", "out_of_fold.json"):
        assert (one / "folds" / name).read_bytes() == (two / "folds" / name).read_bytes()
    assert "validation" in (two / "folds" / "1" / "fit.log").read_text()
    assert not (two / "folds" / "cache").exists()


def test_members(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    _members(study, one)
    made = _members(study, two, engine=Processes(2))
    assert _same(one, two, ("1", "2"))
    assert [m.run for m in made.members] == [two / "1", two / "2"]
    assert (one / "1" / SAME[0]).read_bytes() != (one / "2" / SAME[0]).read_bytes()

    image = read_image(study.parent / "case0.png", 2.0)
    both = [load(one / k).predict(image).landmarks.points for k in ("1", "2")]
    assert np.allclose(load(one).predict(image).landmarks.points, np.mean(both, 0), equal_nan=True)

    before = (one / "2" / SAME[0]).stat().st_mtime_ns
    with pytest.raises(InputError, match="already holds members; add `resume`"):
        _members(study, one)
    shutil.rmtree(one / "1")
    _members(study, one, resume=True)
    assert _same(one, two, ("1", "2")) and (one / "2" / SAME[0]).stat().st_mtime_ns == before

    (two / "mine.txt").touch()
    with pytest.raises(InputError, match=r"holds mine\.txt, which is of no ensemble"):
        _members(study, two, resume=True)


def test_the_first_member_settles_the_time(study: Path, tmp_path: Path) -> None:
    made = _members(study, tmp_path, steps=None, minutes=0.02)
    configs = [load(m.run).run.config for m in made.members]  # type: ignore[union-attr]
    assert configs[0].stage_steps == configs[1].stage_steps and configs[0].stage_steps
    assert [c.seed for c in configs] == [0, 1]


def test_what_fails_in_a_worker_is_said_as_here(study: Path, tmp_path: Path) -> None:
    for engine in (None, Processes(1)):
        with pytest.raises(InputError, match="no-such-model"):
            fit(study, tmp_path / "run", method="tiny", steps=4, folds=2, init="no-such-model", engine=engine)
        with pytest.raises(InputError, match="no-such-model"):
            _members(study, tmp_path / "members", init="no-such-model", engine=engine)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--members", "2", "--folds", "2"], "--members and --folds: give one of them"),
        (["--jobs", "2"], "--jobs and --engine are for several trainings"),
        (["--folds", "2", "--engine", "local", "--ray-address", "auto"], "--ray-address is of --engine ray"),
    ],
)
def test_wrong_options_are_one_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["fit", str(study), "--out", str(tmp_path / "run"), *options])
    assert ended.value.code == 2 and not (tmp_path / "run").exists()
    assert said in capsys.readouterr().err
