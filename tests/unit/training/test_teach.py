"""Distillation: what a teacher says becomes what is learned, and nothing else does."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.case import Case
from anatomark.cases.division import read_division
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.evaluation.evaluate import evaluate
from anatomark.io.atomic import read_json, write_json
from anatomark.io.jsonfile import read_json_landmarks
from anatomark.model.config import RunConfig, make_config
from anatomark.model.predict import load
from anatomark.model.run_folder import load_run
from anatomark.progress import Reporter
from anatomark.training.calibrate import calibrate
from anatomark.training.fit import fit
from anatomark.training.plan import plan
from anatomark.training.teach import DrawnCases, Teacher, blended, drawn, taught

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
    made = blended(own, theirs, 0.25, 1)
    assert made.points[0].tolist() == [0.5, 0]
    assert made.points[1].tolist() == [0, 0]  # beyond the teacher's radius the annotation stands
    assert made.points[2].tolist() == [5, 5]
    assert made.status[3] is Status.ABSENT
    assert made.covariance is not None
    assert np.allclose(made.covariance[0], np.diag([0.25, 0.0625]))
    assert not made.covariance[1].any() and not made.covariance[3].any()
    assert np.allclose(made.covariance[2], np.diag([4, 1]))
    half = blended(own, theirs, 0.25, 0.5)
    assert half.covariance is not None and np.allclose(half.covariance[2], np.diag([1, 0.25]))
    assert blended(own, theirs, 0.25, 0).covariance is None
    plain = blended(own, landmarks(theirs.points, covariance=theirs.covariance), 0.25, 1)
    assert plain.points[1].tolist() == [0, 0]  # nine millimetres are more than four deviations
    bare = blended(own, landmarks(theirs.points), 0.25, 0)  # nothing is known of the teacher's doubt
    assert bare.points[:2].tolist() == own.points[:2].tolist() and bare.points[2].tolist() == [5, 5]
    unknown = replace(theirs, radius90=np.full(4, np.nan))  # of an average in which one member has no radii
    assert blended(own, unknown, 0.25, 1).points[1].tolist() == [0, 0]
    assert blended(own, theirs, 0, 1).points[:2].tolist() == own.points[:2].tolist()


def test_what_the_teacher_does_not_find_stays_as_it_is() -> None:
    own = landmarks([[1, 2], [np.nan] * 2, [3, 4], [np.nan] * 2])
    theirs = Landmarks(("c", "d"), np.array([[np.nan] * 2, [7, 8]]), ("absent", "defined"))
    made = blended(own, theirs, 1.0, 0)
    assert made.points[[0, 2]].tolist() == [[1, 2], [3, 4]]
    assert made.points[3].tolist() == [7, 8]
    assert made.status[1] is Status.UNANNOTATED


def test_draws_have_the_covariance_and_repeat() -> None:
    wide = np.array([[4.0, 1.5], [1.5, 1.0]])
    given = landmarks([[1, 2]] * 3 + [[np.nan] * 2], covariance=np.stack([wide, 0 * wide, wide, wide]))
    case = Case("a", given=given)
    seen = np.stack([drawn(case, 7, k).landmarks.points for k in range(4000)])
    assert np.allclose(seen[:, 0].mean(0), [1, 2], atol=0.15)
    assert np.allclose(np.cov(seen[:, 0].T), wide, atol=0.35)
    assert (seen[:, 1] == [1, 2]).all() and np.isnan(seen[:, 3]).all()
    assert np.array_equal(*(drawn(case, 7, 3).landmarks.points for _ in range(2)), equal_nan=True)
    bare = Case("b", given=landmarks([[1, 2]] * 4))
    assert drawn(bare, 1) is bare
    several = [DrawnCases([case, bare], 7) for _ in range(2)]
    a, b = ([cases[0].landmarks.points[0].tolist() for _ in range(3)] for cases in several)
    assert a == b and len({tuple(x) for x in a}) == 3
    assert len(several[0]) == 2 and several[0][1:][0] is bare


def test_images_without_landmarks_are_learned_from(study: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cell is blank.*`teacher`"):
        fit(study, tmp_path / "without", config(steps=4), report=QUIET)
    run = tmp_path / "student"
    fit(study, run, config("val_fraction=0", steps=20), teacher=teacher, report=QUIET)
    card = (run / "card.md").read_text()
    assert "| distilled | taught by run: 6 annotated images, 2 without landmarks" in card
    assert not (run / "cache").exists()
    known = load_run(run).plan.images
    assert known is not None
    assert set(known.learned) == load(teacher).learned | load(teacher).chosen  # eight images in all
    division = read_division(study, unlabelled=True)
    assert len(division.unlabelled) == 2 and len(division.train) + len(division.val) == 6


def test_blanks_that_a_later_manifest_fills_need_no_teacher(study: Path) -> None:
    division = read_division([study, study.with_name("cases.csv")], val_fraction=0)
    assert len(division.train) == 8 and not division.unlabelled
    seven = without(study.with_name("cases.csv"), "seven.csv", [7])
    with pytest.raises(InputError, match=r"seven.csv: case7: the landmarks cell is blank"):
        read_division([study, seven], val_fraction=0)


def test_rows_without_landmarks_are_passed_over_where_errors_are_measured(
    study: Path, teacher: Path, tmp_path: Path
) -> None:
    found = evaluate(teacher, study, tmp_path / "e", split="train")
    assert len(found.predictions.landmarks) == 6
    assert "Not scored, because they have no landmarks: case6, case7." in found.notes
    calibrate(teacher, study, tmp_path / "c")
    assert read_json(tmp_path / "c" / "calibration.json")["cases"] == 1  # a fifth of six


def test_an_image_of_another_dimension_is_named_before_the_teacher_is_asked(
    study: Path, teacher: Path, tmp_path: Path
) -> None:
    flat = tiny.write_study(tmp_path / "flat", 1, ndim=2).with_name("case0.png")
    manifest = study.with_name("mixed.csv")
    manifest.write_text(study.read_text().replace("case7.nii.gz,,train,", f"{flat},,train,2"))
    with pytest.raises(InputError, match=r"case 'case7' \(row 9\): .*case0.png is 2D, the landmarks are 3D"):
        Teacher.of(teacher, tmp_path / "out", config()).check(read_division(manifest, unlabelled=True), QUIET)
    with pytest.raises(InputError, match=r"case 'case7' \(row 9\): .*case0.png is 2D"):
        plan(manifest)
    volume, pixels = study.with_name("case0.nii.gz"), tiny.write_study(tmp_path / "pixels", 3, ndim=2)
    pixels.write_text(pixels.read_text().replace("case2.png,case2.csv,train,2", f"{volume},,train,"))
    with pytest.raises(InputError, match=r"case 'case2' \(row 4\): .*case0.nii.gz is 3D, the landmarks are 2D"):
        plan(pixels)


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
    said = np.stack([model.predict(i).landmarks.points for i in images])
    assert np.mean(apart) < 0.6 * np.linalg.norm(said - said.mean(0), axis=-1).mean()  # the mean position's


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_it_goes_on_with_the_same_teacher_only(
    study: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anatomark.training import fit as module

    whole = fit(study, tmp_path / "whole", config(steps=20), teacher=teacher, report=QUIET)
    full = study.with_name("cases.csv")
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_stage", killed)
        for run, cases, by in (("run", study, teacher), ("plain", full, None)):
            with pytest.raises(KeyboardInterrupt):
                fit(cases, tmp_path / run, config(steps=20), teacher=by, report=QUIET)
    other = believed(fit(full, tmp_path / "other", config(steps=200, seed=3), report=QUIET).run)
    for run, cases, by, began in (
        ("run", full, None, "with a teacher"),
        ("run", study, other, "with another teacher"),
        ("plain", full, teacher, "without a teacher"),
    ):
        with pytest.raises(InputError, match=f"began {began}"):
            fit(cases, tmp_path / run, config(steps=20), teacher=by, resume=True, report=QUIET)
    again = fit(study, tmp_path / "run", config(steps=20), teacher=teacher, resume=True, report=QUIET)
    assert (again.run / "weights.safetensors").read_bytes() == (whole.run / "weights.safetensors").read_bytes()


def test_answers_are_kept_by_image_not_by_name(study: Path, teacher: Path, tmp_path: Path) -> None:
    """Another study has cases of the same names: what was said of the first is not said of them."""
    model, cache = load(teacher), tmp_path / "cache"
    division = read_division(study, val_fraction=0, unlabelled=True)
    first = taught(division, Teacher("t", model), 0.5, 0.0, cache, QUIET)
    assert len(list((cache / "teacher").glob("*.json"))) == 8
    elsewhere = tiny.write_study(tmp_path / "other", 8, splits=["train"] * 8, size=25)
    moved = read_division(without(elsewhere, "partly.csv", [6, 7]), val_fraction=0, unlabelled=True)
    second = taught(moved, Teacher("t", model), 0.5, 0.0, cache, QUIET)
    assert len(list((cache / "teacher").glob("*.json"))) == 16
    for case in second.train[6:]:
        said = model.predict(case.image()).landmarks
        assert np.allclose(case.landmarks.points, said.points, atol=1e-3)
    assert not np.allclose(second.train[6].landmarks.points, first.train[6].landmarks.points, atol=1e-3)
    again = taught(division, Teacher("t", model), 0.5, 0.0, cache, QUIET)
    for a, b in zip(first.train, again.train, strict=True):
        assert np.array_equal(a.landmarks.points, b.landmarks.points)


def test_nothing_of_the_held_out_cases_is_learned(study: Path, teacher: Path, tmp_path: Path) -> None:
    """Blank copies of a validation image, plain or simulated, are left out; the card says what the teacher knows."""
    rows = list(csv.DictReader(study.with_name("cases.csv").open()))
    made = study.parent / "sim" / "images"
    made.mkdir(parents=True)
    (made.parent / "simulate.json").write_text("{}")
    shutil.copy(study.parent / "case3.nii.gz", made / "warped.nii.gz")
    shutil.copy(study.parent / "case5.nii.gz", study.parent / "copy.nii.gz")
    rows[5]["split"] = "val"
    rows.append({**rows[0], "case": "again", "image": "copy.nii.gz", "landmarks": "", "split": "train"})
    rows.append({**rows[0], "case": "case5_sim0001", "image": "sim/images/warped.nii.gz", "landmarks": ""})
    rows[5] = {**rows[5], "case": "case5_sim0002"}  # itself simulated: from the same as the one before
    shutil.copy(study.parent / "case5.nii.gz", made / "other.nii.gz")
    rows[5]["image"] = "sim/images/other.nii.gz"
    with study.with_name("held.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    run = fit(study.with_name("held.csv"), tmp_path / "run", config(steps=20), teacher=teacher, report=QUIET).run
    card = (run / "card.md").read_text()
    assert "7 annotated images, 0 without landmarks" in card
    assert "held out for validation: again, case5_sim0001" in card
    assert "it knows 1 of the 1 validation case" in card


def test_copies_to_validate_on_are_of_annotations(study: Path, teacher: Path, tmp_path: Path) -> None:
    """Where no case can be spared, nothing of the teacher is taken for the truth."""
    lone = without(study, "few.csv", range(2, 8))
    seen: list[np.ndarray] = []
    from anatomark.training import start

    with pytest.MonkeyPatch.context() as patch:
        copied = start.augmented_copy
        patch.setattr(start, "augmented_copy", lambda i, m, r: (seen.append(m.points), copied(i, m, r))[1])
        fit(lone, tmp_path / "run", config(steps=20), teacher=teacher, report=QUIET)
    given = [c.landmarks.points for c in read_division(study.with_name("cases.csv"), val_fraction=0).train]
    assert len(seen) == 4
    for k, points in enumerate(seen):
        assert np.array_equal(points, given[k % 2])


def test_collected_examples_are_drawn_too(study: Path, teacher: Path, tmp_path: Path) -> None:
    seen: list[bool] = []
    original = tiny.Tiny.collect

    def collect(self, cases, stage, rng):  # type: ignore[no-untyped-def]
        seen.append(not np.array_equal(cases[0].landmarks.points, cases[0].landmarks.points, equal_nan=True))
        return original(self, cases, stage, rng)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny.Tiny, "collect", collect)
        fit(
            study,
            tmp_path / "a",
            config("method.collected=true", "teacher_spread=1", steps=20),
            teacher=teacher,
            report=QUIET,
        )
        assert any(seen)
        seen.clear()
        fit(study.with_name("cases.csv"), tmp_path / "b", config("method.collected=true", steps=20), report=QUIET)
        assert seen and not any(seen)


def test_licences_of_both_bind(study: Path, teacher: Path, tmp_path: Path) -> None:
    full = study.with_name("cases.csv")
    first = fit(full, tmp_path / "i", config("license=CC-BY-4.0", steps=20), report=QUIET).run
    guide = believed(fit(full, tmp_path / "t", config("license=CC-BY-NC-4.0", steps=200), report=QUIET).run)
    run = fit(study, tmp_path / "s", config(steps=20), init=first, teacher=guide, report=QUIET).run
    assert "| CC-BY-4.0; CC-BY-NC-4.0 |" in (run / "card.md").read_text()


def test_a_blank_row_is_filled_by_a_later_manifest(study: Path) -> None:
    later = without(study.with_name("cases.csv"), "later.csv", [0])
    division = read_division([study, later], val_fraction=0, unlabelled=True)
    assert not division.unlabelled
    assert [c.landmarks.defined.all() for c in division.train] == [True] * 8
    assert all(c.observers() for c in division.train)
    both = without(study, "both.csv", [6])
    assert [c.id for c in read_division([study, both], val_fraction=0, unlabelled=True).unlabelled] == [
        "case6",
        "case7",
    ]


def test_teachers_that_cannot_teach(study: Path, teacher: Path, tmp_path: Path) -> None:
    flat = tiny.write_study(tmp_path / "flat", 4, ndim=2)
    with pytest.raises(InputError, match="3D images, the cases' landmarks are 2D"):
        fit(flat, tmp_path / "a", config(steps=4), teacher=teacher, report=QUIET)
    with pytest.raises(InputError, match="give one of them"):
        fit(study, tmp_path / "a", config(steps=4), teacher=teacher, folds=2, report=QUIET)
    inside = tmp_path / "several"
    shutil.copytree(teacher, inside / "1")
    with pytest.raises(InputError, match="holds `out`"):
        fit(study, inside / "2", config(steps=4), teacher=inside, report=QUIET)
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
