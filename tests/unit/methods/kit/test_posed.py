"""Patches and blocks in a pose's frame are what ``resample`` gives on the equivalent oblique grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.resample import resample, sample
from anatomark.core.shape import random_rotation
from anatomark.core.warp import random_warp
from anatomark.methods.kit.posed import plane_offsets, planes, read_block, read_patches, unit_coordinates

PX = 9


def _noise(ndim: int, seed: int = 0) -> Image:
    """Random values on an oblique grid with another spacing and size along each axis."""
    rng = np.random.default_rng([seed, ndim])
    shape = (40, 33) if ndim == 2 else (24, 29, 34)
    steps = np.array([1.1, 1.4, 1.7])[:ndim]
    grid = Grid.centred(shape, random_rotation(rng, ndim) * steps, rng.uniform(-50, 50, ndim))
    return Image(rng.uniform(0, 1, (1, *shape)).astype(np.float32), grid)


def _smooth(ndim: int) -> Image:
    """Waves some 20 mm long on an oblique grid."""
    grid = _noise(ndim).grid
    return Image(
        np.sin((grid.points() - grid.centre) @ np.array([0.3, 0.2, 0.25])[:ndim])[None].astype(np.float32), grid
    )


def _states(image: Image, count: int, landmarks: int, seed: int = 1) -> tuple[Array, Array]:
    """Centres (M, N, D) near the image's middle and axes (M, D, D), rotation times scale."""
    rng = np.random.default_rng(seed)
    centres = image.grid.centre + rng.uniform(-3, 3, (count, landmarks, image.ndim))
    return centres, np.stack([random_rotation(rng, image.ndim) * s for s in np.linspace(0.9, 1.1, count)])


def _plane_grid(axes: Array, plane: tuple[int, int], centre: Array, spacing: float) -> Grid:
    u, v = plane
    if len(axes) == 2:
        return Grid.centred((PX, PX), axes[:, [v, u]] * spacing, centre)
    normal = ({0, 1, 2} - {u, v}).pop()
    return Grid.centred((1, PX, PX), axes[:, [normal, v, u]] * spacing, centre)


@pytest.mark.parametrize("ndim", [2, 3])
def test_patches_equal_resampling_onto_each_plane(ndim: int) -> None:
    images, spacings = [_noise(ndim, 0), _noise(ndim, 0)], [0.4, 0.8]
    images[1] = Image(images[1].array * 3, images[1].grid)  # each scale has its own image
    centres, axes = _states(images[0], 2, 3)
    got = read_patches(images, centres, axes, PX, spacings, None)
    assert got.shape == (2, 3, 2 * len(planes(ndim)), PX, PX)
    assert got.dtype == torch.float32
    for m, n in np.ndindex(2, 3):
        channel = 0
        for image, spacing in zip(images, spacings, strict=True):
            for plane in planes(ndim):
                want = resample(image, _plane_grid(axes[m], plane, centres[m, n], spacing)).array.reshape(PX, PX)
                np.testing.assert_allclose(got[m, n, channel], want, atol=2e-4)
                channel += 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_block_equals_resampling_with_the_last_axis_slowest(ndim: int) -> None:
    image = _noise(ndim)
    centres, axes = _states(image, 3, 1)
    got = read_block(image, centres[:, 0], axes, PX, 0.9)
    assert got.shape == (3, 1, *(PX,) * ndim)
    for m in range(3):
        grid = Grid.centred((PX,) * ndim, axes[m][:, ::-1] * 0.9, centres[m, 0])
        np.testing.assert_allclose(got[m], resample(image, grid).array, atol=2e-4)


