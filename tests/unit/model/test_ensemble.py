"""Averages of models and of views: weights, outliers, absence, radii, and the commands that use them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from anatomark import load
from anatomark.cli import app as cli
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.evaluation.evaluate import evaluate
from anatomark.evaluation.predictions import prediction_folder
from anatomark.model.config import make_config
from anatomark.model.ensemble import Ensemble, combine, is_ensemble, member_paths
from anatomark.model.predict import described_cost, predict
from anatomark.model.prediction import Prediction
from anatomark.model.run_folder import load_run
from anatomark.model.views import Augmented, view
from anatomark.progress import Reporter
from anatomark.training.fit import fit

tiny.register()
QUIET = Reporter(quiet=True)
NAMES = ("a", "b")


def averaged(*answers: Landmarks) -> Landmarks:
    return combine(answers, NAMES)[0]


def answer(a: Any, b: Any = (0.0, 0.0), **more: Any) -> Landmarks:
    return Landmarks(NAMES, np.array([a, b], dtype=float), **more)


# ---------------------------------------------------------------------- averaging


def test_identical_answers_give_the_same_answer() -> None:
    one = answer((3, 4), (5, 6), score=np.array([0.9, 0.4]), radius90=np.array([1.0, 2.0]),
                 covariance=np.stack([np.eye(2), np.diag([2.0, 3])]), descriptions=("x", "y"))  # fmt: skip
    landmarks, left_out = combine([one] * 4, NAMES)
    np.testing.assert_allclose(landmarks.points, one.points)
    for key in ("score", "radius90", "covariance"):
        np.testing.assert_allclose(getattr(landmarks, key), getattr(one, key))
    assert landmarks.descriptions == ("x", "y") and not left_out


def test_weights_are_inverse_squared_radii_then_variances_then_equal() -> None:
    radii = [answer((0, 0), radius90=np.array([1.0, 1])), answer((5, 0), radius90=np.array([2.0, 1]))]
    assert averaged(*radii)["a"][0] == pytest.approx(5 * 0.25 / 1.25)
    spread = [answer(p, covariance=np.stack([np.eye(2) * v] * 2)) for p, v in (((0, 0), 1.0), ((5, 0), 4.0))]
    assert averaged(*spread)["a"][0] == pytest.approx(1)
    mixed = [radii[0], spread[1]]  # neither is known of both
    assert averaged(*mixed)["a"][0] == pytest.approx(2.5)
    sure = [replace(radii[0], radius90=np.array([1e-9, 1])), radii[1]]
    low = 1 / (1 / 3) ** 2  # a radius of nearly nothing counts as a third of the median, here of 1
    assert averaged(*sure)["a"][0] == pytest.approx(5 * 0.25 / (low + 0.25))


@pytest.mark.parametrize("radius", [None, np.array([2.0, 2.0])])
def test_an_outlier_is_left_out(radius: Any) -> None:
    near = [answer((x, 0), radius90=radius) for x in (0.0, 0.5, 1.0)]
    alone, none = combine(near, NAMES)
    landmarks, left_out = combine([*near, answer((90, 0), radius90=radius)], NAMES)
    assert left_out == {"a": [3]} and not none
    np.testing.assert_allclose(landmarks.points, alone.points)


def test_no_majority_is_left_out_and_of_two_none() -> None:
    radius = np.array([0.1, 0.1])
    apart = [answer((x, 0), radius90=radius) for x in (0.0, 5.0, 9.0)]
    landmarks, left_out = combine(apart, NAMES)
    assert not left_out and landmarks["a"][0] == pytest.approx(14 / 3)
    assert averaged(apart[0], apart[2])["a"][0] == pytest.approx(4.5)


def test_disagreement_widens_what_is_said_of_the_error() -> None:
    cover = np.stack([np.eye(2)] * 2)
    pair = [answer((x, 0), covariance=cover, radius90=np.array([2.0, 3])) for x in (-1.0, 1.0)]
    both = averaged(*pair)
    assert both.covariance is not None and both.radius90 is not None
    np.testing.assert_allclose(both.covariance[0], np.diag([2.0, 1]))
    np.testing.assert_allclose(both.radius90, [np.sqrt(5), 3])


def test_absence_is_decided_by_the_majority() -> None:
    absent = replace(answer((0, 0)), status=(Status.ABSENT, Status.DEFINED), score=np.array([0.1, 0.9]))
    here = answer((2, 0), score=np.array([0.7, 0.9]))
    unknown = replace(here, status=(Status.UNANNOTATED, Status.DEFINED))
    for answers, state in (
        ([absent, absent, here], Status.ABSENT),
        ([absent, here], Status.DEFINED),
        ([here, unknown, unknown], Status.DEFINED),
        ([unknown, unknown], Status.UNANNOTATED),
    ):
        assert averaged(*answers).status[0] is state
    both = averaged(absent, absent, here)
    assert both.score is not None and both.score[0] == pytest.approx(0.1) and np.isnan(both.points[0]).all()


def test_answers_are_matched_by_name() -> None:
    turned = answer((3, 3), (1, 1)).select(("b", "a"))
    np.testing.assert_allclose(averaged(answer((3, 3), (1, 1)), turned).points, [[3, 3], [1, 1]])


# ---------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``one`` and ``two`` (other seeds), ``few`` (two landmarks), ``flat`` (2D) and folds of ``two``."""
    home = tmp_path_factory.mktemp("ensemble")
    study = tiny.write_study(home / "data", 9, splits=["train"] * 8 + ["test"])
    flat = tiny.write_study(home / "flatdata", 3, 2)
    for name, seed, more, folds in (("one", 0, [], 0), ("two", 1, [], 3), ("few", 0, ["landmarks=[a, b]"], 0)):
        settings = [f"seed={seed}", "val_fraction=0.63", *more]
        fit(study, home / name, make_config(method="tiny", steps=30, assignments=settings), folds=folds, report=QUIET)
    fit(flat, home / "flat", make_config(method="tiny", steps=3), report=QUIET)
    return home


