"""T2DL's recommended preset on phantoms: what it is shown, what it finds, and what its switches read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import phantom
from anatomark.cases.case import Case
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import sample
from anatomark.core.shape import Pose, procrustes, rotation_angle
from anatomark.core.warp import random_warp
from anatomark.methods.base import Task
from anatomark.methods.t2dl import recommended
from anatomark.methods.t2dl.recommended import T2DL, T2DLConfig, T2DLFacts
from anatomark.model.start import moved_weights
from phantom import Trained

pytestmark = pytest.mark.usefixtures("float32")
SMALL: dict[str, Any] = {
    "cells": 3, "cover": 3.2, "maps": [8, 16], "narrow": 32, "hidden": 48, "dropout": 0.0, "rank": 8, "looks": 2,
    "passes": 3, "warped_copies": 20, "warp_share": 0.3, "intensity": 0.5, "batch": 8, "steps": 200,
    "settle": False,
}  # fmt: skip


def untrained(ndim: int, cases: list[tuple[Image, Landmarks]] | None = None, **settings: Any) -> T2DL:
    """Planned from ``cases`` (one phantom where none are given), with its first weights."""
    config = T2DLConfig(**{**SMALL, **settings})
    torch.manual_seed(1)
    return T2DL(config, T2DL.prepare(config, phantom.study(cases or [phantom.phantom(0, ndim)])))


@pytest.fixture(scope="module", params=[2, 3])
def trained(request: pytest.FixtureRequest, float32: None) -> Trained[T2DL]:
    return phantom.trained(untrained, request.param, pool=400)


def switched(method: T2DL, **settings: Any) -> T2DL:
    """The same weights under other settings."""
    other = T2DL(method.config.model_copy(update=settings), method.facts)
    other.load_state_dict(method.state_dict())
    return other


def mean_errors(cases: list[tuple[Image, Landmarks]], mean: np.ndarray) -> np.ndarray:
    """Of the mean shape where the image's middle is: what is known without looking."""
    return np.stack([np.linalg.norm(mean + phantom._CENTRE[: mean.shape[1]] - t.points, axis=1) for _, t in cases])


# ---------------------------------------------------------------------- it learns and finds


def test_it_asks_for_alignment() -> None:
    assert T2DL.aligned
    assert not T2DL.axis_bound


def test_the_phantoms_are_learned(trained: Trained[T2DL]) -> None:
    method = trained.method
    assert list(trained.losses) == ["patches", "joint"]
    for name, losses in trained.losses.items():
        assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5]), name
    new = [phantom.phantom(50 + i, method.ndim) for i in range(3)]
    for cases in (trained.cases, new):
        errors = phantom.errors(method, cases)
        assert errors.mean() < 0.4 * mean_errors(cases, method.model.mean).mean()
        assert errors.mean() < 1.2  # a voxel of the block is 3 mm


def test_the_answer_knows_how_sure_it_is(trained: Trained[T2DL]) -> None:
    found = trained.method.locate(phantom.phantom(50, trained.method.ndim)[0])
    assert found.names == phantom.NAMES
    assert found.score is not None
    assert found.covariance is not None
    assert ((found.score > 0.4) & (found.score <= 1)).all()
    np.testing.assert_allclose(found.covariance, found.covariance.transpose(0, 2, 1), atol=1e-6)
    assert (np.linalg.eigvalsh(found.covariance) > 0).all()
    nothing, _ = phantom.phantom(0, trained.method.ndim)
    unsure = trained.method.locate(replace(nothing, array=np.full_like(nothing.array, 10)))
    assert np.isfinite(unsure.points).all()


def test_a_first_guess_stands_in_for_the_search(trained: Trained[T2DL]) -> None:
    phantom.check_first_guess(trained.method, *trained.cases[2])


# ---------------------------------------------------------------------- the mean picture


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_mean_picture_draws_the_block_onto_itself(ndim: int) -> None:
    """Before anything is learned; and it is kept in the plan."""
    image, marks = phantom.phantom(3, ndim)
    warp = random_warp(np.random.default_rng(2), image.grid, 7.0, 45.0)
    image = replace(image, array=sample(image, warp(image.grid.points()), fill=10.0).numpy())
    bent = image, marks.with_points(warp.inverse(marks.points))
    method = untrained(ndim, [phantom.phantom(i, ndim) for i in range(3)], settle=True)
    plain = untrained(ndim, [phantom.phantom(i, ndim) for i in range(3)])
    assert method.picture is not None
    assert plain.picture is None
    assert method.picture.cases == 3
    found = method.locate(bent[0], bent[1])
    assert found.errors_to(bent[1]).mean() < 0.8 * plain.locate(bent[0], bent[1]).errors_to(bent[1]).mean()
    again = T2DL(method.config, T2DLFacts.model_validate_json(method.facts.model_dump_json()))
    again.load_state_dict(method.state_dict())
    np.testing.assert_array_equal(again.locate(*bent).points, found.points)
    assert switched(method, decode="votes").picture is None


