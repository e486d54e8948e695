"""A review of annotations: suspect cases first, what was corrected counts, what is annotated anew is taken up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.find import find_images_as_cases
from anatomark.cases.manifests import read_manifests
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.landmarks import read_landmarks, write_landmarks
from anatomark.model.prediction import Prediction, write_prediction
from anatomark.progress import Reporter
from anatomark.review import Review
from anatomark.serve.desk import Setting
from anatomark.serve.start import divided, predicted_first
from anatomark.training.plan import plan

QUIET = Reporter(quiet=True)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Five cases, of which the fourth has its second landmark outside the image, the last without landmarks."""
    path = tiny.write_study(tmp_path / "study", 5, splits=("train", "train", "val", "test"))
    marks = read_landmarks(path.parent / "case3.mrk.json")
    points = marks.points.copy()
    points[1] = 500
    write_landmarks(marks.with_points(points), path.parent / "case3.mrk.json")
    path.write_text(path.read_text().replace("case4.mrk.json", ""))
    return path


def opened(path: Path, out: Path) -> Review:
    """As the command opens a manifest alone."""
    folder, images = divided([path], out, None)
    setting = predicted_first(Setting(out, images, folder), False, QUIET)
    return Review(out, setting.cases(), setting.predictions)


def of_model(path: Path, out: Path, name: str) -> Review:
    """A review in ``out`` of what a model of this name predicted."""
    cases, found = find_images_as_cases([path]), out.with_name("found")
    found.mkdir()
    for k, case in enumerate(cases):
        made = Prediction(tiny.blobs(k)[1], source={"case": case.id, "model": "abc", "model_name": name})
        write_prediction(made, found, case.id, ["json"])
    return Review(out, cases, found)


def test_annotations_are_reviewed_the_suspect_first_and_corrections_count(study: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in study.parent.iterdir()}
    with opened(study, tmp_path / "out") as review:
        first, *others = review.queue()
        assert {first["id"], others[0]["id"]} == {"case3", "case4"}
        flags = {row["id"]: row["flags"] for row in review.queue()}
        assert "outside the image" in flags["case3"][0] and not flags["case0"]
        assert flags["case4"] == ["no landmark is annotated"]
        review.change("case3", [{"name": "b", "state": "confirmed", "position": [30.0, 16.0, 24.0]}], "Ann")
        review.change("case3", [{"name": "c", "state": "missing"}], "Ann")
        review.done("case3", "Ann")
    cases = {c.id: c for c in read_manifests([study, tmp_path / "out" / "cases.csv"], unlabelled=True).cases}
    old = {c.id: c for c in read_manifests([study], unlabelled=True).cases}
    assert cases["case3"].split == "test" and cases["case3"].landmarks["b"].tolist() == [30, 16, 24]
    np.testing.assert_allclose(cases["case3"].landmarks["a"], old["case3"].landmarks["a"], atol=1e-6)
    assert old["case3"].landmarks.defined.all() and cases["case3"].landmarks.defined.tolist() == [True, True, False]
    np.testing.assert_array_equal(cases["case0"].landmarks.points, old["case0"].landmarks.points)
    assert {file: file.read_bytes() for file in study.parent.iterdir()} == before


def test_what_is_annotated_anew_is_taken_up_and_what_was_decided_stays(study: Path, tmp_path: Path) -> None:
    with opened(study, tmp_path / "out") as review:
        review.change("case0", [{"name": "a", "state": "confirmed", "position": [12.0, 14.0, 20.0]}], "Ann")
    marks = read_landmarks(study.parent / "case0.mrk.json")
    write_landmarks(marks.with_points(marks.points + 1), study.parent / "case0.mrk.json")
    with opened(study, tmp_path / "out") as review:
        points = {p.name: p.position for p in review.case("case0").points}
        assert points["a"] == (12, 14, 20)
        np.testing.assert_allclose(points["b"], marks["b"] + 1, atol=1e-4)
        assert [m["model_name"] for m in review.summary()["models"]] == ["annotations"]


