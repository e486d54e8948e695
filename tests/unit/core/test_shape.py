"""Shapes: Procrustes, rotations, principal components with missing points."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.shape import (
    PCAShape,
    Pose,
    mean_rotation,
    mean_shape,
    procrustes,
    random_rotation,
    rotation_angle,
    rotation_from_vector,
)

SEEDS = st.integers(0, 2**32 - 1)
DIMENSIONS = st.sampled_from((2, 3))


def _pose(rng: np.random.Generator, d: int, scale: bool = True) -> Pose:
    return Pose(random_rotation(rng, d), rng.normal(size=d) * 100, float(rng.uniform(0.3, 3)) if scale else 1.0)


@given(SEEDS, DIMENSIONS, st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_procrustes_recovers_a_similarity(seed: int, d: int, scale: bool, missing: bool) -> None:
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(10, d)) * 20
    pose = _pose(rng, d, scale)
    target = pose.apply(source)
    if missing:
        source[0], target[3, 1] = np.nan, np.nan
    found = procrustes(source, target, rng.uniform(0.1, 2, 10), scale=scale)
    np.testing.assert_allclose(found.rotation, pose.rotation, atol=1e-8)
    np.testing.assert_allclose(found.translation, pose.translation, atol=1e-6)
    assert found.scale == pytest.approx(pose.scale, rel=1e-9)


@given(SEEDS, DIMENSIONS)
@settings(max_examples=40, deadline=None)
def test_procrustes_is_a_least_squares_minimum(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    source, target, weights = rng.normal(size=(8, d)), rng.normal(size=(8, d)), rng.uniform(0, 1, 8)
    best = procrustes(source, target, weights)

    def loss(pose: Pose) -> float:
        return float(weights @ ((pose.apply(source) - target) ** 2).sum(1))

    for _ in range(10):
        nudge = Pose(random_rotation(rng, d, 2.0), rng.normal(size=d) * 0.01, float(np.exp(rng.normal() * 0.01)))
        assert loss(best) <= loss(best.then(nudge)) + 1e-12
    assert np.linalg.det(best.rotation) == pytest.approx(1)


def test_procrustes_never_reflects() -> None:
    source = np.random.default_rng(0).normal(size=(12, 3))
    assert np.linalg.det(procrustes(source, source * [-1, 1, 1]).rotation) == pytest.approx(1)


def test_procrustes_of_too_little() -> None:
    nothing = np.full((3, 2), np.nan)
    assert procrustes(nothing, nothing).translation.tolist() == [0, 0]
    one = procrustes(np.array([[1.0, 2, 3], [np.nan] * 3]), np.array([[4.0, 6, 8], [0, 0, 0]]))
    np.testing.assert_allclose(one.apply([1, 2, 3]), [4, 6, 8])
    np.testing.assert_allclose(one.rotation, np.eye(3))


@given(SEEDS, DIMENSIONS)
@settings(max_examples=30, deadline=None)
def test_poses_invert_and_compose(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, x = _pose(rng, d), _pose(rng, d), rng.normal(size=(4, 5, d))
    np.testing.assert_allclose(a.invert(a.apply(x)), x, atol=1e-9)
    np.testing.assert_allclose(a.then(b).apply(x), b.apply(a.apply(x)), atol=1e-8)
    np.testing.assert_allclose(Pose.identity(d).apply(x), x)


@pytest.mark.parametrize("d", [2, 3])
def test_mean_shape_undoes_poses_also_with_missing_points(d: int) -> None:
    rng = np.random.default_rng(d)
    base = rng.normal(size=(9, d)) * 30
    base -= base.mean(0)
    poses = [_pose(rng, d) for _ in range(7)]
    shapes = np.stack([p.apply(base) for p in poses])
    shapes[1, 2], shapes[4, :3] = np.nan, np.nan
    mean, found = mean_shape(shapes)
    np.testing.assert_allclose(mean.mean(0), 0, atol=1e-9)
    for shape, pose in zip(shapes, found, strict=True):
        known = np.isfinite(shape).all(1)
        np.testing.assert_allclose(pose.apply(mean)[known], shape[known], atol=1e-3)
    assert np.linalg.norm(mean) / np.linalg.norm(base) == pytest.approx(
        np.mean([p.scale for i, p in enumerate(poses) if i not in (1, 4)]), rel=1e-3
    )


@given(SEEDS, DIMENSIONS, st.sampled_from((1e-9, 1e-5, 0.3, 2.0, 3.0, np.pi - 1e-3, np.pi - 1e-5, np.pi - 1e-8)))
@settings(max_examples=80, deadline=None)
def test_rotation_vectors_turn_about_their_axis(seed: int, d: int, angle: float) -> None:
    axis = np.random.default_rng(seed).normal(size=1 if d == 2 else 3)
    vector = axis / np.linalg.norm(axis) * angle
    rotation = rotation_from_vector(vector)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(d), atol=1e-12)
    np.testing.assert_allclose(rotation_from_vector(-vector), rotation.T, atol=1e-12)
    if d == 3:
        np.testing.assert_allclose(rotation @ axis, axis, atol=1e-12)
    assert rotation_angle(rotation) == pytest.approx(np.degrees(angle), abs=1e-5)


@pytest.mark.parametrize("axis", np.eye(3))
def test_half_turns(axis: np.ndarray) -> None:
    half = 2 * np.outer(axis, axis) - np.eye(3)
    np.testing.assert_allclose(rotation_from_vector(np.pi * axis), half, atol=1e-9)


def test_random_rotations_keep_to_their_limit_and_mean_rotation_is_central() -> None:
    rng = np.random.default_rng(1)
    for d in (2, 3):
        turns = [random_rotation(rng, d, 20.0) for _ in range(200)]
        angles = [rotation_angle(r) for r in turns]
        assert max(angles) <= 20.0 + 1e-6 and max(angles) > 15
        about = rotation_from_vector([2.0] if d == 2 else [0.4, -1.0, 1.7])
        assert rotation_angle(mean_rotation([r @ about for r in turns]) @ about.T) < 4
    free = np.array([rotation_angle(random_rotation(rng, 3)) for _ in range(2000)])
    # uniform over all rotations: density (1 - cos a) / pi, mean angle pi/2 + 2/pi
    assert free.mean() == pytest.approx(np.degrees(np.pi / 2 + 2 / np.pi), abs=3)


def _vectors(seed: int, m: int = 20, p: int = 45, modes: int = 3, noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 5 + rng.normal(size=(m, modes)) @ rng.normal(size=(modes, p)) + rng.normal(size=(m, p)) * noise


def test_pca_keeps_the_modes_that_explain_the_variance() -> None:
    x = _vectors(0)
    model = PCAShape.fit(x, variance=0.97)
    assert model.size == 3
    np.testing.assert_allclose(model.modes.T @ model.modes, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(model.decode(model.encode(x)), x, atol=0.5)
    np.testing.assert_allclose(model.encode(x).std(0, ddof=1), model.sd, rtol=1e-9)
    assert PCAShape.fit(x, most=2).size == 2 and PCAShape.fit(x[:1]).size == 0
    full = PCAShape.fit(x, variance=1.0)
    np.testing.assert_allclose(full.decode(full.encode(x)), x, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_em_fills_missing_points_better_than_their_mean(seed: int) -> None:
    x = _vectors(seed)
    given_x = x.copy()
    missing = np.random.default_rng(seed).random(x.shape) < 0.15
    missing[0] = False
    given_x[missing] = np.nan
    model = PCAShape.fit(given_x)
    filled = np.stack([model.decode(model.encode_partial(row, 0.1)) for row in given_x])
    by_mean = np.sqrt(np.mean((np.broadcast_to(np.nanmean(given_x, 0), x.shape) - x)[missing] ** 2))
    assert np.sqrt(np.mean((filled - x)[missing] ** 2)) < 0.2 * by_mean


def test_encode_partial_uses_what_it_sees_and_falls_back_to_the_mean() -> None:
    x = _vectors(5)
    model = PCAShape.fit(x, variance=0.97)
    np.testing.assert_allclose(model.encode_partial(x[3], 1e-6), model.encode(x[3]), atol=1e-6)
    assert model.encode_partial(np.full(x.shape[1], np.nan), 0.1).tolist() == [0, 0, 0]
    assert np.abs(model.encode_partial(x[3], 1e6)).max() < 1e-6


def test_a_coordinate_that_nobody_knows_is_refused() -> None:
    x = _vectors(0)
    x[:, 4] = np.nan
    with pytest.raises(ValueError, match="every training shape"):
        PCAShape.fit(x)


@pytest.mark.parametrize("rows", [1, 20])
def test_pca_round_trips_through_json(rows: int) -> None:
    model = PCAShape.fit(_vectors(2)[:rows])
    again = PCAShape.from_json(json.loads(json.dumps(model.to_json())))
    for key in ("mean", "modes", "sd"):
        np.testing.assert_array_equal(getattr(again, key), getattr(model, key))


@pytest.mark.parametrize("count", [2, 4])
def test_points_on_a_line_turn_no_more_than_they_must(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        direction = rng.normal(size=3)
        source = np.linspace(-10, 10, count)[:, None] * direction / np.linalg.norm(direction)
        turn = rotation_from_vector(rng.normal(0, 0.03, 3))
        found = procrustes(source, source @ turn.T + [5, -3, 2])
        assert rotation_angle(found.rotation) <= rotation_angle(turn) + 0.1
        assert np.abs(found.apply(source) - (source @ turn.T + [5, -3, 2])).max() < 0.01
