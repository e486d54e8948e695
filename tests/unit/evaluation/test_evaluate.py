"""evaluate: from a model or a folder of predictions to tables and a report."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.evaluation.evaluate import evaluate
from anatomark.io.images import read_image
from anatomark.io.jsonfile import write_json_landmarks
from anatomark.io.landmarks import write_landmarks

NAMES = ("tip", "base")
SHIFT = np.array([[3.0, 4.0], [0.0, 1.0]])  # errors of 5 and 1 mm
CASES = {"a": "train", "b": "train", "c": "test", "d": "test"}


def points(case: str) -> np.ndarray:
    return np.array([[10.0, 12.0], [20.0, 15.0]]) + ord(case) - ord("a")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four grey pictures, 0.5 mm per pixel, marked by two observers 2 mm apart; two to train, two to test."""
    rng = np.random.default_rng(0)
    lines, rows = ["# frame=image unit=mm", "case,label,x,y,observer"], ["case,image,landmarks,split,spacing"]
    for case, split in CASES.items():
        pixels = rng.integers(0, 255, (60, 80)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / f"image_{case}.png"))
        for who, shift in (("senior", 0), ("junior", 2)):
            lines += [f"{case},{n},{x},{y + shift},{who}" for n, (x, y) in zip(NAMES, points(case), strict=True)]
        rows.append(f"{case},image_{case}.png,marks.csv#senior,{split},0.5")
    (tmp_path / "marks.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "cases.csv"


class Shifted:
    """Knows the truth by the image's brightness and misses it by SHIFT."""

    names = NAMES

    def __init__(self, manifest: Path, refused: str = ""):
        self.refused = refused
        folder = manifest.parent
        self.known = {float(read_image(folder / f"image_{c}.png", 0.5).array.mean()): c for c in CASES}

    def predict(self, image: Image) -> Landmarks:
        case = self.known[float(image.array.mean())]
        if case == self.refused:
            raise InputError("image is constant")
        return Landmarks(NAMES, points(case) + SHIFT, score=np.array([0.5, 0.9]))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_model(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate(Shifted(manifest), manifest, out)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["split"], summary["truth"], summary["cases"], summary["pairs"]) == ("test", "senior", 2, 4)
    assert result.overall.mre_mm == summary["mre_mm"] == pytest.approx(3)
    assert summary["sdr"]["2"] == 0.5
    assert summary["seconds_per_case"] > 0 and summary["peak_memory_gb"] > 0
    beside = summary["comparisons"]
    assert beside["observers: senior - junior"]["mre_mm"] == pytest.approx(2)
    # along both axes the training cases lie at 0 and 1 mm, the test cases at 2 and 3
    assert beside["mean position"]["mre_mm"] == pytest.approx(2 * np.sqrt(2))
    assert not [name for name in beside if "perfect" in name]  # two points are all pose
    junior = np.linalg.norm(SHIFT - [0, 2], axis=1).mean()
    assert beside["Shifted (truth: junior)"]["mre_mm"] == pytest.approx(junior)
    assert "Shifted (truth: mean)" in beside
    assert [r["error_mm"] for r in table(out / "errors.csv")] == ["5", "1", "5", "1"]
    assert [(r["label"], r["mre_mm"]) for r in table(out / "per_landmark.csv")] == [("tip", "5"), ("base", "1")]
    assert [r["case"] for r in table(out / "per_case.csv")] == ["c", "d"]
    assert {p.name for p in (out / "predictions").iterdir()} == {"c.json", "c.mrk.json", "d.json", "d.mrk.json"}
    assert "data:image/png;base64" in (out / "report.html").read_text(encoding="utf-8")


def test_its_predictions_evaluated_again_give_the_same(manifest: Path, tmp_path: Path) -> None:
    first = evaluate(Shifted(manifest), manifest, tmp_path / "one")
    for ending in (".json", ".mrk.json"):
        folder = tmp_path / f"only{ending}"
        folder.mkdir()
        for case in "cd":
            (folder / f"{case}{ending}").write_bytes((tmp_path / "one/predictions" / f"{case}{ending}").read_bytes())
        again = evaluate(folder, manifest, tmp_path / f"out{ending}")
        assert np.allclose(again.errors.error, first.errors.error, atol=1e-4)
        assert again.predictions.peak_gb is None
    assert len(evaluate(tmp_path / "one/predictions", manifest, tmp_path / "three").predictions.values("seconds")) == 2


def test_a_missing_file_and_the_image_stem(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    write_landmarks(Landmarks(NAMES, points("c")), folder / "image_c.mrk.json")
    result = evaluate(folder, manifest, tmp_path / "out")
    assert (result.overall.located, result.overall.failures, result.overall.mre_mm) == (
        2,
        2,
        pytest.approx(0, abs=1e-6),
    )
    assert "No prediction for 1 of 2 cases" in result.notes[0]
    assert result.notes[0] in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_split_observer_and_thresholds(manifest: Path, tmp_path: Path) -> None:
    model = Shifted(manifest)
    result = evaluate(model, manifest, tmp_path / "o", split="train", truth="junior", thresholds=(1, 5))
    assert result.errors.cases == ("a", "b") and result.truth == "junior" and set(result.overall.sdr) == {"1", "5"}
    assert result.overall.mre_mm == pytest.approx(np.linalg.norm(SHIFT - [0, 2], axis=1).mean())
    mean = evaluate(model, manifest, tmp_path / "m", truth="mean")
    assert mean.overall.mre_mm == pytest.approx(np.linalg.norm(SHIFT - [0, 1], axis=1).mean())


def test_val_where_there_is_no_test(manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(manifest.read_text().replace(",test,", ",val,"))
    assert evaluate(Shifted(manifest), manifest, tmp_path / "out").split == "val"


def test_labels_that_only_one_side_knows_are_said(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    for case in "cd":
        write_json_landmarks(Landmarks(("tip", "tail"), points(case)), folder / f"{case}.json")
    result = evaluate(folder, manifest, tmp_path / "out")
    assert result.errors.names == ("tip",)
    assert any("'base'" in n for n in result.notes) and any("'tail'" in n for n in result.notes)


def test_a_case_that_cannot_be_predicted_is_a_failure_with_its_reason(manifest: Path, tmp_path: Path) -> None:
    result = evaluate(Shifted(manifest, refused="d"), manifest, tmp_path / "out")
    assert result.overall.failures == 2 and result.predictions.flags["d"] == ["image is constant"]
    assert table(tmp_path / "out/per_case.csv")[1]["flags"] == "image is constant"


class _Never:
    def predict(self, image: Image) -> Landmarks:
        raise AssertionError("work began before the check")


def test_refusals_before_any_work(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Shifted(manifest), manifest, out)
    with pytest.raises(InputError, match="holds an evaluation already"):
        evaluate(_Never(), manifest, out)
    evaluate(Shifted(manifest), manifest, out, overwrite=True)
    with pytest.raises(InputError, match="is a file; give a folder"):
        evaluate(_Never(), manifest, manifest / "inside")
    with pytest.raises(InputError, match=r"no observer 'senor'.*did you mean 'senior'"):
        evaluate(_Never(), manifest, tmp_path / "x", truth="senor")
    with pytest.raises(InputError, match="no case has split 'val'"):
        evaluate(_Never(), manifest, tmp_path / "x", split="val")
    with pytest.raises(InputError, match="positive distances"):
        evaluate(_Never(), manifest, tmp_path / "x", thresholds=(0,))
    with pytest.raises(InputError, match="two of them are written 2;"):
        evaluate(_Never(), manifest, tmp_path / "x", thresholds=(2, 2.0000001))


def test_nothing_in_common_is_refused(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no prediction of any case, such as c\.mrk\.json"):
        evaluate(tmp_path / "empty", manifest, tmp_path / "x")
    folder = tmp_path / "predictions"
    write_json_landmarks(replace(Landmarks(NAMES, points("c")), names=("u", "v")), folder / "c.json")
    with pytest.raises(InputError, match="no label in common: predicted are 'u', 'v', the truth has 'tip', 'base'"):
        evaluate(folder, manifest, tmp_path / "y")


def test_predictions_that_are_not_held_give_the_same(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(Shifted(manifest, refused="d"), manifest, tmp_path / "model")
    found = tmp_path / "model" / "predictions"
    made = {}
    for held in (1000, 1):
        monkeypatch.setattr("anatomark.evaluation.predictions.HELD", held)
        result = evaluate(found, manifest, tmp_path / str(held))
        assert isinstance(result.predictions.of, dict) is (held == 1000)
        files = [*(tmp_path / str(held)).iterdir()]
        made[held] = {f.name: f.read_bytes() for f in files if not f.name.startswith(".")}
    assert made[1] == made[1000] and len(made[1]) == 5
