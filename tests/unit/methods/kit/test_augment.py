"""Random intensities: one change for all, monotone, mild, and the same from the same generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anatomark.core.shape import Pose, random_rotation
from anatomark.methods.kit.augment import PooledWarps, random_bias, random_intensity

LEVELS = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])


def test_the_same_generator_gives_the_same_change() -> None:
    x = torch.rand(4, 3, 8, 8)
    first, again, other = (random_intensity(x, np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_does_not_depend_on_torchs_own_generator_nor_moves_it() -> None:
    x = torch.rand(5, 5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = random_intensity(x, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(random_intensity(x, np.random.default_rng(0)), first)


@pytest.mark.parametrize("seed", range(12))
def test_brighter_stays_brighter_and_every_value_changes_alike(seed: int) -> None:
    x = LEVELS.repeat_interleave(4000).reshape(5, 40, 100)
    y = random_intensity(x, np.random.default_rng(seed))
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert -1 < y.mean() < 2.5
    means = y.mean((1, 2))
    assert (means.diff() > 0.005).all()
    half = y[:, :20].mean((1, 2)) - y[:, 20:].mean((1, 2))  # the same curve everywhere; what differs is noise
    assert half.abs().max() < 0.02


def test_no_strength_is_no_change_and_the_input_is_left_alone() -> None:
    x = torch.rand(3, 6)
    kept = x.clone()
    assert torch.equal(random_intensity(x, np.random.default_rng(0), 0.0), x)
    random_intensity(x, np.random.default_rng(0))
    assert torch.equal(x, kept)


def test_strength_scales_the_change() -> None:
    x = LEVELS.repeat_interleave(400)

    def change(strength: float) -> float:
        return float(
            np.mean([(random_intensity(x, np.random.default_rng(s), strength) - x).abs().mean() for s in range(40)])
        )

    assert 0 < change(0.2) < 0.6 * change(1.0)


def test_values_below_zero_do_not_become_nan() -> None:
    assert random_intensity(torch.linspace(-0.5, 1.5, 50), np.random.default_rng(4)).isfinite().all()


@pytest.mark.parametrize("shape", [(40, 50), (20, 24, 28)])
def test_the_bias_is_positive_smooth_about_one_and_the_generators_alone(shape: tuple[int, ...]) -> None:
    fields = [random_bias(shape, np.random.default_rng(s)) for s in range(40)]
    assert torch.equal(fields[3], random_bias(shape, np.random.default_rng(3)))
    logs = torch.stack(fields).log()
    assert logs.shape[1:] == shape
    for a in range(1, logs.ndim):
        assert logs.diff(dim=a).abs().max() * shape[a - 1] < 12 * logs.abs().max()  # no jump between neighbours
    assert logs.mean(tuple(range(1, logs.ndim))).abs().max() < 1e-4
    spread = logs.flatten(1).std(1)
    assert 0.05 < spread.mean() < 0.1
    assert spread.max() < 0.17
    assert random_bias(shape, np.random.default_rng(3), 0.0).sub(1).abs().max() < 1e-6


def test_one_image_gets_an_uneven_gain_and_patches_do_not() -> None:
    flat = torch.full((1, 32, 32, 32), 0.5)
    uneven = [random_intensity(flat, np.random.default_rng(s))[0] for s in range(10)]
    halves = [float((y[:16].mean() - y[16:].mean()).abs()) for y in uneven]
    assert max(halves) > 0.02
    patches = [random_intensity(flat.expand(2, -1, -1, -1), np.random.default_rng(s)) for s in range(10)]
    assert max(float((y[:, :16].mean() - y[:, 16:].mean()).abs()) for y in patches) < 0.005


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_warped_case_is_read_where_its_landmarks_came_from(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    mean = rng.normal(0, 10, (5, ndim))
    mean -= mean.mean(0)
    there = Pose(random_rotation(rng, ndim), np.full(ndim, 40.0), 1.1)
    truth = there.apply(mean)
    truth[1] = np.nan
    warps = PooledWarps(ndim, 20.0, 3.0)
    read, same, pose = warps.warped(np.random.default_rng(0), mean, truth, 0.0)
    assert read is None
    np.testing.assert_array_equal(same, truth)
    np.testing.assert_allclose(pose.rotation, there.rotation, atol=1e-9)
    farthest = 0.0
    for seed in range(6):
        read, moved, pose = warps.warped(np.random.default_rng(seed), mean, truth, 1.0)
        assert read is not None
        assert np.isnan(moved[1]).all()
        np.testing.assert_allclose(read(moved), truth, atol=0.02)
        rest = [0, 2, 3, 4]
        np.testing.assert_allclose(pose.apply(mean)[rest].mean(0), moved[rest].mean(0), atol=1e-6)
        farthest = max(farthest, float(np.linalg.norm((moved - truth)[rest], axis=1).max()))
    assert 0.5 < farthest < 8