def test_by_default_there_is_one_in_3d() -> None:
    assert [untrained(d, settle=None).picture is not None for d in (2, 3)] == [False, True]
    assert untrained(3, settle=None, decode="stage1").picture is None


def test_the_mean_picture_is_no_finer_than_the_images() -> None:
    """Small images are drawn in a fraction of the time."""
    finest = phantom.phantom(0, 3)[0].grid.spacing.min()
    picture = untrained(3, settle=None).picture
    assert picture is not None
    assert picture.values.shape[2] < recommended.PICTURE_PX[3]
    assert 0.7 * finest < picture.spacing < 0.76 * finest


def test_of_many_landmarks_a_step_learns_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """All share each cell's field, and the joint layers rest."""
    monkeypatch.setattr(recommended, "AT_ONCE", 3)
    method = untrained(2).train()
    assert method.net.field is not None
    (case,) = phantom.training_cases(method, [phantom.phantom(0, 2)])
    for stage in method.stages():
        batch = method.examples(case, stage, np.random.default_rng(0))
        method.zero_grad()
        method.loss({k: v[None].repeat(2, *(1,) * v.ndim) for k, v in batch.items()}, stage)["loss"].backward()
        learned = method.net.out.bias.grad
        assert learned is not None
        assert int((learned.view(5, 2) != 0).any(1).sum()) == 3
        assert method.net.field.bias.grad is not None
        assert (method.net.field.bias.grad != 0).all()
        assert method.joint.up.weight.grad is None


# ---------------------------------------------------------------------- decode


def test_what_is_read_is_what_was_asked_for(trained: Trained[T2DL]) -> None:
    image, truth = trained.cases[0]
    found = {d: switched(trained.method, decode=d).locate(image) for d in ("mean", "stage1", "votes", "full")}
    points = [x.points for x in found.values()]
    for i in range(4):
        assert all(np.abs(points[i] - other).max() > 1e-3 for other in points[i + 1 :])
    mean = trained.method.model.mean
    pose = procrustes(mean, found["mean"].points)
    np.testing.assert_allclose(pose.apply(mean), found["mean"].points, atol=0.3)  # looks are turned a little
    assert found["full"].errors_to(truth).mean() < found["mean"].errors_to(truth).mean()
    assert all(np.isfinite(x.covariance).all() for x in found.values())


def test_no_more_is_trained_than_is_read() -> None:
    names = {d: [s.name for s in untrained(2, decode=d).stages()] for d in ("mean", "stage1", "votes", "full")}
    assert names["mean"] == names["stage1"] == ["patches"]
    assert names["votes"] == names["full"] == ["patches", "joint"]


def test_untrained_it_says_the_mean_shape() -> None:
    """Upright about the foreground: departures and joint layers begin at nothing."""
    method = untrained(3, looks=1)
    image, _ = phantom.phantom(3, 3)
    found = method.locate(image).points
    mean = method.model.mean
    assert np.abs(procrustes(mean, found).apply(mean) - found).max() < 0.05 * method.radius


# ---------------------------------------------------------------------- what it is shown


@pytest.mark.parametrize(("ndim", "settle"), [(2, False), (3, False), (2, True), (3, True)])
def test_the_target_is_where_the_brightest_landmark_shows(ndim: int, settle: bool) -> None:
    """Also where the mean picture of another phantom has drawn the block onto itself."""
    cases = [phantom.phantom(1, ndim)] if settle else None
    method = untrained(
        ndim, cases, intensity=0.0, rotations_deg=180.0, warp_share=0.7, settle=settle, settled_share=1.0
    )
    case = phantom.training_cases(method, [phantom.phantom(0, ndim)])[0]
    px, shown, misses = method.px, 0, []
    for seed in range(40):
        example = method.examples(case, method.stages()[0], np.random.default_rng(seed))
        assert example["block"].shape == (1, *(px,) * ndim)
        at = example["target"][0].numpy() * method.unit / method.spacing + (px - 1) / 2  # x first
        if ((at > 1) & (at < px - 2)).all():
            shown += 1
            brightest = np.array(np.unravel_index(int(example["block"].argmax()), (px,) * ndim))[::-1]
            misses.append(np.abs(brightest - at).max())
    assert shown > 25
    assert np.median(misses) < 0.8  # voxels


def test_views_lie_near_the_pose_and_afar() -> None:
    method = untrained(3, rotations_deg=180.0)
    pose = Pose(np.eye(3), np.array([5.0, 6, 7]))
    rng = np.random.default_rng(0)
    views = [method._random_view(rng, pose) for _ in range(200)]
    turns = np.array([rotation_angle(axes / np.cbrt(np.linalg.det(axes))) for axes, _, _ in views])
    aside = np.array([np.linalg.norm(centre - pose.translation) for _, centre, _ in views])
    assert 0.35 < (turns < 12.001).mean() < 0.65
    assert turns.max() > 120
    assert aside.max() > 0.15 * method.radius


