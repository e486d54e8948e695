"""resample: against SimpleITK, aliasing, the slicing fast path, fill values, dtypes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core import resample as module
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.resample import as_tensor, block_mean, resample, sample, sample_index
from anatomark.core.shape import random_rotation


def _random_image(rng: np.random.Generator, d: int, lo: int = 6, hi: int = 14, dtype: str = "float32") -> Image:
    shape = rng.integers(lo, hi, d)
    axes = random_rotation(rng, d) * rng.uniform(0.5, 2, d)
    array = (rng.normal(size=(1, *shape)) * 50).astype(dtype)
    return Image(array, Grid.from_axes(shape.tolist(), axes, rng.normal(size=d) * 20))


def _to_itk(image: Image) -> sitk.Image:
    out = sitk.GetImageFromArray(image.array[0])
    out.SetSpacing(image.grid.spacing[::-1].tolist())
    out.SetDirection((image.grid.axes / image.grid.spacing)[:, ::-1].ravel().tolist())
    out.SetOrigin(image.grid.origin.tolist())
    return out


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_simpleitk(d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = _random_image(rng, d)
    # finer than the source, so that neither filters; partly outside of it
    axes = random_rotation(rng, d) * image.grid.spacing.min() * 0.55
    target = Grid.centred(rng.integers(8, 16, d), axes, image.grid.centre + rng.normal(size=d))
    ours = resample(image, target, fill=-7.0)
    points = target.to_world(np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1).reshape(-1, d))
    source = _to_itk(image)
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(source, _to_itk(Image(np.zeros((1, *target.shape), np.float32), target)),
                      sitk.Transform(d, sitk.sitkIdentity), sitk.sitkLinear, -7.0)
    )  # fmt: skip
    # points on the very border may fall on either side in float32
    index = image.grid.to_index(points)
    edge = np.minimum(np.abs(index + 0.5), np.abs(index - np.array(image.grid.shape) + 0.5)).min(-1)
    edge = edge.reshape(target.shape)
    assert (ours.array[0] != -7).mean() > 0.1
    np.testing.assert_allclose(ours.array[0][edge > 1e-3], theirs[edge > 1e-3], atol=2e-2)  # float32, values of 50


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("coarser", [1.5, 2.0, 3.0, 4.5])
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5])
def test_a_checkerboard_does_not_alias(d: int, coarser: float, shift: float) -> None:
    n = 36
    index = np.indices((n,) * d).sum(0)
    values = np.where(index % 2, 1.0, -1.0)[None].astype(np.float32)
    board = Image(values, Grid.from_axes((n,) * d, np.eye(d), np.zeros(d)))
    count = int((n - 8) / coarser)
    target = Grid.from_axes((count,) * d, np.eye(d) * coarser, np.full(d, 4 + shift))
    assert np.abs(resample(board, target).array).max() < 0.15


@pytest.mark.parametrize("coarser", [1.5, 2.0, 3.0])
def test_low_pass_keeps_a_slope_in_place(coarser: float) -> None:
    grid = Grid.from_axes((30, 40), np.eye(2), (0, 0))
    slope = Image((grid.points() @ [2.0, 3.0])[None].astype(np.float32), grid)
    target = Grid.from_axes((6, 8), np.eye(2) * coarser, (7, 8))
    np.testing.assert_allclose(resample(slope, target).array[0], target.points() @ [2.0, 3.0], atol=1e-3)


@pytest.mark.parametrize("coarser", [1.5, 2.0, 3.0, 4.0])
def test_coarser_targets_reach_the_images_far_border(coarser: float) -> None:
    for n in range(9, 14):
        image = Image(np.ones((1, n, n + 1), np.float32), Grid.from_axes((n, n + 1), np.eye(2), (0, 0)))
        target = image.grid.isotropic(coarser)
        inside = image.grid.contains(target.points())
        values = resample(image, target, fill=-5.0).array[0]
        np.testing.assert_allclose(values[inside], 1.0, atol=1e-5)
        beyond = Grid.from_axes((3, 3), np.eye(2) * coarser, (n - 0.4, 0))
        np.testing.assert_allclose(resample(image, beyond, fill=-5.0).array[0], -5.0)


@given(st.integers(0, 2**32 - 1), st.sampled_from((2, 3)), st.sampled_from(("uint8", "int16", "float32")))
@settings(max_examples=50, deadline=None)
def test_slicing_agrees_with_the_general_path(seed: int, d: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    image = _random_image(rng, d, 2, 9, "int16")
    image = Image(np.abs(image.array).astype(dtype), image.grid)
    signs = rng.choice([-1, 1], d)
    start = rng.integers(-4, 10, d)
    target = Grid.from_axes(rng.integers(1, 9, d).tolist(), image.grid.axes * signs, image.grid.to_world(start))
    fast = resample(image, target, fill=3)
    assert fast.array.dtype == image.array.dtype
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_aligned_cut", lambda *_: None)
        slow = resample(image, target, fill=3)
        near = resample(image, target, fill=3, order=0)
    np.testing.assert_allclose(fast.array, slow.array, atol=2e-3)
    np.testing.assert_array_equal(fast.array, near.array)


def test_a_crop_is_exact_and_large_targets_are_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = _random_image(rng, 3)
    target = Grid.centred((11, 9, 7), random_rotation(rng, 3) * 0.6, image.grid.centre)
    whole = resample(image, target)
    monkeypatch.setattr(module, "_POINTS_AT_ONCE", 150)
    np.testing.assert_allclose(resample(image, target).array, whole.array, atol=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_flipping_twice_changes_nothing(d: int) -> None:
    image = _random_image(np.random.default_rng(d), d)
    last = np.asarray(image.grid.shape) - 1
    flipped = Grid.from_axes(image.grid.shape, -image.grid.axes, image.grid.to_world(last))
    once = resample(image, flipped)
    np.testing.assert_array_equal(once.array, np.flip(image.array, tuple(range(1, d + 1))))
    np.testing.assert_array_equal(resample(once, image.grid).array, image.array)


def test_fill_outside_and_edge_value_in_the_outer_half_voxel() -> None:
    grid = Grid.from_axes((1, 4), np.array([[0, 1.0], [1, 0]]), (0, 0))
    image = Image(np.arange(1, 5, dtype=np.float32).reshape(1, 1, 4), grid)
    x = np.array([-0.6, -0.4, 0.0, 0.5, 3.0, 3.4, 3.6])
    values = sample(image, np.stack([x, np.zeros(7)], -1), fill=-9)[0]
    np.testing.assert_allclose(values, [-9, 1, 1, 1.5, 4, 4, -9])


def test_order_0_keeps_dtype_and_values() -> None:
    rng = np.random.default_rng(3)
    grid = Grid.from_axes((9, 9, 9), np.eye(3), (0, 0, 0))
    labels = Image(rng.choice(np.array([0, 7, 1000], np.uint16), (1, 9, 9, 9)), grid)
    out = resample(labels, Grid.centred((5, 5, 5), random_rotation(rng, 3) * 2.2, (4, 4, 4)), order=0, fill=42)
    assert out.array.dtype == np.uint16 and set(np.unique(out.array)) <= {0, 7, 42, 1000}
    assert set(np.unique(out.array)) & {7, 1000}


@pytest.mark.parametrize("order", [0, 1])
def test_a_fill_that_the_dtype_cannot_hold_is_kept(order: int) -> None:
    image = Image(np.full((1, 3, 3), 9, np.uint8), Grid.from_axes((3, 3), np.eye(2), (0, 0)))
    target = Grid.from_axes((5, 3), np.eye(2), (0, 0))
    out = resample(image, target, fill=-1000.5, order=order)
    assert out.array[0, 4, 0] == -1000.5 and out.array[0, 0, 0] == 9


def test_block_mean_repeats_the_last_voxel_of_a_cut_block() -> None:
    array = np.arange(7, dtype=np.int16).reshape(1, 7, 1) * 10 + np.zeros((1, 1, 4), np.int16)
    out = block_mean(Image(array, Grid.from_axes((7, 4), np.diag([2.0, 1.0]), (0, 0))), (3, 1))
    np.testing.assert_allclose(out.array[0, :, 0], [10, 40, 60])
    np.testing.assert_allclose(out.grid.to_world([[0, 0], [1, 0]]), [[2, 0], [8, 0]])
    volume = Image(np.ones((2, 11, 7, 5), np.uint8), Grid.from_axes((11, 7, 5), np.eye(3), (0, 0, 0)))
    many = block_mean(volume, (4, 3, 2))
    assert many.array.shape == (2, 3, 3, 3) and (many.array == 1).all()


@pytest.mark.parametrize("count", [3, 5001, 8192])
def test_sampling_many_points_equals_one_by_one(count: int) -> None:
    rng = np.random.default_rng(count)
    array = as_tensor(_random_image(rng, 3))
    index = torch.from_numpy(rng.uniform(-1, 9, (count, 3)))
    out = sample_index(array, index, -3)
    some = rng.integers(0, count, 20)
    alone = torch.stack([sample_index(array, index[i], -3) for i in some], 1)
    np.testing.assert_allclose(out[:, some], alone, atol=1e-4)


def test_dimensions_must_agree() -> None:
    image = _random_image(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="3D image"):
        resample(image, Grid.from_axes((3, 3), np.eye(2), (0, 0)))


def test_an_array_must_fit_its_grid() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Image(np.zeros((3, 4)), Grid.from_axes((3, 4), np.eye(2), (0, 0)))
