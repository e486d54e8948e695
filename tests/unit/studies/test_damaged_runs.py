"""A short run of the study of damaged run folders, on a model of five tensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import tiny
from anatomark.io.images import read_image
from anatomark.model.config import make_config
from anatomark.progress import Reporter
from anatomark.training.fit import fit

tiny.register()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("damaged")
    cases = tiny.write_study(home / "data", 8, splits=["train"] * 4 + ["val"] * 4)
    fit(cases, home / "run", make_config(method="tiny", steps=4, assignments=["refine.enabled=false"]),
        report=Reporter(quiet=True))  # fmt: skip
    return home


@pytest.mark.parametrize("listed", [True, False])
def test_a_damaged_run_is_refused_or_predicts_the_same(home: Path, study, listed: bool) -> None:
    damage = study("damaged_runs")
    damage.VALUES.remove("\ud800")  # yaml cannot write it
    rows = damage.trials(home / "run", read_image(home / "data" / "case7.nii.gz"), 70, seed=3, listed=listed)
    ends = Counter(r["end"] for r in rows)
    assert not ends["fault"], [r for r in rows if r["end"] == "fault"]
    assert ends["refused"] > (60 if listed else 15)
    assert not (listed and ends["other"]), [r for r in rows if r["end"] == "other"]
