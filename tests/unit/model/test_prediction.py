"""Predictions: plain and back, on disk and back; and the one loop that makes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import anatomark
import tiny
from anatomark.cases.case import Case
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.landmarks import read_landmarks
from anatomark.model.prediction import Prediction, endings, read_prediction, write_prediction
from anatomark.model.run_cases import run_cases
from anatomark.progress import Reporter

LANDMARKS = Landmarks(("a", "b"), np.array([[1.0, 2, 3], [4, 5, 6]]))
NUMBERS = st.none() | st.floats(0, 1e6).map(lambda x: round(x, 3))
TEXTS = st.lists(st.text(), max_size=3).map(tuple)


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    """Anything that a model, an ensemble or an average of views can say of a case."""
    return Prediction(
        LANDMARKS,
        draw(TEXTS),
        draw(NUMBERS | st.just(float("inf"))),
        draw(NUMBERS),
        draw(NUMBERS),
        draw(NUMBERS),
        draw(TEXTS),
        draw(st.none() | st.integers(1, 9)),
        draw(st.none() | st.dictionaries(st.sampled_from("ab"), st.lists(st.integers(0, 9) | st.text(), min_size=1))),
        draw(st.dictionaries(st.sampled_from(["case", "model", "model_name", "image", "image_key"]), st.text())),
        draw(TEXTS),
        draw(st.text()),
    )


@given(predictions())
def test_what_is_plain_comes_back(made: Prediction) -> None:
    plain = made.to_json()
    again = Prediction.from_json(json.loads(json.dumps(plain, allow_nan=False)), LANDMARKS)
    for one in fields(Prediction):
        assert getattr(again, one.name) == getattr(made, one.name), one.name
    assert plain["anatomark"] == anatomark.__version__ and plain["flagged"] == bool(made.flags)


@pytest.mark.parametrize("facts", [{}, {"flags": "odd", "seconds": "soon", "schema": 1}])
def test_files_of_other_programs_say_nothing_beside_the_landmarks(facts: dict[str, Any]) -> None:
    assert vars(Prediction.from_json(facts, LANDMARKS)) == vars(Prediction(LANDMARKS))


def whole(ndim: int) -> Prediction:
    """Two landmarks that are placed and one that is absent, with all that is known of them."""
    spread = np.stack([np.diag([1.0, 2, 3])[:ndim, :ndim], np.eye(ndim), np.full((ndim, ndim), np.nan)])
    landmarks = Landmarks(
        ("a", "b", "c"), np.array([[11.25, 14.5, 20], [30, 16, 24], [np.nan] * 3])[:, :ndim],
        (Status.DEFINED, Status.DEFINED, Status.ABSENT), np.array([0.93, 0.5, 0.1]), spread,
        np.array([1.2, 3.4, np.nan]), ("AC", "", ""),
    )  # fmt: skip
    return Prediction(
        landmarks, ("low score: b",), 4.25, 3.5, 1.5, 0.25, ("one", "two"), 2, {"a": ["two"]},
        {"case": "scan", "model": "abc", "model_name": "m", "image": "/scan.png", "image_key": "k"},
    )  # fmt: skip


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("format", ["mrk.json", "fcsv", "csv"])
def test_written_and_read_back(tmp_path: Path, ndim: int, format: str) -> None:
    made, (image, _) = whole(ndim), tiny.blobs(0, ndim)
    which = endings(ndim, format, pictures=True)
    files = write_prediction(made, tmp_path, "scan", which, image)
    expected = {format, "json", "png", *(["csv"] if ndim == 2 else [])}
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in files} == {f"scan.{e}" for e in expected}
    assert files[-1].suffix == ".json"  # so that its presence means finished
    case = Case("scan", held=image)
    again = read_prediction(replace(case, given=made.landmarks), tmp_path / "scan.json")
    for one in fields(Prediction):
        if one.name != "landmarks":
            assert getattr(again, one.name) == getattr(made, one.name), one.name
    for name in ("names", "status", "descriptions"):
        assert getattr(again.landmarks, name) == getattr(made.landmarks, name)
    for name in ("points", "score", "covariance", "radius90"):
        np.testing.assert_array_equal(getattr(again.landmarks, name), getattr(made.landmarks, name))
    other = read_landmarks(tmp_path / f"scan.{format}", case="scan" if format == "csv" else None)
    assert other.names == made.landmarks.names
    np.testing.assert_allclose(other.points[:2, :ndim], made.landmarks.points[:2], atol=1e-3)


def test_a_2d_prediction_in_a_3d_file_is_2d_where_the_case_is(tmp_path: Path) -> None:
    made, (image, truth) = whole(2), tiny.blobs(0, 2)
    write_prediction(made, tmp_path, "scan", ["mrk.json"], image)
    again = read_prediction(Case("scan", given=truth, held=image), tmp_path / "scan.mrk.json")
    np.testing.assert_allclose(again.landmarks.points, made.landmarks.points, atol=1e-6)


# ---------------------------------------------------------------------- the loop


class Noted(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.titles: list[tuple[str, int]] = []

    def bar(self, title: str, total: int, done: int = 0) -> Any:
        self.titles.append((title, total))
        return super().bar(title, total, done)


def cases(missing: Path) -> list[Case]:
    (first, truth), (second, _) = tiny.blobs(0), tiny.blobs(1)
    flat = tiny.blobs(0, 2)[1]
    return [
        Case("first", given=truth, held=first),
        Case("missing", missing / "no.nii.gz"),
        Case("unfit", held=second),
        Case("of another dimension", given=flat, held=first),
        Case("last", held=second),
    ]


def find(case: Case, image: Image) -> Prediction:
    if case.id == "unfit":
        raise InputError("is constant")
    return Prediction(LANDMARKS, (case.id,), seconds=1e9)


def test_a_case_that_fails_is_an_outcome_and_the_others_go_on(tmp_path: Path) -> None:
    report, all_cases = Noted(), cases(tmp_path)
    outcomes = list(run_cases(find, all_cases, report, "look"))
    assert [o.case for o in outcomes] == all_cases
    assert [o.prediction is not None for o in outcomes] == [True, False, False, False, True]
    assert [bool(o.reason) for o in outcomes] == [False, True, True, True, False]
    assert "no.nii.gz" in outcomes[1].reason and outcomes[2].reason == "is constant"
    assert "2D" in outcomes[3].reason and "3D" in outcomes[3].reason
    done = outcomes[-1]
    assert done.prediction is not None and done.prediction.flags == ("last",)
    assert done.prediction.seconds is not None and done.prediction.seconds < 60  # what it took, whatever was said
    assert done.image is all_cases[-1].held
    assert report.titles == [("look", 5)]


def test_what_is_our_fault_is_not_taken_for_a_bad_case(tmp_path: Path) -> None:
    def broken(case: Case, image: Image) -> Prediction:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(run_cases(broken, cases(tmp_path)[-1:]))


def test_what_its_reader_says_of_an_image_stands_in_the_prediction() -> None:
    image = replace(tiny.blobs(0)[0], meta={"geometry": {"notes": ["left and right are unknown"]}})
    (outcome,) = run_cases(lambda case, image: Prediction(LANDMARKS), [Case("a", held=image)])
    assert outcome.prediction is not None and outcome.prediction.notes == ("left and right are unknown",)
    assert outcome.prediction.to_json()["notes"] == ["left and right are unknown"]


def test_cases_are_read_one_after_the_other(tmp_path: Path) -> None:
    asked: list[str] = []

    def noted(case: Case, image: Image) -> Prediction:
        asked.append(case.id)
        return find(case, image)

    some: Sequence[Case] = [c for c in cases(tmp_path) if c.id in ("first", "last")]
    loop = run_cases(noted, some)
    next(loop)
    assert asked == ["first"]
