"""The method of the page on adding one: it keeps the contract, and everything that a method can be used for, it can."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tiny
from anatomark import evaluate, fit, load, methods, predict
from anatomark.benchmark.run import benchmark
from anatomark.progress import Reporter
from contract import page
from contract.subject import Stopped, stopping
from contract.suite import CHECKS

QUIET = Reporter(quiet=True)
SMALL = ["method.side=6", "method.width=16", "val_fraction=0.3", "learning_rate_factor=5"]
REFINER = ["refine.enabled=true", "refine.levels=1", "refine.px=16", "refine.width=4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study, and the page's method installed as another package's."""
    home = tmp_path_factory.mktemp("outside")
    page.install(home / "package")
    tiny.write_study(home / "study", 8, splits=("train",) * 6 + ("test",) * 2, size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(home / "package"))
        patch.setattr("anatomark.training.finish.judged", lambda *_: None)  # what the method says counts, good or bad
        yield home
    sys.modules.pop("glance", None)


def trained(home: Path, name: str, *, more: list[str] | None = None, **options: Any) -> Path:
    """A run folder, made once."""
    if not (home / name / "weights.safetensors").exists():
        wanted = {"method": "glance", "steps": 60, "set": [*SMALL, *(more or [])], **options}
        fit(home / "study" / "cases.csv", home / name, report=QUIET, **wanted)
    return home / name


def test_the_page_is_short_and_needs_two_modules_of_ours() -> None:
    lines = page.code().splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 120
    ours = [line.split(" import")[0] for line in lines if "anatomark" in line]
    assert ours == ["from anatomark", "from anatomark.methods.base"]


def test_it_is_known_by_its_entry_point(home: Path) -> None:
    assert "glance" in methods.names()
    assert methods.presets("glance") == ["recommended", "fine"]
    assert methods.find("glance").__module__ == "glance"


def test_it_trains_predicts_and_is_evaluated(home: Path) -> None:
    run = trained(home, "run")
    image, truth = tiny.blobs(50, size=16)
    prediction = load(run).predict(image)
    assert prediction.landmarks.names == truth.names and prediction.landmarks.radius90 is None
    rows = predict(run, [home / "study" / "case6.nii.gz"], home / "predictions")
    assert [r.state for r in rows] == ["written"]
    result = evaluate(run, home / "study" / "cases.csv", home / "evaluation")
    assert result.overall.located >= 5
    untrained = trained(home, "untrained", steps=1)
    before = evaluate(untrained, home / "study" / "cases.csv", home / "before")
    assert result.overall.mre_mm < 0.7 * before.overall.mre_mm


def test_it_is_refined(home: Path) -> None:
    run = trained(home, "refined", more=REFINER)
    plan, image = tiny.read_json(run / "plan.json"), tiny.blobs(50, size=16)[0]
    assert len(plan["facts"]["refine"]["levels"]) == 1 and "extent_mm" in plan["facts"]
    assert (run / "log.csv").read_text().count("refine1") > 0
    composed = load(run).composed  # type: ignore[union-attr]
    alone = composed.method.locate(image).points
    assert np.abs(load(run).predict(image).landmarks.points - alone).max() > 1e-3


@pytest.mark.parametrize("at", [7, 33])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(home: Path, at: int) -> None:
    whole, cut = trained(home, "refined", more=REFINER), home / f"cut{at}"
    with pytest.raises(Stopped), stopping(at):
        trained(home, cut.name, more=REFINER)
    assert (cut / "last.ckpt").exists()
    trained(home, cut.name, more=REFINER, resume=True)
    for name in ("weights.safetensors", "plan.json", "calibration.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_it_starts_from_itself_with_other_landmarks(home: Path) -> None:
    source = load(trained(home, "run"))
    run = trained(home, "fewer", more=["landmarks=[c, a]", "learning_rate_factor=1e-9"], steps=1, init=home / "run")
    image = tiny.blobs(50, size=16)[0]
    fewer, whole = load(run).predict(image).landmarks, source.predict(image).landmarks
    assert fewer.names == ("c", "a")
    np.testing.assert_allclose(fewer.points, whole.select(fewer.names).points, atol=1e-3)


def test_it_is_cross_validated(home: Path) -> None:
    run = trained(home, "folded", folds=2, steps=10)
    lines = (run / "folds" / "out_of_fold.csv").read_text().splitlines()
    assert len(lines) == 1 + 6 * 3
    assert load(run / "folds").predict(tiny.blobs(50, size=16)[0]).members == ("1", "2")


@pytest.mark.slow
def test_it_is_benchmarked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{home / 'package'}:{':'.join(p for p in sys.path if p)}")
    small = dict(text.split("=") for text in SMALL)
    suite = {
        "data": {"blobs": {"manifest": "study/cases.csv"}},
        "methods": {"glance": {"method": "glance", "set": small}},
        "steps": 20,
        "threads": 1,
    }  # fmt: skip
    (home / "suite.yaml").write_text(yaml.safe_dump(suite))
    done = benchmark(home / "suite.yaml", home / "comparison", report=QUIET)
    assert not done.failed
    summary = json.loads((home / "comparison/blobs/glance/seed0/evaluation/summary.json").read_text())
    assert summary["cases"] == 2 and "glance" in (home / "comparison" / "table.md").read_text()


@pytest.mark.slow
def test_the_suite_runs_on_it_as_the_page_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{home / 'package'}:{':'.join(p for p in sys.path if p)}")
    (command,) = re.findall(r"^pytest tests/contract .*(?<!')$", page.PAGE.read_text(encoding="utf-8"), flags=re.M)
    asked = [sys.executable, "-m", *command.split(), "--set", "method.side=6", "-q", "-k", "recommended-2d-plain"]
    done = subprocess.run(asked, cwd=page.PAGE.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len(CHECKS)} passed" in done.stdout
