"""A run that was stopped, anywhere and however hard, ends exactly as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import tiny
from anatomark.cli import app as cli
from anatomark.errors import InputError
from anatomark.model.config import RunConfig, make_config, read_config
from anatomark.model.predict import load
from anatomark.model.run_folder import load_run
from anatomark.progress import Reporter
from anatomark.training import loop
from anatomark.training.fit import Fitted, fit

tiny.register()
QUIET = Reporter(quiet=True)


class Stopped(BaseException):
    pass


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_study(tmp_path_factory.mktemp("study"), 6)


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Fitted]:
    """What was never stopped, by its settings."""

    @cache
    def trained(*settings: str) -> Fitted:
        return fit(study, tmp_path_factory.mktemp("whole") / "run", config(*settings), report=QUIET)

    return trained


def config(*settings: str) -> RunConfig:
    """18 steps of the first stage, 12 of the second."""
    return make_config(method="tiny", steps=30, assignments=[*settings, "validate_every={rough: 5, fine: 4}"])


def _stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Stop after ``count`` steps; a checkpoint is written before every step that allows one."""
    steps = {"done": 0}
    real = loop.optimiser_step

    def step(state: Any, batch: Any) -> Any:
        if steps["done"] == count:
            raise Stopped
        steps["done"] += 1
        return real(state, batch)

    monkeypatch.setattr(loop, "optimiser_step", step)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)


KINDS = ([], ["method.ema=0.8"], ["method.collected=true"])


@pytest.mark.parametrize(
    ("settings", "more", "at"),
    [(s, [], at) for s in KINDS for at in (1, 13, 18, 25)] + [([], ["workers=2"], at) for at in (13, 25)],
)
def test_resumed_weights_are_the_same_to_the_bit(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[..., Fitted],
    settings: list[str],
    more: list[str],
    at: int,
) -> None:
    with monkeypatch.context() as patch:
        _stop_at(patch, at)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "cut", config(*settings, *more), report=QUIET)
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    again = fit(study, tmp_path / "cut", config(*settings, *more), resume=True, report=QUIET).run
    never = whole(*settings).run
    for name in ("weights.safetensors", "calibration.json", "plan.json"):
        assert (never / name).read_bytes() == (again / name).read_bytes(), name
    columns = [[line.split(",")[:2] + [line.split(",")[3]] for line in _log(run)] for run in (never, again)]
    assert [c for c in columns[0] if c[2]] == [c for c in columns[1] if c[2]]
    assert not (again / "cache").exists()


def _log(run: Path) -> list[str]:
    return (run / "log.csv").read_text().splitlines()