def test_names_of_several_models(home: Path, tmp_path: Path) -> None:
    one, two = str(home / "one"), str(home / "two")
    assert member_paths(one) == [one] and not is_ensemble(one)
    assert member_paths(f"{one}+{two}") == [one, two] and is_ensemble(f"{one}+{two}")
    folds = [str(home / "two" / "folds" / str(k)) for k in (1, 2, 3)]
    assert member_paths(home / "two" / "folds") == folds
    assert member_paths(f"{two}/folds+{two}") == [*folds, two]
    assert prediction_folder(home / "two" / "folds") is None and prediction_folder(home / "data") is not None
    (tmp_path / "c++").mkdir()
    (tmp_path / "c++" / "one").symlink_to(one)
    odd = f"{tmp_path}/c++/one"
    assert member_paths(odd) == [odd] and member_paths(f"{odd}+{two}") == [odd, two]
    assert member_paths("brain-afids+nowhere") == ["brain-afids", "nowhere"]


def test_an_empty_part_is_not_the_working_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home / "two" / "folds")
    one = str(home / "one")
    for text in (f"{one}+", f"+{one}", f"{one}++{one}", ""):
        with pytest.raises(InputError, match="a part is empty"):
            load(text)
    assert load(f".+{one}").name == "1+2+3+one"


def test_a_folder_with_one_run_is_that_model(home: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "one").symlink_to(home / "one")
    assert prediction_folder(tmp_path / "only") is None and prediction_folder(f"{tmp_path}/only/") is None
    study = home / "data" / "cases.csv"
    inside, named = (evaluate(at, study, tmp_path / f"e{n}") for n, at in enumerate((tmp_path / "only", home / "one")))
    assert inside.model == named.model == load(tmp_path / "only").name == "one"
    assert inside.overall.mre_mm == named.overall.mre_mm


def test_an_ensemble_is_a_model(home: Path) -> None:
    image, _ = tiny.blobs(50)
    one, two = load(home / "one"), load(home / "two")
    both = load(f"{home / 'one'}+{home / 'two'}")
    assert isinstance(both, Ensemble) and (both.names, both.ndim, both.name) == (one.names, 3, "one+two")
    assert len({one.hash, two.hash, both.hash, load(f"{home / 'two'}+{home / 'one'}").hash}) == 4
    prediction, a, b = both.predict(image), one.predict(image).landmarks, two.predict(image).landmarks
    average = prediction.landmarks
    assert a.radius90 is not None and b.radius90 is not None
    w = 1 / np.stack([a.radius90, b.radius90])[..., None] ** 2
    np.testing.assert_allclose(average.points, (np.stack([a.points, b.points]) * w).sum(0) / w.sum(0))
    assert prediction.members == ("one", "two") and average.radius90 is not None
    assert (average.radius90 >= np.minimum(a.radius90, b.radius90)).all()
    twice = load(f"{home / 'one'}+{home / 'one'}").predict(image)
    np.testing.assert_allclose(twice.landmarks.points, a.points)
    assert twice.flags == tuple(f"{flag} (2 of 2 models)" for flag in one.predict(image).flags)
    assert load(home / "two" / "folds").name == "1+2+3"
    assert described_cost(one) == "" and described_cost(both).startswith("2 models: 2 predictions")


def test_one_unproven_model_makes_an_average_unproven(home: Path) -> None:
    image, _ = tiny.blobs(50)
    both = load(f"{home / 'one'}+{home / 'two'}")
    assert isinstance(both, Ensemble) and not both.predict(image).unproven
    both.members[1].calibration["unproven"] = "hardly trained"
    for model in (both, both.members[1], Augmented(both, 2)):
        made = model.predict(image)
        assert made.unproven == "hardly trained" and made.flags[0].startswith("hardly trained")


def test_models_that_do_not_go_together_are_refused(home: Path) -> None:
    with pytest.raises(InputError, match=r"one and .*few: cannot be averaged, only .*one finds 'c'"):
        load(f"{home / 'one'}+{home / 'few'}")
    with pytest.raises(InputError, match="one is for 3D images and one for 2D"):
        load(f"{home / 'one'}+{home / 'flat'}")
    with pytest.raises(InputError, match="nowhere: no such run folder"):
        load(f"{home / 'one'}+nowhere")
    with pytest.raises(InputError, match="one model is needed here"):
        load_run(f"{home / 'one'}+{home / 'two'}")


