"""A review of annotations: suspect cases first, what was corrected counts, what is annotated anew is taken up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.case import Case
from anatomark.cases.find import find_images_as_cases
from anatomark.cases.manifests import read_manifests
from anatomark.errors import InputError
from anatomark.io.landmarks import read_landmarks, write_landmarks
from anatomark.progress import Reporter
from anatomark.review import Review
from anatomark.review.annotated import write_annotations
from anatomark.serve.desk import Setting
from anatomark.serve.start import divided, predicted_first

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
    return Review(out, find_images_as_cases(images), setting.predictions)


def test_annotations_are_reviewed_the_suspect_first_and_corrections_count(study: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in study.parent.iterdir()}
    with opened(study, tmp_path / "out") as review:
        first, *others = review.queue()
        assert first["id"] in ("case3", "case4") and {first["id"], others[0]["id"]} == {"case3", "case4"}
        flags = {row["id"]: row["flags"] for row in review.queue()}
        assert "outside the image" in flags["case3"][0] and flags["case4"] == ["no prediction"] and not flags["case0"]
        review.change("case3", [{"name": "b", "state": "confirmed", "position": [30.0, 16.0, 24.0]}], "Ann")
        review.done("case3", "Ann")
    cases = {c.id: c for c in read_manifests([study, tmp_path / "out" / "cases.csv"], unlabelled=True).cases}
    old = {c.id: c for c in read_manifests([study], unlabelled=True).cases}
    assert cases["case3"].split == "test" and cases["case3"].landmarks["b"].tolist() == [30, 16, 24]
    np.testing.assert_allclose(cases["case3"].landmarks["a"], old["case3"].landmarks["a"], atol=1e-6)
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
        assert [m["model_name"] for m in review.summary()["models"]] == ["annotations"] * 2


def test_a_manifest_without_landmarks_has_nothing_to_look_at(study: Path, tmp_path: Path) -> None:
    text = study.read_text().splitlines()
    study.write_text("\n".join([text[0], *(",".join([*row.split(",")[:2], "", "train", ""]) for row in text[1:])]))
    with pytest.raises(InputError, match=r"none of its cases has landmarks.*folder that predict wrote"):
        write_annotations([study], tmp_path / "found", QUIET)
    assert not (tmp_path / "found").exists()
    assert isinstance(find_images_as_cases([study])[0], Case)
