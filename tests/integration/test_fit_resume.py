"""A run that was stopped, anywhere and however hard, ends exactly as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from anatomark.errors import InputError
from anatomark.model.config import make_config, read_config
from anatomark.progress import Reporter
from anatomark.training import loop
from anatomark.training.fit import fit

tiny.register()
QUIET = Reporter(quiet=True)


class Stopped(BaseException):
    pass


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_study(tmp_path_factory.mktemp("study"), 6)


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


@pytest.mark.parametrize("settings", [[], ["method.ema=0.8"], ["method.collected=true"], ["workers=2"]])
@pytest.mark.parametrize("at", [1, 13, 18, 25])
def test_resumed_weights_are_the_same_to_the_bit(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], at: int
) -> None:
    config = make_config(method="tiny", steps=30, assignments=[*settings, "validate_every={rough: 5, fine: 4}"])
    whole = fit(study, tmp_path / "whole", config, report=QUIET)
    with monkeypatch.context() as patch:
        _stop_at(patch, at)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "cut", config, report=QUIET)
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    again = fit(study, tmp_path / "cut", config, resume=True, report=QUIET)
    for name in ("weights.safetensors", "calibration.json", "plan.json"):
        assert (whole.run / name).read_bytes() == (again.run / name).read_bytes(), name
    columns = [[line.split(",")[:2] + [line.split(",")[3]] for line in _log(f.run)] for f in (whole, again)]
    assert [c for c in columns[0] if c[2]] == [c for c in columns[1] if c[2]]
    assert not (again.run / "cache").exists()


def _log(run: Path) -> list[str]:
    return (run / "log.csv").read_text().splitlines()


def test_after_kill_9(study: Path, tmp_path: Path) -> None:
    command = [sys.executable, tiny.__file__, "fit", str(study), "--method", "tiny", "--steps", "300"]
    environment = {**os.environ, "TINY_SAVE_EVERY_S": "0.05", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    cut = [*command, "--out", str(tmp_path / "cut")]
    with subprocess.Popen(cut, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        log = tmp_path / "cut" / "log.csv"
        while not (log.exists() and len(_log(log.parent)) > 30 and (tmp_path / "cut" / "last.ckpt").exists()):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    (tmp_path / "cut" / ".tmp-0000-log.csv").touch()  # as if killed in the middle of writing
    done = subprocess.run([*cut, "--resume"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    whole, again = (tmp_path / x / "weights.safetensors" for x in ("whole", "cut"))
    assert whole.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


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
    other = make_config(method="tiny", steps=40)
    with pytest.raises(InputError, match=r"steps: 30.*40 was asked for"):
        fit(study, tmp_path / "run", other, resume=True, report=QUIET)
    done = fit(study, tmp_path / "run", resume=True, report=QUIET)  # the settings are in the run
    before = (done.run / "weights.safetensors").stat().st_mtime_ns
    fit(study, tmp_path / "run", resume=True, report=QUIET)
    assert (done.run / "weights.safetensors").stat().st_mtime_ns == before


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
    again = fit(study, tmp_path / "cut", config, folds=2, resume=True, report=QUIET)
    assert (tmp_path / "cut" / "folds" / "1" / "weights.safetensors").stat().st_mtime_ns == first
    for name in ("weights.safetensors", "calibration.json", "folds/out_of_fold.csv"):
        assert (whole.run / name).read_bytes() == (again.run / name).read_bytes(), name