def test_after_kill_9(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = str(torch.get_num_threads())
    options = ["fit", str(study), "--method", "tiny", "--steps", "50", "--threads", threads, "--out"]
    cut, log = tmp_path / "cut", tmp_path / "cut" / "log.csv"
    command = [sys.executable, tiny.__file__, *options, str(cut)]
    environment = {**os.environ, "TINY_SAVE_EVERY_S": "0", "OMP_NUM_THREADS": threads}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (log.exists() and len(_log(cut)) > 8 and (cut / "last.ckpt").exists()):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (cut / "weights.safetensors").exists()
    (cut / ".tmp-0000-log.csv").touch()  # as if killed in the middle of writing
    for arguments in ([*options, str(cut), "--resume"], [*options, str(tmp_path / "whole")]):
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert not exit.value.code
    assert "resuming" in capsys.readouterr().err
    whole, again = ((tmp_path / x / "weights.safetensors").read_bytes() for x in ("whole", "cut"))
    assert whole == again
    assert len({tuple(sorted(p.name for p in (tmp_path / x).iterdir())) for x in ("whole", "cut")}) == 1


def test_a_run_is_not_overwritten_and_resuming_does_not_change_it(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(method="tiny", steps=30)
    with monkeypatch.context() as patch:
        _stop_at(patch, 5)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "run", config, report=QUIET)
    with pytest.raises(InputError, match="`resume`"):
        fit(study, tmp_path / "run", config, report=QUIET)
    request = (tmp_path / "run" / "request.yaml").read_text()
    assert yaml.safe_load(request) == {"method": {"name": "tiny"}, "steps": 30}
    for other in ({"steps": 40}, {"seed": 1}, {"preset": "small", "method": "tiny"}):
        with pytest.raises(InputError, match=r"request.yaml: `resume` goes on with .* was asked for"):
            fit(study, tmp_path / "run", resume=True, report=QUIET, **other)
    machine = {"threads": torch.get_num_threads(), "device": "cpu"}
    done = fit(study, tmp_path / "run", **machine, resume=True, report=QUIET)  # the rest is in the run
    assert (done.run / "request.yaml").read_text() == request
    config = read_config(done.run / "config.yaml")
    assert config.model_dump(include={"threads", "device"}) == machine and config.method.settings["side"] == 8
    before = (done.run / "weights.safetensors").stat().st_mtime_ns
    fit(study, tmp_path / "run", resume=True, report=QUIET)
    assert (done.run / "weights.safetensors").stat().st_mtime_ns == before


def test_a_run_of_before_goes_on_and_is_used(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[..., Fitted]
) -> None:
    """Runs of the version before have no request.yaml."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        _stop_at(patch, 5)
        with pytest.raises(Stopped):
            fit(study, run, config(), report=QUIET)
    (run / "request.yaml").unlink()
    with pytest.raises(InputError, match=r"config.yaml: `resume` goes on with .*steps: 30\), but 31"):
        fit(study, run, steps=31, resume=True, report=QUIET)
    fit(study, run, method="tiny", resume=True, report=QUIET)
    assert not (run / "request.yaml").exists()
    image, _ = tiny.blobs(7)
    points = [load(r).predict(image).landmarks.points for r in (run, whole().run)]
    assert np.array_equal(*points)
    assert load_run(run).hash == load_run(whole().run).hash


def test_a_checkpoint_of_the_version_before_is_refused_in_one_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _stop_at(patch, 5)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "run", method="tiny", steps=30, report=QUIET)
    path = tmp_path / "run" / "last.ckpt"
    torch.save({**torch.load(path, weights_only=True), "version": 1}, path)
    with pytest.raises(InputError) as error:
        fit(study, tmp_path / "run", resume=True, report=QUIET)
    line = str(error.value)
    assert line.startswith(f"{path}: is a checkpoint of version 1, this program reads version 3; ") and "\n" not in line
    assert path.exists()


def test_an_alignment_that_the_cases_asked_for_is_no_other_setting(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(method="tiny", steps=20, assignments=["align.kind=rigid"])
    align = config.align.model_copy(update={"enabled": False})
    with monkeypatch.context() as patch:
        patch.setattr(
            "anatomark.training.fit.aligned_in_any_pose", lambda config, _: config.model_copy(update={"align": align})
        )
        _stop_at(patch, 5)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "run", config, report=QUIET)
    fit(study, tmp_path / "run", config, resume=True, report=QUIET)
    assert read_config(tmp_path / "run" / "config.yaml").align == align


def test_folds_go_on_too(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(method="tiny", steps=10)
    whole = fit(study, tmp_path / "whole", config, folds=2, report=QUIET)
    with monkeypatch.context() as patch:
        _stop_at(patch, 15)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "cut", config, folds=2, report=QUIET)
    first = (tmp_path / "cut" / "folds" / "1" / "weights.safetensors").stat().st_mtime_ns
    with pytest.raises(InputError, match="`resume`"):
        fit(study, tmp_path / "cut", config, folds=2, report=QUIET)
    assert not (tmp_path / "cut" / "config.yaml").exists()  # only folds were begun
    with pytest.raises(InputError, match=r"request.yaml: .*\(steps: 10\), but 11 was asked for"):
        fit(study, tmp_path / "cut", folds=2, steps=11, resume=True, report=QUIET)
    again = fit(study, tmp_path / "cut", folds=2, resume=True, report=QUIET)
    assert (tmp_path / "cut" / "folds" / "1" / "weights.safetensors").stat().st_mtime_ns == first
    for name in ("weights.safetensors", "calibration.json", "folds/out_of_fold.csv"):
        assert (whole.run / name).read_bytes() == (again.run / name).read_bytes(), name
