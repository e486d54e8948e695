"""Distillation: what a teacher says becomes what is learned, and nothing else does."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.division import read_division
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.atomic import read_json, write_json
from anatomark.io.jsonfile import read_json_landmarks
from anatomark.model.config import RunConfig, make_config
from anatomark.model.predict import load
from anatomark.model.run_folder import load_run
from anatomark.progress import Reporter
from anatomark.training.fit import fit
from anatomark.training.teach import blended, drawn

tiny.register()
QUIET = Reporter(quiet=True)
NAMES = ("a", "b", "c", "d")


def config(*assignments: str, **given: float) -> RunConfig:
    return make_config(method="tiny", assignments=assignments, **given)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cases, the last two of them without landmarks."""
    full = tiny.write_study(tmp_path_factory.mktemp("study"), 8)
    return without(full, "partly.csv", [6, 7])


def without(manifest: Path, name: str, blank: Iterable[int], given: str = "") -> Path:
    """A manifest beside another, in which some rows have no landmarks, or those in ``given``."""
    rows = list(csv.DictReader(manifest.open()))
    for at in blank:
        rows[at]["landmarks"] = given
    with manifest.with_name(name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return manifest.with_name(name)


@pytest.fixture(scope="module")
def teacher(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(study.with_name("cases.csv"), run, config(steps=300), report=QUIET)
    return believed(run)


def believed(run: Path) -> Path:
    """The run as if held-out cases had proven it, and without a memory of its images, so that it flags nothing."""
    for name in ("SHA256SUMS", "reference.safetensors"):
        (run / name).unlink(missing_ok=True)
    facts = {k: v for k, v in read_json(run / "calibration.json").items() if k != "trust"}
    write_json(run / "calibration.json", {**facts, "unproven": ""})
    return run


def landmarks(points: object, **more: object) -> Landmarks:
    return Landmarks(NAMES, np.array(points, dtype=float), **more)  # type: ignore[arg-type]


def test_annotations_are_moved_by_the_weight_and_blanks_are_filled() -> None:
    own = landmarks(
        [[0, 0], [0, 0], [np.nan] * 2, [np.nan] * 2], status=("defined", "defined", "unannotated", "absent")
    )
    theirs = landmarks(
        [[2, 0], [9, 0], [5, 5], [6, 6]], covariance=np.stack([np.diag([4.0, 1.0])] * 4), radius90=np.full(4, 3.0)
    )
    made = blended(own, theirs, 0.25)
    assert made.points[0].tolist() == [0.5, 0]
    assert made.points[1].tolist() == [0, 0]  # beyond the teacher's radius the annotation stands
    assert made.points[2].tolist() == [5, 5]
    assert made.status[3] is Status.ABSENT
    assert made.covariance is not None
    assert np.allclose(made.covariance[0], np.diag([0.25, 0.0625]))
    assert not made.covariance[1].any() and not made.covariance[3].any()
    assert np.allclose(made.covariance[2], np.diag([4, 1]))
    plain = blended(own, landmarks(theirs.points, covariance=theirs.covariance), 0.25)
    assert plain.points[1].tolist() == [0, 0]  # nine millimetres are more than four deviations
    assert blended(own, theirs, 0).points[:2].tolist() == own.points[:2].tolist()


def test_what_the_teacher_does_not_find_stays_as_it_is() -> None:
    own = landmarks([[1, 2], [np.nan] * 2, [3, 4], [np.nan] * 2])
    theirs = Landmarks(("c", "d"), np.array([[np.nan] * 2, [7, 8]]), ("absent", "defined"))
    made = blended(own, theirs, 1.0)
    assert made.points[[0, 2]].tolist() == [[1, 2], [3, 4]]
    assert made.points[3].tolist() == [7, 8]
    assert made.status[1] is Status.UNANNOTATED


def test_draws_have_the_covariance_and_repeat() -> None:
    rng = np.random.default_rng(0)
    wide = np.array([[4.0, 1.5], [1.5, 1.0]])
    given = landmarks([[1, 2]] * 3 + [[np.nan] * 2], covariance=np.stack([wide, 0 * wide, wide, wide]))
    seen = np.stack([drawn(given, rng).points for _ in range(4000)])
    assert np.allclose(seen[:, 0].mean(0), [1, 2], atol=0.15)
    assert np.allclose(np.cov(seen[:, 0].T), wide, atol=0.35)
    assert (seen[:, 1] == [1, 2]).all() and np.isnan(seen[:, 3]).all()
    same = [drawn(given, np.random.default_rng(3)).points for _ in range(2)]
    assert np.array_equal(*same, equal_nan=True)
    bare = landmarks([[1, 2]] * 4)
    assert drawn(bare, rng) is bare


def test_images_without_landmarks_are_learned_from(study: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cell is blank.*`teacher`"):
        fit(study, tmp_path / "without", config(steps=4), report=QUIET)
    run = tmp_path / "student"
    fit(study, run, config("val_fraction=0", steps=20), teacher=teacher, report=QUIET)
    card = (run / "card.md").read_text()
    assert "| distilled | taught by run: 6 annotated images, 2 without landmarks" in card
    assert not (run / "teacher").exists()
    known = load_run(run).plan.images
    assert known is not None
    assert set(known.learned) == load(teacher).learned | load(teacher).chosen  # eight images in all
    division = read_division(study, unlabelled=True)
    assert len(division.unlabelled) == 2 and len(division.train) + len(division.val) == 6


def test_a_student_of_images_alone_finds_what_its_teacher_finds(study: Path, teacher: Path, tmp_path: Path) -> None:
    """One annotated image, seven without."""
    lone = without(study, "lone.csv", range(1, 6))
    settings = ("val_fraction=0",)
    student = fit(lone, tmp_path / "s", config(*settings, steps=400), teacher=teacher, report=QUIET).model
    model = load(teacher)
    images = [c.path for c in read_division(study.with_name("cases.csv")).train]
    apart = [
        np.linalg.norm(student.predict(i).landmarks.points - model.predict(i).landmarks.points, axis=1) for i in images
    ]
    spread = np.ptp([model.predict(i).landmarks.points for i in images], axis=0).max()
    assert np.mean(apart) < 0.5 * spread


def test_it_goes_on_with_the_same_teacher_only(study: Path, teacher: Path, tmp_path: Path, monkeypatch) -> None:
    from anatomark.training import fit as module

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    whole = fit(study, tmp_path / "whole", config(steps=20), teacher=teacher, report=QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(study, tmp_path / "run", config(steps=20), teacher=teacher, report=QUIET)
    assert len(list((tmp_path / "run" / "teacher").glob("*.json"))) == 7  # one of the eight is held out
    full = study.with_name("cases.csv")
    with pytest.raises(InputError, match="began with a teacher"):
        fit(full, tmp_path / "run", config(steps=20), resume=True, report=QUIET)
    other = tmp_path / "other"
    fit(full, other, config(steps=200, seed=3), report=QUIET)
    believed(other)
    with pytest.raises(InputError, match="another teacher"):
        fit(study, tmp_path / "run", config(steps=20), teacher=other, resume=True, report=QUIET)
    again = fit(study, tmp_path / "run", config(steps=20), teacher=teacher, resume=True, report=QUIET)
    assert (again.run / "weights.safetensors").read_bytes() == (whole.run / "weights.safetensors").read_bytes()


def test_teachers_that_cannot_teach(study: Path, teacher: Path, tmp_path: Path) -> None:
    flat = tiny.write_study(tmp_path / "flat", 4, ndim=2)
    with pytest.raises(InputError, match="3D images, the cases' landmarks are 2D"):
        fit(flat, tmp_path / "a", config(steps=4), teacher=teacher, report=QUIET)
    with pytest.raises(InputError, match="give one of them"):
        fit(study, tmp_path / "a", config(steps=4), teacher=teacher, folds=2, report=QUIET)
    doubted = tmp_path / "doubted"
    fit(study.with_name("cases.csv"), doubted, config("val_fraction=0", steps=2), report=QUIET)
    with pytest.raises(InputError, match="it can teach nothing"):
        fit(study, tmp_path / "a", config(steps=4), teacher=doubted, report=QUIET)
    blank = without(study, "blank.csv", range(8))
    with pytest.raises(InputError, match="no training case has landmarks"):
        fit(blank, tmp_path / "a", config(steps=4), teacher=teacher, report=QUIET)
    assert not (tmp_path / "a").exists()


def test_a_model_s_file_is_an_annotation_without_a_spread(study: Path, teacher: Path, tmp_path: Path) -> None:
    """Only a teacher's answers are drawn: those in a manifest are the truth, whatever else their file holds."""
    from anatomark.model.prediction import write_prediction

    image = study.parent / "case6.nii.gz"
    write_prediction(load(teacher).predict(image), study.parent, "given", ["json"])
    assert read_json_landmarks(study.parent / "given.json").covariance is not None
    made = without(study, "given.csv", [6, 7], "given.json")
    assert all(c.landmarks.covariance is None for c in read_division(made, val_fraction=0).train)
