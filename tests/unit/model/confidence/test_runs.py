"""What trained runs say: the flag and presence in predictions and files, and calibration anew."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.images import read_image, write_image
from anatomark.io.landmarks import read_landmarks
from anatomark.model.confidence.review import REFERENCE
from anatomark.model.config import make_config
from anatomark.model.model import plain_flags
from anatomark.model.predict import load, predict
from anatomark.model.run_files import write_list
from anatomark.progress import Reporter
from anatomark.training.calibrate import calibrate
from anatomark.training.fit import fit

tiny.register()
QUIET = Reporter(quiet=True)
ABSENT, DEFINED = Status.ABSENT, Status.DEFINED


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    study = tiny.write_study(folder / "data", 8)
    fit(study, folder / "run", make_config(method="tiny", steps=120), report=QUIET)
    return folder


def test_a_run_remembers_its_training_images_and_a_prediction_says_how_unusual_it_is(
    home: Path, tmp_path: Path
) -> None:
    model = load(home / "run")
    assert model.run.review is not None and (home / "run" / REFERENCE).exists()
    assert "Review flag: above" in (home / "run" / "card.md").read_text()
    source = sorted((home / "data").glob("*.nii.gz"))[0]
    image = read_image(source)
    rough = np.random.default_rng(0).normal(0, 2 * float(np.ptp(image.array.astype(float))), image.array.shape)
    write_image(Image((image.array + rough).astype(np.float32), image.grid), tmp_path / "noisy.nii.gz")
    outcomes = predict(model, [source, tmp_path / "noisy.nii.gz"], tmp_path / "out")
    clean, noisy = (tiny.read_json(tmp_path / "out" / f"{o.stem}.json") for o in outcomes)
    assert clean["suspicion_limit"] == pytest.approx(model.run.review.usual.limit, abs=1e-3)
    assert clean["flagged"] == (clean["suspicion"] > clean["suspicion_limit"]) == bool(clean["flags"])
    assert noisy["flagged"] and any("noisier" in line for line in noisy["flags"])
    assert outcomes[1].flags == tuple(noisy["flags"])


def test_the_reference_is_part_of_the_models_identity(home: Path, tmp_path: Path) -> None:
    calibrate(home / "run", home / "data" / "cases.csv", tmp_path / "again")
    first, second = load(home / "run"), load(tmp_path / "again")
    assert set(first.run.weights) == set(second.run.weights)
    assert second.run.review.usual.independent == first.run.review.usual.independent > 0
    facts = tiny.read_json(tmp_path / "again" / "calibration.json")
    (tmp_path / "again" / "calibration.json").write_text(json.dumps({**facts, "trust": None}))
    write_list(tmp_path / "again")
    assert load(tmp_path / "again").run.review is None
    assert load(tmp_path / "again").hash != second.hash


def test_calibration_on_cases_of_ones_own(home: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader((home / "data" / "cases.csv").open()))
    for k, row in enumerate(rows):
        row["split"] = "train" if k < 3 else "val"
        row["image"], row["landmarks"] = (str(home / "data" / row[c]) for c in ("image", "landmarks"))
    with (tmp_path / "own.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = calibrate(home / "run", tmp_path / "own.csv", tmp_path / "site")
    assert done.facts["cases"] == 5 and done.facts["trust"]["cases"] == 3
    assert "## Calibrated" in (tmp_path / "site" / "card.md").read_text()
    assert done.facts["pooled"]["n"] > 0 and "val split" in done.lines()[0]
    twice = calibrate(tmp_path / "site", tmp_path / "own.csv", tmp_path / "twice")
    assert (tmp_path / "twice" / "card.md").read_text().count("## Calibrated") == 1
    assert twice.facts == done.facts
    with pytest.raises(InputError, match="exists already"):
        calibrate(home / "run", tmp_path / "own.csv", tmp_path / "site")


def test_calibration_leaves_an_unproven_model_unproven(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    facts = tiny.read_json(tmp_path / "run" / "calibration.json")
    (tmp_path / "run" / "calibration.json").write_text(json.dumps({**facts, "unproven": "hardly trained"}))
    write_list(tmp_path / "run")
    done = calibrate(tmp_path / "run", home / "data" / "cases.csv", tmp_path / "again")
    assert done.facts["unproven"] == "hardly trained"
    assert load(tmp_path / "again").predict(sorted((home / "data").glob("*.nii.gz"))[0]).unproven == "hardly trained"


def test_a_training_that_begins_without_a_models_habits_says_so(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "run", tmp_path / "moved")
    plan = tiny.read_json(tmp_path / "moved" / "plan.json")
    shape = np.random.default_rng(0).normal(0, 5, (len(plan["names"]), plan["ndim"])).tolist()
    plan["facts"]["settle"] = {"mean_shape": shape, "weight": 1, "offset_mm": shape}
    (tmp_path / "moved" / "plan.json").write_text(json.dumps(plan))
    write_list(tmp_path / "moved")
    image = sorted((home / "data").glob("*.nii.gz"))[0]
    plain, moved = (load(m).predict(image).landmarks.points for m in (home / "run", tmp_path / "moved"))
    assert np.linalg.norm(plain - moved, axis=1).mean() > 1
    config = make_config(method="tiny", steps=1)
    fit(home / "data" / "cases.csv", tmp_path / "new", config, init=tmp_path / "moved", report=Reporter())
    assert "observer's habits" in capsys.readouterr().err
    settle = tiny.read_json(tmp_path / "new" / "plan.json")["facts"].get("settle")
    assert settle is None or settle["offset_mm"] is None


def test_without_independent_cases_only_the_flag_is_learned(home: Path, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "few", 3)
    done = calibrate(home / "run", study, tmp_path / "flag")
    assert done.facts["pooled"] is None and done.facts["presence"] is None
    assert done.facts["trust"]["independent"] == 0
    assert "no independent case" in done.lines()[0]


def test_a_damaged_reference_is_refused_in_one_line(home: Path, tmp_path: Path) -> None:
    calibrate(home / "run", home / "data" / "cases.csv", tmp_path / "run")
    (tmp_path / "run" / REFERENCE).write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=f"{REFERENCE}: is not the file that was written"):
        load(tmp_path / "run")
    write_list(tmp_path / "run")
    with pytest.raises(InputError, match=f"{REFERENCE}: is not a safetensors file"):
        load(tmp_path / "run")
    assert not list(tmp_path.glob(".tmp-*"))


# ---------------------------------------------------------------------- presence


def seeing(self: Any, image: Image, start: Landmarks | None = None) -> Landmarks:
    """Finds the three blobs by their places in the world; scores them by what of each is in the image."""
    points = np.array([[12.0, 14, 20], [30, 16, 24], [22, 34, 18]])[:, : image.ndim]
    index = image.grid.to_index(points)
    depth = np.minimum(index, np.array(image.grid.shape) - 1 - index).min(1)
    return Landmarks(("a", "b", "c"), points, score=1 / (1 + np.exp(-4 * (depth + 0.5))))


@pytest.mark.parametrize(("ndim", "folds"), [(3, 0), (2, 3)])
def test_a_fit_freezes_the_threshold_and_predict_applies_it(
    ndim: int, folds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tiny.write_study(tmp_path / "data", 8, ndim=ndim, splits=["train"] * 4 + ["val"] * 4)
    monkeypatch.setattr(tiny.Tiny, "locate", seeing)
    fit(cases, tmp_path / "run", make_config(method="tiny", steps=2), folds=folds, report=QUIET)
    entry = tiny.read_json(tmp_path / "run" / "calibration.json")["presence"]
    assert entry["crops"] + entry["failed"] == 4 and entry["crops"] >= 3
    assert 0.02 < entry["threshold"] < 0.98
    assert entry["recall"] > 0.7 and entry["precision"] > 0.7 and entry["false_absences"] == 0
    assert "Absence: a score below" in (tmp_path / "run" / "card.md").read_text()
    image, _ = tiny.blobs(7, ndim)
    narrow = Image(image.array[..., :11], Grid((*image.grid.shape[:-1], 11), image.grid.affine))
    found = load(tmp_path / "run").predict(narrow)  # 0 to 20 mm along x: b at 30 and c at 22 are cut off
    assert found.landmarks.status == (DEFINED, ABSENT, ABSENT)
    assert any(line.endswith("absent: b, c") for line in found.flags)


def test_files_of_a_prediction_say_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = tiny.write_study(tmp_path / "data", 8, ndim=2, splits=["train"] * 4 + ["val"] * 4)
    fit(cases, tmp_path / "run", make_config(method="tiny", steps=2), report=QUIET)

    def unsure(self: Any, image: Image, start: Landmarks | None = None) -> Landmarks:
        return replace(seeing(self, image), score=np.array([0.99, 0.001, 0.99]))

    monkeypatch.setattr(tiny.Tiny, "locate", unsure)
    facts = tiny.read_json(tmp_path / "run" / "calibration.json")
    facts["presence"] = {"threshold": 0.5}
    (tmp_path / "run" / "calibration.json").write_text(json.dumps(facts))
    write_list(tmp_path / "run")
    model, out = load(tmp_path / "run"), tmp_path / "out"
    predict(model, [tmp_path / "data" / "case0.png"], out, spacing=2.0, pictures=True)
    for name in ("case0.mrk.json", "case0.json", "case0.csv"):
        found = read_landmarks(out / name, case="case0" if name.endswith("csv") else None)
        assert found.status == (DEFINED, ABSENT, DEFINED), name
    control = tiny.read_json(out / "case0.mrk.json")["markups"][0]["controlPoints"][1]
    assert control["positionStatus"] == "undefined" and "position" not in control
    entry = tiny.read_json(out / "case0.json")["landmarks"][1]
    assert (entry["status"], entry["position"], entry["score"]) == ("absent", None, 0.001)
    predict(model, [tmp_path / "data" / "case0.png"], tmp_path / "fcsv", spacing=2.0, format="fcsv")
    assert read_landmarks(tmp_path / "fcsv" / "case0.fcsv").status == (DEFINED, ABSENT, DEFINED)


def test_without_independent_cases_only_the_border_decides(tmp_path: Path) -> None:
    few = tiny.write_study(tmp_path / "data", 2)
    fit(few, tmp_path / "run", make_config(method="tiny", steps=2), report=QUIET)
    facts = tiny.read_json(tmp_path / "run" / "calibration.json")
    assert "presence" in facts and facts["presence"] is None


def test_a_method_that_fails_on_a_crop_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tiny.write_study(tmp_path / "data", 4, splits=["train"] * 2 + ["val"] * 2)

    def whole_only(self: Any, image: Image, start: Landmarks | None = None) -> Landmarks:
        if image.grid.shape != (24, 24, 24):
            raise InputError("the image is too small")
        return seeing(self, image)

    monkeypatch.setattr(tiny.Tiny, "locate", whole_only)
    fit(cases, tmp_path / "run", make_config(method="tiny", steps=2), report=QUIET)
    assert tiny.read_json(tmp_path / "run" / "calibration.json")["presence"] is None


def test_absent_landmarks_of_a_run_without_a_reference_are_a_flag() -> None:
    status = (DEFINED, ABSENT, ABSENT)
    some = Landmarks(("a", "b", "c"), np.array([[5.0, 5], [np.nan] * 2, [np.nan] * 2]), status)
    image = Image(np.zeros((1, 10, 10)), Grid.from_axes((10, 10), np.eye(2)[:, ::-1], np.zeros(2)))
    assert plain_flags(some, image) == ["absent: b, c"]
