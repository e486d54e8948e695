"""Presence: crops that remove landmarks, the threshold that they give, and what a model then says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import random_rotation
from anatomark.errors import InputError
from anatomark.io.landmarks import read_landmarks
from anatomark.model.confidence.presence import presence_scores, with_absent
from anatomark.model.confidence.presence_trials import (
    Trials,
    case_trials,
    crop_trials,
    frozen_threshold,
    random_crop,
)
from anatomark.model.config import make_config
from anatomark.model.model import flags
from anatomark.model.predict import load, predict_paths
from anatomark.progress import Reporter
from anatomark.training.fit import fit

tiny.register()
QUIET = Reporter(quiet=True)
CUBE = Grid.from_axes((10, 10, 10), np.eye(3)[:, ::-1], np.zeros(3))
ABSENT, DEFINED, UNKNOWN = Status.ABSENT, Status.DEFINED, Status.UNANNOTATED


def scene(seed: int, ndim: int, count: int) -> tuple[Image, Landmarks]:
    """Noise on a turned grid with another spacing along each axis, some of them flipped, and points well inside."""
    rng = np.random.default_rng([seed, ndim])
    shape = rng.integers(40, 70, ndim)
    axes = random_rotation(rng, ndim) * (rng.uniform(0.4, 2.5, ndim) * rng.choice([-1, 1], ndim))
    grid = Grid.centred(shape.tolist(), axes, rng.uniform(-100, 100, ndim))
    points = grid.to_world(rng.uniform(0.1, 0.9, (count, ndim)) * (shape - 1))
    image = Image(rng.normal(size=(1, *shape)).astype(np.float32), grid)
    return image, Landmarks(tuple(f"p{i}" for i in range(count)), points)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), ndim=st.sampled_from([2, 3]), count=st.integers(6, 40))
def test_a_crop_removes_a_share_and_moves_nothing(seed: int, ndim: int, count: int) -> None:
    image, truth = scene(seed, ndim, count)
    crop, known = random_crop(image, truth, np.random.default_rng(seed), margin_mm=0.0)
    assert 0.2 <= np.mean(~crop.grid.contains(truth.points)) <= 0.5
    outside = [s is ABSENT for s in known.status]
    assert outside == (~crop.grid.contains(truth.points)).tolist()
    np.testing.assert_array_equal(known.points[known.defined], truth.points[known.defined])
    # a voxel of the crop is the voxel of the image at the same place in the world
    index = np.random.default_rng(seed).integers(0, crop.grid.shape, (20, ndim))
    there = image.grid.to_index(crop.grid.to_world(index))
    np.testing.assert_allclose(there, np.rint(there), atol=1e-6)
    found = crop.array[(0, *index.T)]
    np.testing.assert_array_equal(found, image.array[(0, *np.rint(there).astype(int).T)])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ndim=st.sampled_from([2, 3]), margin=st.floats(0.5, 8))
def test_only_what_lies_near_a_cut_is_left_out(seed: int, ndim: int, margin: float) -> None:
    image, truth = scene(seed, ndim, 20)
    crop, exact = random_crop(image, truth, np.random.default_rng(seed), margin_mm=0.0)
    same, known = random_crop(image, truth, np.random.default_rng(seed), margin_mm=margin)
    assert crop.grid == same.grid
    # distance to the borders that were cut, the old ones being far: by brute force over planes in world mm
    normals = image.grid.axes / image.grid.spacing
    for k, state in enumerate(known.status):
        gaps = []
        for a in range(ndim):
            for border, old in ((-0.5, -0.5), (crop.grid.shape[a] - 0.5, image.grid.shape[a] - 0.5)):
                corner = np.zeros(ndim)
                corner[a] = border
                sign = 1 if border == -0.5 else -1
                moved = image.grid.to_index(crop.grid.to_world(corner))[a]
                if abs(moved - old) > 1e-6:
                    gaps.append(sign * float((truth.points[k] - crop.grid.to_world(corner)) @ normals[:, a]))
        assert gaps
        near = abs(min(gaps)) <= margin
        assert state is (UNKNOWN if near else exact.status[k])


def test_states_of_the_truth_are_kept_and_the_crop_is_seeded() -> None:
    image, truth = scene(1, 3, 12)
    states = (ABSENT, UNKNOWN, *[DEFINED] * 10)
    truth = replace(truth, status=states)
    one, known = random_crop(image, truth, np.random.default_rng(5))
    assert known.status[:2] == states[:2]
    again, _ = random_crop(image, truth, np.random.default_rng(5))
    assert one.grid == again.grid
    assert any(random_crop(image, truth, np.random.default_rng(s))[0].grid != one.grid for s in range(4))


def test_an_image_that_cannot_be_cut_so_is_refused() -> None:
    heap = Landmarks(("a", "b", "c", "d"), np.full((4, 3), 4.5))
    image = Image(np.zeros((1, 10, 10, 10)), CUBE)
    with pytest.raises(InputError, match="removes 20% to 50% of its 4 landmarks"):
        random_crop(image, heap, np.random.default_rng(0))
    away = Landmarks(("a",), np.array([[50.0, 0, 0]]))
    with pytest.raises(InputError, match="0 landmarks"):
        random_crop(image, away, np.random.default_rng(0))
    assert crop_trials(lambda image: heap, image, heap, np.random.default_rng(0)).failed == 1


def test_presence_scores_and_the_images_border() -> None:
    points = [[5, 5, 5], [-0.9, 5, 5], [-1.1, 5, 5], [5, 5, 9.9], [np.nan] * 3]
    found = Landmarks(tuple("abcde"), np.array(points), score=np.array([0.3, 1.2, 0.9, np.nan, 0.9]))
    assert presence_scores(found, CUBE).tolist() == [0.3, 1, 0, 1, 0]
    assert presence_scores(replace(found, score=None), CUBE).tolist() == [1, 1, 0, 1, 0]


def test_the_threshold_separates_and_lies_in_the_gap() -> None:
    made = Trials(np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.7, 0.8]), np.array([0.6, 0.7, 0.9]), crops=2)
    entry = frozen_threshold(made)
    assert entry is not None
    assert entry["threshold"] == pytest.approx(0.45)
    assert (entry["recall"], entry["precision"], entry["false_absences"], entry["n"]) == (1, 1, 0, 6)
    assert frozen_threshold(None) is None
    assert frozen_threshold(Trials(whole=np.ones(4))) is None


def test_whole_images_bound_the_threshold() -> None:
    rng = np.random.default_rng(0)
    # absent landmarks score up to 0.8; a tenth of those in whole images lies below that
    whole = np.r_[rng.uniform(0.81, 1, 180), rng.uniform(0.3, 0.79, 20)]
    made = Trials(rng.uniform(0, 0.8, 500), rng.uniform(0.81, 1, 500), whole)
    entry = frozen_threshold(made)
    assert entry is not None
    assert np.mean(whole < entry["threshold"]) <= 0.01
    assert entry["false_absences"] == 0.01 and entry["recall"] < 0.7
    free = frozen_threshold(replace(made, whole=whole[:180]))
    assert free is not None and free["recall"] == 1


def test_points_outside_whole_images_do_not_forbid_every_threshold() -> None:
    entry = frozen_threshold(Trials(np.array([0.1, 0.2]), np.array([0.9]), np.r_[np.zeros(5), np.ones(5)]))
    assert entry is not None
    assert entry["recall"] == 1 and entry["false_absences"] == 0.5


def test_trials_know_what_was_cut_away() -> None:
    image, truth = scene(3, 2, 20)

    def sees(part: Image) -> Landmarks:
        return replace(truth, score=np.where(part.grid.contains(truth.points), 0.9, 0.2))

    made = case_trials(sees, "case", image, truth, sees(image), 0)
    assert made.crops == 1 and made.failed == 0
    assert set(made.present) == {0.9} == set(made.whole) and len(made.whole) == 20
    assert len(made.absent) >= 3 and made.absent.max() <= 0.2
    assert len(made.absent) + len(made.present) <= 20
    told = replace(truth, status=(ABSENT, *[DEFINED] * 19))
    whole = case_trials(None, "case", image, told, sees(image), 0)
    assert whole.absent.tolist() == [0.9] and len(whole.whole) == 19 and whole.crops == 0

    def refuses(part: Image) -> Landmarks:
        raise InputError("too small")

    assert crop_trials(refuses, image, truth, np.random.default_rng(0)).failed == 1


def test_a_prediction_below_the_threshold_is_absent_and_keeps_its_score() -> None:
    points = np.array([[5.0, 5, 5], [5, 5, 5], [50, 5, 5], [np.nan] * 3])
    found = Landmarks(
        tuple("abcd"), points, score=np.array([0.9, 0.2, 0.9, 0.1]), covariance=np.stack([np.eye(3)] * 4),
        radius90=np.ones(4),
    )  # fmt: skip
    assert with_absent(found, CUBE, {}) is found
    border = with_absent(found, CUBE, {"presence": None})
    assert border.status == (DEFINED, DEFINED, ABSENT, ABSENT)
    low = with_absent(found, CUBE, {"presence": {"threshold": 0.5}})
    assert low.status == (DEFINED, ABSENT, ABSENT, ABSENT)
    assert low.score is not None and low.covariance is not None and low.radius90 is not None
    np.testing.assert_array_equal(low.score, found.score)
    assert np.isnan(low.points[1:]).all() and np.isnan(low.covariance[1:]).all() and np.isnan(low.radius90[1:]).all()
    np.testing.assert_array_equal(low.points[0], points[0])
    assert flags(low, Image(np.zeros((1, 10, 10, 10)), CUBE)) == ["absent: b, c, d"]


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
    assert "Absence: below a score" in (tmp_path / "run" / "card.md").read_text()
    image, _ = tiny.blobs(7, ndim)
    narrow = Image(image.array[..., :11], Grid((*image.grid.shape[:-1], 11), image.grid.affine))
    found = load(tmp_path / "run").predict(narrow)  # 0 to 20 mm along x: b at 30 and c at 22 are cut off
    assert found.status == (DEFINED, ABSENT, ABSENT)
    assert found.meta["flags"][0].endswith("absent: b, c")


def test_files_of_a_prediction_say_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = tiny.write_study(tmp_path / "data", 8, ndim=2, splits=["train"] * 4 + ["val"] * 4)
    fit(cases, tmp_path / "run", make_config(method="tiny", steps=2), report=QUIET)

    def unsure(self: Any, image: Image, start: Landmarks | None = None) -> Landmarks:
        return replace(seeing(self, image), score=np.array([0.99, 0.001, 0.99]))

    monkeypatch.setattr(tiny.Tiny, "locate", unsure)
    facts = tiny.read_json(tmp_path / "run" / "calibration.json")
    facts["presence"] = {"threshold": 0.5}
    (tmp_path / "run" / "calibration.json").write_text(json.dumps(facts))
    model, out = load(tmp_path / "run"), tmp_path / "out"
    predict_paths(model, [tmp_path / "data" / "case0.png"], out, spacing=2.0, pictures=True)
    for name in ("case0.mrk.json", "case0.json", "case0.csv"):
        found = read_landmarks(out / name, case="case0" if name.endswith("csv") else None)
        assert found.status == (DEFINED, ABSENT, DEFINED), name
    control = tiny.read_json(out / "case0.mrk.json")["markups"][0]["controlPoints"][1]
    assert control["positionStatus"] == "undefined" and "position" not in control
    entry = tiny.read_json(out / "case0.json")["landmarks"][1]
    assert (entry["status"], entry["position"], entry["score"]) == ("absent", None, 0.001)
    predict_paths(model, [tmp_path / "data" / "case0.png"], tmp_path / "fcsv", spacing=2.0, format="fcsv")
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
