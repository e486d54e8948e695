"""Pictures of an anatomy in its pose against direct sampling; roughness against plain loops."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.resample import block_mean
from anatomark.core.shape import Pose, random_rotation
from anatomark.model.confidence import likeness
from anatomark.model.confidence.likeness import correlation, pictures, roughness

MEAN = {
    2: np.array([[-30, -20], [25, -25], [0, 5], [-20, 30], [28, 22.0]]) + [3, -2],
    3: np.array([[-30, -20, 5], [25, -25, -20], [0, 5, 30], [-20, 30, -8], [28, 22, 12.0]]) + [3, -2, 1],
}


def value(points: np.ndarray) -> np.ndarray:
    """A smooth function of world mm."""
    return 3 + np.sin(points[..., 0] / 9) + np.cos(points[..., 1] / 13) + 0.02 * points[..., -1]


def scene(d: int, side_mm: float = 220.0, spacing: float = 1.5) -> Image:
    n = round(side_mm / spacing)
    grid = Grid.centred((n,) * d, np.eye(d)[:, ::-1] * spacing, np.zeros(d))
    return Image(value(grid.points())[None].astype(np.float32), grid)


def normalised(values: np.ndarray) -> np.ndarray:
    values = values - values.mean(-1, keepdims=True)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def lattice(d: int, px: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, px)] * d, indexing="ij"), -1).reshape(-1, d)


@pytest.mark.parametrize("d", [2, 3])
def test_pictures_show_what_lies_there(d: int) -> None:
    rng, mean = np.random.default_rng(d), MEAN[d]
    pose = Pose(random_rotation(rng, d), rng.normal(0, 4, d), 1.2)
    points = np.vstack([pose.apply(mean)[:2], np.full((1, d), np.nan)])
    image = scene(d, spacing={2: 1.0, 3: 2.2}[d])
    whole, patches = pictures(image, points, pose, mean)
    radius = np.linalg.norm(mean - mean.mean(0), axis=1).max()
    where = pose.apply(mean.mean(0) + lattice(d, {2: 40, 3: 22}[d]) * 1.25 * radius)
    np.testing.assert_allclose(whole, normalised(value(where)), atol=0.05 * np.abs(whole).max())
    near = lattice(d, {2: 13, 3: 9}[d]) * 0.12 * radius * 1.2 @ pose.rotation.T
    expected = normalised(value(points[:2, None] + near))
    np.testing.assert_allclose(patches[:2], expected, atol=0.05 * np.abs(expected).max())
    assert patches.shape == (3, {2: 13, 3: 9}[d] ** d) and np.isnan(patches[2]).all()
    assert np.isnan(pictures(image, points[2:], pose, mean)[1]).all()


def test_a_common_similarity_and_a_change_of_scale_change_nothing() -> None:
    rng, mean = np.random.default_rng(5), MEAN[2]
    image, pose = scene(2), Pose(np.eye(2), np.zeros(2))
    whole, patches = pictures(image, mean, pose, mean)
    move = Pose(random_rotation(rng, 2), np.array([40.0, -7]), 1.3)
    affine = np.eye(3)
    affine[:2, :2], affine[:2, 2] = move.scale * move.rotation, move.translation
    moved = Image(5 * image.array + 2, Grid(image.grid.shape, affine @ image.grid.affine))
    again = pictures(moved, move.apply(mean), pose.then(move), mean)
    # blocks of voxels are those of the image, steps those of the shape: a scale may take another block
    np.testing.assert_allclose(again[0], whole, atol=0.03 * np.abs(whole).max())
    np.testing.assert_allclose(again[1], patches, atol=0.03 * np.abs(patches).max())
    three = Image(np.concatenate([image.array * k for k in (0, 1, 2)]), image.grid)  # channels are averaged
    np.testing.assert_allclose(pictures(three, mean, pose, mean)[0], whole, atol=1e-6)


def test_fine_texture_is_averaged_before_it_is_sampled() -> None:
    mean, pose = MEAN[2] * 2, Pose(np.eye(2), np.zeros(2))  # steps: 1.2 mm in a patch, 4 mm in the whole
    image = scene(2, 300.0, 0.5)
    checks = np.indices(image.grid.shape).sum(0) % 2
    striped = Image((image.array + checks).astype(np.float32), image.grid)
    for once, again in zip(pictures(image, mean, pose, mean), pictures(striped, mean, pose, mean), strict=True):
        np.testing.assert_allclose(again, once, atol=0.05 * np.abs(once).max())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([2, 3]), st.floats(10, 80), st.integers(0, 1000))
def test_voxels_are_averaged_to_just_below_a_pictures_step(d: int, radius: float, seed: int) -> None:
    mean = MEAN[d] - MEAN[d].mean(0)
    mean = mean * radius / np.linalg.norm(mean, axis=1).max()
    spacing = np.random.default_rng(seed).uniform(0.1, 1.5, d)
    grid = Grid.centred((90,) * 2 if d == 2 else (40,) * 3, np.eye(d)[:, ::-1] * spacing, np.zeros(d))
    steps = 0.24 * radius / {2: 12, 3: 8}[d], 2.5 * radius / {2: 39, 3: 21}[d]
    before, blocks = grid.spacing, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "block_mean", lambda image, block: blocks.append(block) or block_mean(image, block))
        pictures(Image(np.zeros((1, *grid.shape), np.float32), grid), mean, Pose(np.eye(d), np.zeros(d)), mean)
    for block, step in zip(blocks, steps, strict=True):
        after = before * block
        assert ((after <= step + 1e-9) | (np.array(block) == 1)).all()
        assert (after + before > step - 1e-9).all()
        before = after


def test_what_lies_outside_is_dark_and_an_empty_image_shows_nothing() -> None:
    mean, pose = MEAN[2], Pose(np.eye(2), np.zeros(2))
    grid = scene(2).grid
    ramp = Image((50 + grid.points()[..., 1])[None].astype(np.float32), grid)  # -60 to 160 along y
    border = np.array([[grid.extent_mm[0] / 2, 0.0]])  # half of the patch is outside
    middle = np.array([[0.0, grid.extent_mm[1] / 2 - 60]])
    radius = np.linalg.norm(mean - mean.mean(0), axis=1).max()
    patch = pictures(ramp, border, pose, mean)[1].reshape(13, 13)
    inside = patch[:4]
    slope = (inside[:, -1] - inside[:, 0]).mean() / (0.24 * radius)  # of the picture, per mm
    outside = patch[9:]
    assert np.ptp(outside) < 1e-9
    assert 50 + (outside.mean() - inside[:, 6].mean()) / slope == pytest.approx(np.percentile(ramp.array, 1), abs=0.8)
    far = Pose(np.eye(2), np.array([2000.0, 0]))  # and so is all of the whole
    np.testing.assert_array_equal(pictures(ramp, middle, far, mean)[0], 0)
    whole = pictures(ramp, middle, Pose(np.eye(2), np.array([grid.extent_mm[0] / 2, 0])), mean)[0].reshape(40, 40)
    slope = (whole[2, -1] - whole[2, 0]) / (2.5 * radius)
    dark = 50 + mean.mean(0)[1] + (whole[-1].mean() - whole[2].mean()) / slope
    assert np.ptp(whole[-5:]) < 1e-9 and dark == pytest.approx(np.percentile(ramp.array, 1), abs=0.8)
    empty = Image(np.zeros_like(ramp.array), grid)
    for picture in pictures(empty, mean, pose, mean):
        np.testing.assert_array_equal(picture, 0)


def test_correlation() -> None:
    a = np.array([1.0, -1, 0])
    assert correlation(a, 3 * a) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, np.array([1.0, 1, -2])) == pytest.approx(0)
    assert correlation(a, np.array([1.0, 0, -1])) == pytest.approx(0.5)
    assert correlation(0.1 * a, 0.1 * a) == pytest.approx(1)
    assert correlation(a, 0 * a) == 0


# ---------------------------------------------------------------------- roughness


def plain_roughness(array: np.ndarray, low: list[int], high: list[int]) -> float:
    """Of the voxels from ``low`` to ``high`` (inclusive), in loops over lines."""
    window, out = array[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))], []
    for axis in range(window.ndim):
        lines = np.moveaxis(window, axis, -1).astype(float)
        a, b = np.percentile(lines[..., ::4], [1, 99])
        lines = np.clip(lines, a, b)
        steps = [abs(x[i] - (x[i - 1] + x[i + 1]) / 2) for x in lines.reshape(-1, lines.shape[-1])
                 for i in range(1, len(x) - 1)]  # fmt: skip
        out.append(np.mean(steps) / (b - a))
    return float(np.log(np.median(out) + 1e-4))


@pytest.mark.parametrize("shape", [(40, 50), (30, 24, 20)])
def test_roughness_is_what_neighbours_differ_by_near_the_landmarks(shape: tuple[int, ...]) -> None:
    d = len(shape)
    rng = np.random.default_rng(d)
    array = rng.gamma(1.0, 1.0, shape)
    for axis, times in ((0, 3), (1, 1)):  # smooth along the first axis, less along the second
        for _ in range(times):
            array = (array + np.roll(array, 1, axis)) / 2
    array[(0,) * d] = 1e4
    grid = Grid.from_axes(shape, np.eye(d)[:, ::-1] * 0.7, np.arange(d) * 5.0)
    low, high = [10] * d, [18, 15, 16][:d]
    points = grid.to_world(np.array([np.array(low) + 0.3, np.array(high) - 0.4, [13.5] * d]))
    unknown = np.vstack([points, np.full((1, d), np.nan)])
    window = [k - 2 for k in low], [k + 2 for k in high]
    expected = plain_roughness(array, *window)
    image = Image(array[None].astype(np.float32), grid)
    assert roughness(image, unknown) == pytest.approx(expected, abs=1e-4)
    assert roughness(Image(np.concatenate([image.array, 9 * image.array]), grid), points) == pytest.approx(
        expected, abs=1e-4
    )  # the first channel
    assert roughness(Image(3 * image.array - 5, grid), points) == pytest.approx(expected, abs=1e-4)


def test_a_window_ends_at_the_images_border_and_is_never_tiny() -> None:
    array = np.random.default_rng(1).normal(size=(20, 20))
    grid = Grid.from_axes((20, 20), np.eye(2)[:, ::-1], np.zeros(2))
    image = Image(array[None].astype(np.float32), grid)
    corner = grid.to_world(np.array([[0.0, 19.0], [0.4, 18.6]]))
    assert roughness(image, corner) == pytest.approx(plain_roughness(array, [0, 12], [7, 19]), abs=1e-4)
    one = grid.to_world(np.array([[10.0, 10.0]]))
    assert roughness(image, one) == pytest.approx(plain_roughness(array, [8, 8], [15, 15]), abs=1e-4)
    narrow = Grid.from_axes((6, 20), np.eye(2)[:, ::-1], np.zeros(2))
    ends = narrow.to_world(np.array([[4.0, 10.0], [5.0, 10.0]]))
    low = roughness(Image(image.array[:, :6], narrow), ends)
    assert low == pytest.approx(plain_roughness(array[:6], [0, 8], [5, 15]), abs=1e-4)
    beyond = grid.to_world(np.array([[10.0, 10.0], [60.0, 10.0]]))
    assert roughness(image, beyond) == pytest.approx(plain_roughness(array, [8, 8], [19, 15]), abs=1e-4)


def test_roughness_of_thin_flat_and_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    array = rng.normal(size=(2, 30, 30))
    grid = Grid.from_axes((2, 30, 30), np.eye(3)[:, ::-1], np.zeros(3))
    points = grid.to_world(np.array([[0, 5, 5], [1, 25, 25.0]]))
    image = Image(array[None].astype(np.float32), grid)
    thin = [plain_roughness(array[k], [3, 3], [27, 27]) for k in (0, 1)]
    assert roughness(image, points) == pytest.approx(np.mean(thin), abs=0.1)  # two slices have no middle one
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(roughness(Image(np.zeros((1, 2, 30, 30), np.float32), grid), points))
    line = Grid.from_axes((3, 30, 30), np.eye(3)[:, ::-1], np.zeros(3))
    three = rng.normal(size=(3, 30, 30)) * np.array([1, 1, 1])[:, None, None]
    full = roughness(Image(three[None].astype(np.float32), line), points)
    assert full == pytest.approx(plain_roughness(three, [0, 3, 3], [2, 27, 27]), abs=1e-4)
    # lines of a large window are thinned, never the voxels along them
    read: list[Any] = []
    percentile = np.percentile
    monkeypatch.setattr(likeness, "_NOISE_VOXELS", 500)
    monkeypatch.setattr(np, "percentile", lambda x, q: read.append(x.shape) or percentile(x, q))
    cube = Grid.from_axes((30,) * 3, np.eye(3)[:, ::-1], np.zeros(3))
    big = rng.normal(size=(1, 30, 30, 30)).astype(np.float32)
    rough = roughness(Image(big, cube), cube.to_world(np.array([[2.0] * 3, [27.0] * 3])))
    assert read == [(5, 5, 8)] * 3  # every 7th of 30 lines along two axes: sqrt(30^3 / 500)
    assert rough == pytest.approx(plain_roughness(big[0], [0] * 3, [29] * 3), abs=0.1)
