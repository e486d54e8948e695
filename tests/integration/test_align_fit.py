"""Alignment before a method from end to end: trained, written, loaded, predicted, measured, started from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cli.evaluate import summary_lines
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.shape import rotation_angle, rotation_from_vector
from anatomark.evaluation.evaluate import evaluate
from anatomark.io.images import write_image
from anatomark.model.config import make_config, read_config
from anatomark.model.predict import load, predict
from anatomark.progress import Reporter
from anatomark.training.fit import Fitted, fit

tiny.register()
QUIET = Reporter(quiet=True)
ALIGNED = [
    "align.enabled=true",
    "align.step_deg=45",
    "align.starts=2",
    "align.finalists=1",
    "align.template_px=24",
    "steps=40",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_study(tmp_path_factory.mktemp("study"), 6, splits=["train"] * 4 + ["val", "test"])


@pytest.fixture(scope="module")
def aligned(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    config = make_config(method="tiny", assignments=ALIGNED)
    return fit(study, tmp_path_factory.mktemp("aligned") / "run", config, report=QUIET)


def turned(image: Image) -> tuple[Image, np.ndarray, np.ndarray]:
    """The same voxels in a world turned by 30 degrees, and the way there."""
    turn = rotation_from_vector(np.radians(np.array([0.48, -0.6, 0.64]) * 30))
    shift = np.array([8.0, -5, 11])
    grid = Grid.from_axes(image.grid.shape, turn @ image.grid.axes, turn @ image.grid.origin + shift)
    return Image(image.array, grid), turn, shift


def test_the_run_keeps_its_template(aligned: Fitted) -> None:
    facts = tiny.read_json(aligned.run / "plan.json")["facts"]["align"]
    assert facts["radius_mm"] > 5
    assert read_config(aligned.run / "config.yaml").align.enabled is True
    assert aligned.validation is not None
    model = load(aligned.run)
    image, _ = tiny.blobs(4)  # the validation case, whose alignment was found once and kept
    np.testing.assert_allclose(model.composed.locate(image).points, aligned.validation.predictions[0].points, atol=1e-3)


def test_a_turned_file_is_predicted_and_says_what_the_alignment_took(aligned: Fitted, tmp_path: Path) -> None:
    image, _ = tiny.blobs(50)
    there, turn, shift = turned(image)
    write_image(image, tmp_path / "here.nii.gz")
    write_image(there, tmp_path / "there.nii.gz")
    model = load(aligned.run)
    done = predict(model, [tmp_path / "here.nii.gz", tmp_path / "there.nii.gz"], tmp_path / "out")
    points = {}
    for outcome in done:
        facts = tiny.read_json(tmp_path / "out" / f"{outcome.stem}.json")
        assert 0 < facts["align_seconds"] <= facts["seconds"]
        assert outcome.align_seconds == pytest.approx(facts["align_seconds"], abs=1e-4)
        points[outcome.stem] = model.predict(image if outcome.stem == "here" else there).landmarks
    expected = points["here"].points @ turn.T + shift
    assert np.linalg.norm(points["there"].points - expected, axis=1).mean() < 3
    assert rotation_angle(turn) == pytest.approx(30)


def test_an_evaluation_tells_the_time_of_the_alignment(aligned: Fitted, study: Path, tmp_path: Path) -> None:
    summary = evaluate(aligned.run, study, tmp_path / "one").summary()
    assert 0 < summary["align_seconds_per_case"] < summary["seconds_per_case"]
    said = f"{summary['seconds_per_case']:.2f} s per case, {summary['align_seconds_per_case']:.2f} s of it alignment"
    assert said in summary_lines(summary)
    again = evaluate(tmp_path / "one" / "predictions", study, tmp_path / "two").summary()  # from the files
    assert again["align_seconds_per_case"] == pytest.approx(summary["align_seconds_per_case"], abs=1e-4)


def test_without_alignment_nothing_is_said_of_it(study: Path, tmp_path: Path) -> None:
    run = fit(study, tmp_path / "run", make_config(method="tiny", assignments=["steps=4"]), report=QUIET).run
    assert "align" not in tiny.read_json(run / "plan.json")["facts"]
    case = study.parent / "case5.nii.gz"
    (done,) = predict(load(run), [case], tmp_path / "out")
    assert done.align_seconds is None
    assert "align_seconds" not in tiny.read_json(tmp_path / "out" / "case5.json")
    summary = evaluate(run, study, tmp_path / "evaluation").summary()
    assert summary["align_seconds_per_case"] is None
    assert not any("alignment" in line for line in summary_lines(summary))


def test_another_run_starts_in_the_same_frame(aligned: Fitted, study: Path, tmp_path: Path) -> None:
    config = make_config(method="tiny", assignments=[*ALIGNED[:-1], "steps=4", "seed=3"])
    run = fit(study, tmp_path / "run", config, init=aligned.run, report=QUIET).run
    mine, theirs = (tiny.read_json(r / "plan.json")["facts"]["align"] for r in (run, aligned.run))
    assert mine == theirs