@pytest.mark.parametrize(("ndim", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_a_blob_appears_where_its_offset_in_the_models_frame_says(ndim: int, axis: int) -> None:
    rng = np.random.default_rng(axis)
    turn, scale, spacing = random_rotation(rng, ndim), 1.2, 1.0
    grid = Grid.centred((61,) * ndim, random_rotation(rng, ndim) * 0.5, np.full(ndim, 30.0))
    offset = np.zeros(ndim)
    offset[axis] = 3.0 * spacing
    blob = grid.centre + scale * turn @ offset
    array = np.exp(-((grid.points() - blob) ** 2).sum(-1) / (2 * 0.8**2))
    image = Image(array[None].astype(np.float32), grid)
    patches = read_patches([image], grid.centre[None, None], turn[None] * scale, PX, [spacing], None)[0, 0]
    middle = PX // 2
    for channel, (u, v) in enumerate(planes(ndim)):
        if axis in (u, v):
            at = (middle + 3 * (axis == v), middle + 3 * (axis == u))  # row along v, column along u
            assert np.unravel_index(int(patches[channel].argmax()), (PX, PX)) == at
            assert patches[channel].max() > 0.9
        else:
            assert patches[channel].max() < 0.05  # the plane passes it 3.6 mm away
    block = read_block(image, grid.centre[None], turn[None] * scale, PX, spacing)[0, 0]
    where = np.full(ndim, middle)
    where[ndim - 1 - axis] += 3
    assert np.unravel_index(int(block.argmax()), block.shape) == tuple(where)


def test_channels_are_yz_xz_xy() -> None:
    assert planes(3) == [(1, 2), (0, 2), (0, 1)]
    assert planes(2) == [(0, 1)]
    offsets = plane_offsets(3, 3)
    assert offsets.shape == (3, 3, 3, 3)
    for held in range(3):
        assert not offsets[held][..., held].any()
    np.testing.assert_array_equal(offsets[0, 2, 0], [0, -1, 1])  # last row, first column of yz: z up, y down


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_affine_warp_is_read_exactly(ndim: int) -> None:
    """Linear maps are linear between the nodes too, so they equal another centre and other axes."""
    image = _noise(ndim)
    centres, axes = _states(image, 2, 2)
    matrix = np.eye(ndim) + np.random.default_rng(3).normal(0, 0.05, (ndim, ndim))
    middle = image.grid.centre

    def warp(world: Array) -> Array:
        return (world - middle) @ matrix.T + middle + 1.0

    got = read_patches([image], centres, axes, PX, [0.5], warp)
    np.testing.assert_allclose(got, read_patches([image], warp(centres), matrix @ axes, PX, [0.5], None), atol=2e-4)
    block = read_block(image, centres[:, 0], axes, PX, 0.5, warp)
    np.testing.assert_allclose(block, read_block(image, warp(centres[:, 0]), matrix @ axes, PX, 0.5), atol=2e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_smooth_warp_is_read_as_if_every_pixel_were_warped(ndim: int) -> None:
    image = _smooth(ndim)
    box = Grid.centred((2,) * ndim, np.eye(ndim)[:, ::-1] * 40, image.grid.centre)
    warp = random_warp(np.random.default_rng(5), box, 4.0, 40.0)
    centres, axes = _states(image, 1, 2)
    offsets = plane_offsets(ndim, PX) * (PX - 1) / 2 * 0.8
    world = centres[0, :, None, None, None] + np.einsum("ij,phwj->phwi", axes[0], offsets)
    want = sample(image, warp(world))[0]
    got = read_patches([image], centres, axes, PX, [0.8], warp)[0]
    straight = read_patches([image], centres, axes, PX, [0.8], None)[0]
    assert (got - want).abs().max() < 0.02
    assert (straight - want).abs().max() > 0.2  # the warp does matter here
    lattice = read_block(image, centres[:, 0], axes, PX, 0.8, warp)[0, 0]
    steps = np.linspace(-1, 1, PX) * (PX - 1) / 2 * 0.8
    model = np.stack(np.meshgrid(*(steps,) * ndim, indexing="ij")[::-1], -1)  # (x, y[, z]), the last slowest
    assert (lattice - sample(image, warp(centres[0, 0] + model @ axes[0].T))[0]).abs().max() < 0.02


@pytest.mark.parametrize("ndim", [2, 3])
def test_outside_the_image_is_zero(ndim: int) -> None:
    grid = _noise(ndim).grid
    image = Image(np.ones((1, *grid.shape), dtype=np.float32), grid)
    far = grid.centre + 500.0
    axes = np.eye(ndim)[None]
    assert not read_patches([image], far[None, None], axes, PX, [1.0], None).any()
    assert not read_block(image, far[None], axes, PX, 1.0).any()
    corner = grid.to_world(np.zeros(ndim))
    patch = read_patches([image], corner[None, None], axes, PX, [1.0], None)
    assert (patch == 0).any()
    assert patch.max() == pytest.approx(1, abs=1e-4)


def test_unit_coordinates_run_from_border_to_border_fastest_axis_first() -> None:
    grid = _noise(3).grid
    border = unit_coordinates(grid, grid.to_world(np.array([-0.5, grid.shape[1] - 0.5, -0.5])))
    np.testing.assert_allclose(border, [-1, 1, -1], atol=1e-5)
    np.testing.assert_allclose(unit_coordinates(grid, grid.centre), 0, atol=1e-5)
