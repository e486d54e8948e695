"""What a run remembers of its training images, how predictions carry the flag, and calibration anew."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.division import read_division
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.images import read_image, write_image
from anatomark.model.confidence import review
from anatomark.model.confidence.review import REFERENCE
from anatomark.model.config import make_config
from anatomark.model.predict import load, predict_paths
from anatomark.progress import Reporter
from anatomark.training.calibrate import calibrate
from anatomark.training.fit import fit

tiny.register()
QUIET = Reporter(quiet=True)


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
    assert model.run.trust is not None and (home / "run" / REFERENCE).exists()
    assert "Review flag: above" in (home / "run" / "card.md").read_text()
    source = sorted((home / "data").glob("*.nii.gz"))[0]
    image = read_image(source)
    rough = np.random.default_rng(0).normal(0, 2 * float(np.ptp(image.array.astype(float))), image.array.shape)
    write_image(Image((image.array + rough).astype(np.float32), image.grid), tmp_path / "noisy.nii.gz")
    outcomes = predict_paths(model, [source, tmp_path / "noisy.nii.gz"], tmp_path / "out")
    clean, noisy = (tiny.read_json(tmp_path / "out" / f"{o.stem}.json") for o in outcomes)
    assert clean["suspicion_limit"] == pytest.approx(model.run.trust.usual.limit, abs=1e-3)
    assert clean["flagged"] == (clean["suspicion"] > clean["suspicion_limit"]) == bool(clean["flags"])
    assert noisy["flagged"] and any("noisier" in line for line in noisy["flags"])
    assert outcomes[1].flags == tuple(noisy["flags"])


def test_the_reference_is_part_of_the_models_identity(home: Path, tmp_path: Path) -> None:
    calibrate(home / "run", home / "data" / "cases.csv", tmp_path / "again")
    first, second = load(home / "run"), load(tmp_path / "again")
    assert set(first.run.weights) == set(second.run.weights)
    assert second.run.trust.usual.independent == first.run.trust.usual.independent > 0
    (tmp_path / "again" / REFERENCE).unlink()
    assert load(tmp_path / "again").run.trust is None
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


def test_without_independent_cases_only_the_flag_is_learned(home: Path, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "few", 3)
    done = calibrate(home / "run", study, tmp_path / "flag")
    assert done.facts["pooled"] is None and done.facts["presence"] is None
    assert done.facts["trust"]["independent"] == 0
    assert "no independent case" in done.lines()[0]


def test_a_damaged_reference_is_refused_in_one_line(home: Path, tmp_path: Path) -> None:
    calibrate(home / "run", home / "data" / "cases.csv", tmp_path / "run")
    (tmp_path / "run" / REFERENCE).write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=f"{REFERENCE}: does not fit"):
        load(tmp_path / "run")
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_landmark_that_is_rarely_marked_does_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "MOST", 3)
    study = tiny.write_study(tmp_path / "data", 9, splits=["train"] * 8 + ["val"])
    sources = read_division(study, make_config(method="tiny")).train
    kept = {review._spread(8)[0] + 1}
    rare = [
        replace(s, landmarks=s.landmarks if i in kept else _without(s.landmarks, "b")) for i, s in enumerate(sources)
    ]
    chosen = review._chosen(rare)
    assert np.isfinite(np.stack([s.landmarks.points for s in chosen])).any(0).all()
    assert len(chosen) == 4


def _without(landmarks: Landmarks, name: str) -> Landmarks:
    status = tuple(
        Status.UNANNOTATED if n == name else s for n, s in zip(landmarks.names, landmarks.status, strict=True)
    )
    return replace(landmarks, status=status)
