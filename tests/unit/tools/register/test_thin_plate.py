"""Thin-plate splines: through their points, blind to what space they lie in, left-out points as by refitting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.resample import resample
from anatomark.core.shape import random_rotation
from anatomark.tools.register.thin_plate import ThinPlate, folded_share

CASES = st.tuples(st.integers(2, 3), st.integers(6, 40), st.integers(0, 10_000))


def _pair(d, n, seed, noise=3.0):
    rng = np.random.default_rng(seed)
    source = rng.uniform(-80, 80, (n, d)) + 500
    return source, source @ (np.eye(d) + 0.1 * rng.normal(size=(d, d))).T + rng.normal(0, noise, (n, d)), rng


@given(CASES)
@settings(max_examples=25, deadline=None)
def test_goes_through_its_points_in_any_frame(case):
    d, n, seed = case
    source, target, rng = _pair(d, n, seed)
    spline = ThinPlate.fit(source, target)
    assert np.abs(spline(source) - target).max() < 1e-6
    turn, shift, there = random_rotation(rng, d), rng.normal(0, 300, d), rng.uniform(400, 600, (20, d))
    moved = ThinPlate.fit(source @ turn.T * 2.5 + shift, target)
    np.testing.assert_allclose(moved(there @ turn.T * 2.5 + shift), spline(there), atol=1e-5)


@given(CASES)
@settings(max_examples=15, deadline=None)
def test_affine_maps_are_reproduced_everywhere(case):
    d, n, seed = case
    source, _, rng = _pair(d, n, seed)
    matrix, shift, there = np.eye(d) + 0.3 * rng.normal(size=(d, d)), rng.normal(0, 50, d), rng.uniform(0, 900, (9, d))
    spline = ThinPlate.fit(source, source @ matrix.T + shift)
    np.testing.assert_allclose(spline(there), there @ matrix.T + shift, atol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_smoothing_leaves_what_was_asked_for_and_at_most_the_affine_residual(d):
    source, target, rng = _pair(d, 30, 1)
    weights = rng.uniform(0.2, 3, 30)

    def left(spline):
        return np.sqrt((weights * ((spline(source) - target) ** 2).sum(1)).sum() / weights.sum())

    for wanted in (0.1, 1.0, 2.5):
        assert left(ThinPlate.fit(source, target, weights, residual_mm=wanted)) == pytest.approx(wanted, rel=1e-6)
    root, columns = np.sqrt(weights)[:, None], np.column_stack([np.ones(30), source])
    flat = columns @ np.linalg.lstsq(root * columns, root * target, rcond=None)[0]
    np.testing.assert_allclose(ThinPlate.fit(source, target, weights, residual_mm=1e3)(source), flat, atol=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_left_out_points_are_missed_as_by_a_spline_without_them(d):
    source, target, _ = _pair(d, 12, 2)
    spline = ThinPlate.fit(source, target)
    for i in range(12):
        rest = np.arange(12) != i
        without = ThinPlate.fit(source[rest], target[rest])
        np.testing.assert_allclose(spline.left_out[i], target[i] - without(source[i]), atol=1e-6)
    least = ThinPlate.fit(source[: d + 1], target[: d + 1])
    assert np.isnan(least.left_out).all()


def test_left_out_points_of_a_smoothed_spline():
    """The same stiffness, stated through the bordered system of the other points."""
    source, target, _ = _pair(3, 10, 3)
    spline = ThinPlate.fit(source, target, residual_mm=1.0)
    stiffness = np.median((target - spline(source)) / spline.bending)
    x = (source - spline.origin) / spline.scale
    for i in range(10):
        rest = np.arange(10) != i
        kernel = -np.linalg.norm(x[rest][:, None] - x[rest][None], axis=-1) + stiffness * np.eye(9)
        poly = np.column_stack([np.ones(9), x[rest]])
        both = np.block([[kernel, poly], [poly.T, np.zeros((4, 4))]])
        c = np.linalg.solve(both, np.vstack([target[rest], np.zeros((4, 3))]))
        there = -np.linalg.norm(x[i] - x[rest], axis=1) @ c[:9] + np.r_[1, x[i]] @ c[9:]
        np.testing.assert_allclose(spline.left_out[i], target[i] - there, atol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_resamples_as_an_affine_does_where_it_is_one(d):
    source, _, rng = _pair(d, 12, 4)
    source -= 480
    matrix, shift = np.eye(d) + 0.02 * rng.normal(size=(d, d)), rng.normal(0, 1, d)
    spline = ThinPlate.fit(source, source @ matrix.T + shift)
    grid = Grid.from_axes((14,) * d, np.eye(d)[:, ::-1] * 3.0, np.zeros(d))
    image = Image(rng.normal(size=(2, *grid.shape)).astype(np.float32), grid)
    whole = np.eye(d + 1)
    whole[:d, :d], whole[:d, d] = matrix, shift
    there = Image(image.array, Grid(grid.shape, np.linalg.inv(whole) @ grid.affine))
    wanted = resample(there, grid, fill=-7)
    np.testing.assert_allclose(spline.resample(image, grid, fill=-7).array, wanted.array, atol=1e-3)
    points = grid.points()
    np.testing.assert_allclose(spline.displacements(grid), spline(points) - points, atol=1e-9)


def test_folding_is_seen():
    grid = Grid.from_axes((8, 8), np.eye(2)[:, ::-1], np.zeros(2))
    assert folded_share(np.zeros((8, 8, 2)), grid) == 0
    assert folded_share(-2 * grid.points(), grid) == 0  # turned by 180 degrees
    mirrored = np.zeros((8, 8, 2))
    mirrored[..., 0] = -2 * grid.points()[..., 0]
    assert folded_share(mirrored, grid) == 1


def test_impossible_points_are_refused():
    line = np.column_stack([np.arange(5.0), np.arange(5.0)])
    with pytest.raises(ValueError, match="plane or line"):
        ThinPlate.fit(line, line)
    with pytest.raises(ValueError, match="needs 4 points"):
        ThinPlate.fit(np.eye(3), np.eye(3))
