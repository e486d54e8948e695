"""Grid: index to world and back, orientations, isotropic and canonical grids."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.box import Box
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.shape import random_rotation
from anatomark.io.images import read_image

RAS = np.diag([-1.0, -1.0, 1.0])
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


@st.composite
def grids(draw: st.DrawFn, most_ratio: float = 8) -> Grid:
    d = draw(st.sampled_from((2, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = [draw(st.integers(1, 40)) for _ in range(d)]
    spacing = rng.uniform(0.1, 0.1 * most_ratio, d) * draw(st.sampled_from((0.01, 1.0, 10.0)))
    flip = rng.choice([-1.0, 1.0], d)
    axes = random_rotation(rng, d)[:, rng.permutation(d)] * spacing * flip
    return Grid.from_axes(shape, axes, rng.normal(size=d) * 200)


@given(grids(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_index_to_world_and_back(grid: Grid, seed: int) -> None:
    index = np.random.default_rng(seed).uniform(-50, 50, (7, grid.ndim))
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-8)
    world = np.random.default_rng(seed).uniform(-300, 300, (7, grid.ndim))
    np.testing.assert_allclose(grid.to_world(grid.to_index(world)), world, atol=1e-8)


@given(grids(), st.floats(0.05, 3))
@settings(max_examples=60, deadline=None)
def test_an_isotropic_grid_covers_the_image(grid: Grid, ratio: float) -> None:
    spacing = float(grid.spacing.min()) * ratio
    iso = grid.isotropic(spacing)
    np.testing.assert_allclose(iso.spacing, spacing)
    np.testing.assert_allclose(iso.axes / iso.spacing, grid.axes / grid.spacing, atol=1e-12)
    index = iso.to_index(Box((0,) * grid.ndim, grid.shape).corners(grid))
    assert (index >= -0.5 - 1e-5).all() and (index <= np.asarray(iso.shape) - 0.5 + 1e-5).all()
    # the first border stays in place, and no whole voxel lies beyond the last
    np.testing.assert_allclose(iso.to_world([-0.5] * grid.ndim), grid.to_world([-0.5] * grid.ndim), atol=1e-8)
    assert (iso.extent_mm < grid.extent_mm + spacing * (1 + 1e-5)).all()


@given(grids(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_canonical_keeps_every_voxel_in_its_place(grid: Grid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = Image(rng.normal(size=(2, *grid.shape)), grid)
    turned = image.canonical()
    index = np.stack([rng.integers(0, n, 20) for n in grid.shape], -1)
    there = np.rint(turned.grid.to_index(grid.to_world(index))).astype(int)
    np.testing.assert_allclose(turned.grid.to_world(there), grid.to_world(index), atol=1e-6)
    np.testing.assert_array_equal(turned.array[(slice(None), *there.T)], image.array[(slice(None), *index.T)])
    again = turned.grid.canonical()
    assert again.shape == turned.grid.shape and np.allclose(again.affine, turned.grid.affine, atol=1e-6)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_canonical_is_zyx_along_positive_axes(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    axes = np.eye(3)[:, order] * signs * [0.5, 1.0, 2.0]
    assert np.argmax(np.abs(Grid.from_axes((3, 4, 5), axes, (1, 2, 3)).canonical().axes), 0).tolist() == [2, 1, 0]
    assert (Grid.from_axes((3, 4, 5), axes, (1, 2, 3)).canonical().axes >= 0).all()


@pytest.mark.parametrize("oblique", [False, True])
def test_world_positions_agree_with_simpleitk_and_nibabel(tmp_path: Path, oblique: bool) -> None:
    shape = (3, 4, 5)  # x, y, z as both libraries count
    index = np.array(list(itertools.product(*(range(n) for n in shape))))
    values = np.arange(index.shape[0], dtype=np.int16).reshape(shape)
    for number, (order, signs) in enumerate(ORIENTATIONS):
        turn = random_rotation(np.random.default_rng(number), 3) if oblique else np.eye(3)
        affine = np.eye(4)
        affine[:3, :3] = (turn[:, order] * signs) @ np.diag([0.5, 1.25, 2.0])
        affine[:3, 3] = (-3.5, 2.25, 4.0)
        path = tmp_path / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(values, affine), path)
        image = read_image(path)
        assert sorted(image.array.ravel()) == list(range(values.size))
        # where our array holds the value of voxel (i, j, k), the world is that of the voxel in both libraries
        ours = np.empty((values.size, 3))
        ours[image.array[0].ravel()] = image.grid.points().reshape(-1, 3)
        theirs = sitk.ReadImage(str(path))
        np.testing.assert_allclose(
            ours, [theirs.TransformIndexToPhysicalPoint([int(v) for v in i]) for i in index], atol=1e-6
        )
        stored = nib.load(path).affine  # float32 in the file
        np.testing.assert_allclose(ours, (index @ stored[:3, :3].T + stored[:3, 3]) @ RAS, atol=1e-6)


def test_contains_runs_to_the_voxel_borders() -> None:
    grid = Grid.from_axes((4, 6), np.array([[0, 0.5], [2.0, 0]]), (10, 20))
    at = grid.to_world([[-0.49, -0.49], [3.49, 5.49], [-0.51, 0], [0, 5.51], [1, 2]])
    assert grid.contains(at).tolist() == [True, True, False, False, True]
    np.testing.assert_allclose(grid.extent_mm, (8, 3))
    np.testing.assert_allclose(grid.centre, (10 + 0.5 * 2.5, 20 + 2 * 1.5))


def test_centred_puts_the_middle_there() -> None:
    grid = Grid.centred((5, 4, 3), random_rotation(np.random.default_rng(0), 3) * 0.7, (1, -2, 3))
    np.testing.assert_allclose(grid.centre, (1, -2, 3), atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "affine", "word"),
    [
        ((3,), np.eye(2), "shape"),
        ((3, 0), np.eye(3), "shape"),
        ((3, 3), np.eye(4), "affine"),
        ((3, 3), np.diag([1, np.nan, 1]), "affine"),
        ((3, 3), np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1.0]]), "last row"),
        ((3, 3), np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]]), "singular"),
        ((3, 3), np.diag([1, 0, 1.0]), "singular"),
    ],
)
def test_bad_grids_are_refused(shape: tuple[int, ...], affine: np.ndarray, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Grid(shape, affine)


def test_a_microscopes_spacing_is_not_singular() -> None:
    assert Grid.from_axes((4, 4, 4), np.eye(3) * 5e-5, (0, 0, 0)).spacing.tolist() == [5e-5] * 3


def test_grids_are_values() -> None:
    a, b = (Grid.from_axes((3, 4), np.eye(2), (1, 2)) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a != Grid.from_axes((3, 4), np.eye(2), (1, 3))
    with pytest.raises(ValueError):
        a.affine[0, 0] = 2
