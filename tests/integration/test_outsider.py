"""A method of one file outside the package with a refiner after it and an alignment before it, under names that the
refiner uses too: the same as under any others."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import outsider
import tiny
from anatomark.cli import app as cli
from anatomark.io.landmarks import read_landmarks
from anatomark.model.config import read_config
from anatomark.progress import Reporter
from anatomark.training import loop
from anatomark.training.calibrate import calibrate
from anatomark.training.fit import fit

outsider.register()
QUIET = Reporter(quiet=True)
SMALL = ["refine.px=32", "refine.width=4", "refine.batch=2", "refine.steps=4", "refine.passes=1"]
STEPS = ["method.steps_rough=6", "method.steps_fine=4"]
REFINED = ["refine.enabled=true", *SMALL, *STEPS]
ALIGNED = ["align.enabled=true", "align.step_deg=45", "align.starts=2", "align.finalists=1", "align.template_px=24"]
Trained = Callable[..., Path]


class Stopped(BaseException):
    pass


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_study(tmp_path_factory.mktemp("study"), 6, ndim=2, splits=["train"] * 4 + ["val"] * 2)


@pytest.fixture(scope="module")
def trained(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run folder of a method and settings."""

    @cache
    def run(method: str, *settings: str, folds: int = 0) -> Path:
        out = tmp_path_factory.mktemp(method) / "run"
        return fit(study, out, method=method, set=[*REFINED, *settings], folds=folds, report=QUIET).run

    return run


def identical(a: Path, b: Path, *names: str) -> None:
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def facts(run: Path) -> Any:
    return tiny.read_json(run / "plan.json")["facts"]


@pytest.mark.parametrize("more", [[], ALIGNED], ids=["", "aligned"])
def test_names_make_no_difference(trained: Trained, more: list[str]) -> None:
    run, plain = trained("outsider", *more), trained("plain", *more)
    identical(run, plain, "weights.safetensors", "calibration.json", "plan.json")
    steps = read_config(run / "config.yaml").stage_steps
    assert steps == {"refine_pose": 6, "refine1": 4, "refine.refine1": 4, "refine2": 4}
    assert list(read_config(plain / "config.yaml").stage_steps) == ["one", "two", "refine1", "refine2"]
    assert len(facts(run)["refine"]["levels"]) == 2 and (facts(run)["align"] is not None) == bool(more)
    assert "Refiner, level 2" in (run / "card.md").read_text()


def test_settings_of_a_stage_are_of_the_one_so_called(study: Path, tmp_path: Path) -> None:
    steps = {"refine1": 3, "refine.refine1": 2}
    run = fit(study, tmp_path / "run", method="outsider", stage_steps=steps, set=REFINED, report=QUIET).run
    assert read_config(run / "config.yaml").stage_steps == {"refine_pose": 6, **steps, "refine2": 4}


@pytest.mark.parametrize(("at", "more"), [(3, []), (8, []), (12, []), (16, []), (12, ALIGNED)])  # in each stage
def test_it_is_resumed_to_the_bit(
    study: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, more: list[str]
) -> None:
    real, done = loop.optimiser_step, []

    def step(state: Any, batch: Any) -> Any:
        if len(done) == at:
            raise Stopped
        done.append(state.stage.name)
        return real(state, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimiser_step", step)
        patch.setattr(loop, "SAVE_EVERY_S", -1.0)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "run", method="outsider", set=[*REFINED, *more], report=QUIET)
    fit(study, tmp_path / "run", resume=True, report=QUIET)
    identical(tmp_path / "run", trained("outsider", *more), "weights.safetensors", "calibration.json", "plan.json")


@pytest.mark.parametrize("more", [[], ALIGNED], ids=["", "aligned"])
def test_another_run_starts_from_it(study: Path, trained: Trained, tmp_path: Path, more: list[str]) -> None:
    first = trained("outsider", *more)
    slow = ["learning_rate_factor=1e-9", "refine.steps=1"]
    run = fit(study, tmp_path / "run", set=slow, init=first, report=QUIET).run
    config = read_config(run / "config.yaml")
    assert (config.method.name, config.refine.enabled, config.refine.width) == ("outsider", True, 4)
    theirs, mine = (load_file(r / "weights.safetensors") for r in (first, run))
    assert mine.keys() == theirs.keys() and any(k.startswith("refine.") for k in mine)
    for key in mine:
        if key.endswith(("weight", "bias")):
            np.testing.assert_allclose(mine[key], theirs[key], atol=1e-4)
    if more:
        assert facts(run)["align"] == facts(first)["align"]


def test_it_is_cross_validated(tmp_path: Path) -> None:
    cases = tiny.write_study(tmp_path, 10, ndim=2)
    settings = [*REFINED, "val_fraction=0", "refine.coverage=0.9"]
    run = fit(cases, tmp_path / "run", method="outsider", set=settings, folds=2, report=QUIET).run
    assert len((run / "folds" / "out_of_fold.csv").read_text().splitlines()) == 31
    levels = facts(run)["refine"]["levels"]  # what the folds found reached the stages of the final model
    assert [(x["source"], x["errors"]) for x in levels] == [("out-of-fold", 30)] * 2


def test_it_is_calibrated(study: Path, trained: Trained, tmp_path: Path) -> None:
    done = calibrate(trained("outsider"), study, tmp_path / "calibrated")
    assert (done.facts["source"], done.facts["cases"], done.facts["pooled"]["n"]) == ("val split", 2, 6)
    there = tiny.read_json(trained("outsider") / "calibration.json")
    assert done.facts["pooled"]["mean_mm"] == pytest.approx(there["pooled"]["mean_mm"], abs=1e-3)


def test_the_command_line_trains_and_predicts(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--set={s}" for s in (*REFINED, *ALIGNED)]
    image = study.parent / "case4.png"
    for command in (
        ["fit", study, "--out", tmp_path / "run", "--method", "outsider", *options],
        ["predict", tmp_path / "run", image, "--spacing", "2", "--out", tmp_path / "found", "--json"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main([str(a) for a in command])
        assert not exit.value.code, capsys.readouterr().err
    (row,) = json.loads(capsys.readouterr().out)
    assert row["state"] == "written" and 0 < row["align_seconds"] <= row["seconds"]
    assert read_landmarks(tmp_path / "found" / "case4.mrk.json").names == ("a", "b", "c")