def test_what_is_not_annotated_changes_nothing() -> None:
    method = untrained(2, warp_share=0.0)
    image, truth = phantom.phantom(0, 2)
    _, holed = phantom.training_cases(method, [(image, truth), (image, phantom.without(truth, "c"))])
    for stage in method.stages():
        batch = method.examples(holed, stage, np.random.default_rng(0))
        assert batch["defined"].tolist() == [1, 1, 0, 1, 1]
        assert all(values.isfinite().all() for values in batch.values())
        method.train()
        two = {k: v[None].repeat(2, *(1,) * v.ndim) for k, v in batch.items()}
        other = {**two, "target": two["target"].clone()}
        other["target"][:, 2] = 3.0
        torch.manual_seed(0)
        first = method.loss(two, stage)["loss"]
        torch.manual_seed(0)
        torch.testing.assert_close(method.loss(other, stage)["loss"], first)
        other["target"][:, 1] += 3.0
        assert method.loss(other, stage)["loss"] > 1.01 * first


# ---------------------------------------------------------------------- settings, facts, few landmarks


@pytest.mark.parametrize(
    ("ndim", "landmarks", "align", "why"),
    [
        (2, 101, False, "101 landmarks, and its cost hardly grows with their number"),
        (2, 100, None, None),
        (3, 4, None, "an alignment finds the pose without being taught"),
        (3, 4, True, "an alignment finds the pose without being taught"),
        (3, 4, False, None),
        (3, 3, None, None),  # no pose to align by
    ],
)
def test_it_suits_many_landmarks_and_what_can_be_aligned(
    ndim: int, landmarks: int, align: bool | None, why: str | None
) -> None:
    assert T2DL.suits(Task(ndim, landmarks, 20, 10.0, 50.0, 1.0, align=align)) == why


def test_any_pose_is_found_where_training_poses_are_wide() -> None:
    """No weights are needed to see that many rotations are tried."""
    method = untrained(2, rotations_deg=180.0)
    assert method.facts.rotations_deg == 180
    tried: list[int] = []
    views = method._views
    method._views = lambda image, poses, way=None: tried.append(len(poses)) or views(image, poses, way)  # type: ignore[method-assign,func-returns-value]
    assert np.isfinite(method.locate(phantom.phantom(0, 2)[0]).points).all()
    assert tried[0] == method.config.starts


def test_a_plan_is_laid_into_the_frame_of_the_old() -> None:
    old, new = untrained(2, settle=True).facts, untrained(2, [phantom.phantom(i, 2) for i in range(1, 4)]).facts
    adapted = T2DL.adapted(new, old)
    assert adapted.radius_mm == old.radius_mm
    assert adapted.picture is old.picture is not None
    np.testing.assert_allclose(adapted.mean_shape, old.mean_shape, atol=2.5)
    assert T2DL.adapted(new, old.model_copy(update={"names": list("vwxyz")})) is new


def test_another_models_weights_are_moved_to_their_landmarks_names() -> None:
    """Joint layers too; a landmark that is new to them is neither moved nor looked at."""
    old = untrained(2)
    with torch.no_grad():
        for parameter in old.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    rows, order = [2, 0, 4, 1], ["c", "a", "e", "b", "new"]
    facts = old.facts.model_copy(update={"names": order, "mean_shape": [old.facts.mean_shape[r] for r in [*rows, 3]]})
    new = T2DL(old.config, facts)
    new.load_state_dict(moved_weights(old.state_dict(), new.per_landmark(), order, old.names, new.state_dict()))
    old.eval(), new.eval()
    with torch.no_grad():
        features = old.net.features(torch.rand(2, 1, old.px, old.px))
        torch.testing.assert_close(new.net.votes(features)[:, :, :4], old.net.votes(features)[:, :, rows])
        mean = old.net.votes(features).mean(2)
        torch.testing.assert_close(new.net.votes(features)[:, :, 4], mean)
        torch.testing.assert_close(new.net.confidence(features)[:, :, :4], old.net.confidence(features)[:, :, rows])
        torch.testing.assert_close(new.net.sharpness[:4], old.net.sharpness[rows])
        points = old.joint.mean.view(1, 5, 2) + torch.rand(1, 5, 2)
        points[:, 3] = old.joint.mean.view(5, 2)[3]  # the one that is not among the new says nothing
        ours = torch.cat([points[:, rows], torch.rand(1, 1, 2)], 1)
        torch.testing.assert_close(new.joint(ours)[:, :4], old.joint(points)[:, rows])
        torch.testing.assert_close(new.joint(ours)[:, 4], ours[:, 4])


def test_a_single_landmark_has_a_model_too() -> None:
    image, marks = phantom.phantom(0, 3)
    one = marks.select(["b"])
    study = replace(phantom.study([(image, one)]), names=("b",))
    config = T2DLConfig(**SMALL)
    method = T2DL(config, T2DL.prepare(config, study))
    case = Case("a", given=one, images=method.working_images(image))
    for stage in method.stages():
        batch = method.examples(case, stage, np.random.default_rng(0))
        loss = method.loss({k: v[None].repeat(2, *(1,) * v.ndim) for k, v in batch.items()}, stage)
        assert loss["loss"].isfinite()
    assert np.isfinite(method.locate(image).points).all()