def test_a_manifest_without_landmarks_has_nothing_to_look_at(study: Path, tmp_path: Path) -> None:
    text = study.read_text().splitlines()
    study.write_text("\n".join([text[0], *(",".join([*row.split(",")[:2], "", "train", ""]) for row in text[1:])]))
    with pytest.raises(InputError, match=r"none of the cases has landmarks.*folder that predict wrote"):
        opened(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_annotations_that_cannot_be_read_are_all_named_and_nothing_is_written(study: Path, tmp_path: Path) -> None:
    write_landmarks(Landmarks(("a",), np.ones((1, 2))), study.parent / "flat.csv")
    (study.parent / "case0.mrk.json").write_text("{}")
    study.write_text(study.read_text().replace("case2.mrk.json", "flat.csv"))
    with pytest.raises(InputError) as caught:
        opened(study, tmp_path / "out")
    assert "case 'case0', row 2: " in str(caught.value) and "case 'case2', row 4: " in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_of_others_and_a_review_that_is_open_stay_as_they_are(study: Path, tmp_path: Path) -> None:
    own = tmp_path / "out" / "predictions" / "annotations" / "case1.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"case1\.json: exists already and is of no review"):
        opened(study, tmp_path / "out")
    assert own.read_text() == '{"mine": 1}'
    with opened(study, tmp_path / "two"):
        written = tmp_path / "two" / "predictions" / "annotations" / "case0.json"
        before = written.read_bytes()
        marks = read_landmarks(study.parent / "case0.mrk.json")
        write_landmarks(marks.with_points(marks.points + 1), study.parent / "case0.mrk.json")
        with pytest.raises(InputError, match="another run"):
            opened(study, tmp_path / "two")
        assert written.read_bytes() == before


def test_each_case_shows_its_own_points_and_what_was_cleared_stays_so(study: Path, tmp_path: Path) -> None:
    head, *rows = study.read_text().splitlines()
    swapped = [
        row.replace("case4.nii", "x").replace("case0.nii", "case4.nii").replace("x", "case0.nii") for row in rows
    ]
    study.write_text("\n".join([head, *swapped]) + "\n")  # case4, which nobody annotated, has the image case0
    with opened(study, tmp_path / "out") as review:
        assert all(p.position is None for p in review.case("case4").points) and len(review.case("case4").points) == 3
        review.change("case1", [{"name": "a", "state": "missing"}], "Ann")
    study.write_text("\n".join([head, *swapped[::-1]]) + "\n")
    marks = read_landmarks(study.parent / "case1.mrk.json")
    write_landmarks(marks.with_points(marks.points + 1), study.parent / "case1.mrk.json")
    with opened(study, tmp_path / "out") as review:
        assert (
            review.case("case1").point("a").state == "missing" and review.case("case1").point("b").state == "predicted"
        )


def test_a_case_of_which_all_is_cleared_teaches_nothing(study: Path, tmp_path: Path) -> None:
    with opened(study, tmp_path / "out") as review:
        review.change("case0", [{"name": n, "state": "missing"} for n in "abc"], "Ann")
        review.done("case0", "Ann")
    cases = {c.id: c for c in read_manifests([study, tmp_path / "out" / "cases.csv"], unlabelled=True).cases}
    assert not cases["case0"].landmarks.defined.any() and cases["case1"].landmarks.defined.all()
    file = tmp_path / "out" / "truth" / "case0.csv"
    file.write_text(file.read_text().replace("cleared", "unannotated"))
    os.utime(file, (time.time() + 10,) * 2)
    with opened(study, tmp_path / "out"):  # somebody else's file is kept, and made anew
        assert file.with_name("case0.earlier.csv").exists() and "cleared" in file.read_text()


def test_annotations_and_then_a_model_in_one_review_and_not_the_other_way(study: Path, tmp_path: Path) -> None:
    with opened(study, tmp_path / "out") as review:
        review.change("case0", [{"name": "a", "state": "missing"}], "Ann")
        review.done("case0", "Ann")
    with of_model(study, tmp_path / "out", "net") as review:
        assert review.case("case0").point("a").state == "missing" and review.case("case0").model == "abc"
    truth = {c.id: c for c in read_manifests([study, tmp_path / "out" / "cases.csv"], unlabelled=True).cases}
    assert truth["case0"].landmarks.defined.tolist() == [False, True, True]
    with pytest.raises(InputError, match="holds a review of what net predicted"):
        opened(study, tmp_path / "out")


def test_what_a_model_found_and_somebody_cleared_takes_no_annotation_away(study: Path, tmp_path: Path) -> None:
    with of_model(study, tmp_path / "out", "annotations") as review:
        review.change("case0", [{"name": "a", "state": "missing"}], "Ann")
        review.done("case0", "Ann")
    truth = {c.id: c for c in read_manifests([study, tmp_path / "out" / "cases.csv"], unlabelled=True).cases}
    assert truth["case0"].landmarks.defined.all()


def test_a_row_with_a_blank_split_is_no_part_of_it(study: Path, tmp_path: Path) -> None:
    study.write_text(study.read_text().replace("case2.mrk.json,val", "gone.mrk.json,"))
    with opened(study, tmp_path / "out") as review:
        assert {row["id"] for row in review.queue()} == {"case0", "case1", "case3", "case4"}


def test_corrected_points_are_judged_where_they_are(study: Path, tmp_path: Path) -> None:
    marks = read_landmarks(study.parent / "case0.mrk.json")
    write_landmarks(marks.with_points(marks.points * [[0.0], [1], [1]]), study.parent / "case0.mrk.json")
    assert plan(study).facts["suspects"][0]["kind"] in ("placeholder", "outside")
    with opened(study, tmp_path / "out") as review:
        review.change("case0", [{"name": "a", "state": "moved", "position": [12.0, 14.0, 20.0]}], "Ann")
        review.done("case0", "Ann")
    found = plan([study, tmp_path / "out" / "cases.csv"]).facts["suspects"]
    assert not [one for one in found if one["case"] == "case0"]