# ---------------------------------------------------------------------- views


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_view_moves_the_grid_and_comes_back(ndim: int) -> None:
    image, truth = tiny.blobs(3, ndim)
    for number in (1, 2, 3):
        motion, seen = view(image, number)
        index = image.grid.to_index(truth.points)
        there = replace(truth, points=seen.grid.to_world(index))
        np.testing.assert_allclose(motion.from_template(there).points, truth.points, atol=1e-9)
        moved = np.linalg.norm(there.points - truth.points, axis=1)
        assert 0.01 < moved.max() < 12 and seen.array.shape == image.array.shape
        assert float(seen.array.min()) == float(image.array.min())
        same = view(image, number, contrast=False)[1]
        assert same.array is image.array and same.grid == seen.grid == view(image, number)[1].grid
    assert view(image, 1)[1].grid != view(image, 2)[1].grid


class Voxels:
    """Finds the voxel of the largest value, wherever the grid lies: a motion of the grid commutes with it."""

    names, ndim, modality, name, hash, licence, cost = ("a",), 3, "mr", "voxels", "v", "", 1
    calibration: dict[str, Any] = {}
    intensity: dict[str, Any] = {"kind": "percentiles"}
    learned = chosen = frozenset[str]()

    def predict(self, image: Image) -> Prediction:
        at = np.unravel_index(int(image.array[0].argmax()), image.grid.shape)
        points = image.grid.to_world(np.array([at], dtype=float))
        return Prediction(Landmarks(("a",), points, radius90=np.ones(1)), ("odd",))


def test_a_motion_of_the_grid_commutes() -> None:
    image, _ = tiny.blobs(1)
    model: Any = Voxels()
    alone, views = model.predict(image), Augmented(model, 5).predict(image)
    np.testing.assert_allclose(views.landmarks.points, alone.landmarks.points, atol=1e-9)
    assert views.flags == ("odd",) and views.views == 5
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    grid = Grid.from_axes(image.grid.shape, turn @ image.grid.axes, turn @ image.grid.origin)
    turned = Augmented(model, 5).predict(Image(image.array, grid)).landmarks
    np.testing.assert_allclose(turned.points, views.landmarks.points @ turn.T, atol=1e-9)


def test_one_view_is_the_model_itself_and_more_are_averaged(home: Path) -> None:
    image, _ = tiny.blobs(51)
    plain, one, many = load(home / "one"), load(home / "one", tta=1), load(home / "one", tta=4)
    assert not isinstance(one, Augmented) and one.hash == plain.hash
    alone = plain.predict(image).landmarks.points
    np.testing.assert_array_equal(one.predict(image).landmarks.points, alone)
    assert isinstance(many, Augmented) and many.hash != plain.hash and many.cost == 4
    several = many.predict(image).landmarks.points
    np.testing.assert_array_equal(several, many.predict(image).landmarks.points)  # the same image, the same answer
    assert 0 < np.abs(several - alone).max() < 5
    both = load(f"{home / 'one'}+{home / 'two'}", tta=3)
    assert described_cost(both).startswith("2 models, 3 views of each image: 6 predictions")
    assert both.predict(image).members == ("one", "two")
    with pytest.raises(InputError, match="`tta` 0"):
        load(home / "one", tta=0)


# ---------------------------------------------------------------------- commands


def test_predict_and_evaluate_take_several(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    joint, study = f"{home / 'two'}/folds+{home / 'two'}", home / "data" / "cases.csv"
    with pytest.raises(SystemExit) as exit:
        cli.main(["predict", joint, str(home / "data" / "case8.nii.gz"), "--out", str(tmp_path / "p"), "--tta", "2"])
    assert not exit.value.code
    assert "4 models, 2 views of each image: 8 predictions for each image" in " ".join(capsys.readouterr().err.split())
    facts = json.loads((tmp_path / "p" / "case8.json").read_text())
    assert facts["model_name"] == "1+2+3+two" and facts["members"] == ["1", "2", "3", "two"] and facts["views"] == 2
    again = predict(load(joint, tta=2), [home / "data" / "case8.nii.gz"], tmp_path / "p")
    assert [o.state for o in again] == ["skipped"]
    by_name = evaluate(joint, study, tmp_path / "e")
    by_files = evaluate(tmp_path / "e" / "predictions", study, tmp_path / "f")
    assert by_name.model == "1+2+3+two" and by_name.overall.mre_mm == pytest.approx(by_files.overall.mre_mm)
    assert evaluate(home / "two" / "folds", study, tmp_path / "g").model == "1+2+3"
    with pytest.raises(InputError, match="`tta` are for a model"):
        evaluate(tmp_path / "p", study, tmp_path / "h", tta=2)
    with pytest.raises(SystemExit) as exit:
        cli.main(["predict", f"{home / 'one'}+{home / 'few'}", str(home), "--out", str(tmp_path / "q")])
    assert exit.value.code == 2 and "cannot be averaged" in capsys.readouterr().err
