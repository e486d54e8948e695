"""Boxes around points: nothing moves, nothing is lost, everything goes back where it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.box import Box, box_around, box_of_size, cut_out, paste
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.shape import random_rotation

SEEDS = st.tuples(st.integers(2, 3), st.integers(0, 10_000))


def _image(d, rng, dtype=np.int16):
    shape = rng.integers(5, 14, d)
    axes = random_rotation(rng, d) * rng.uniform(0.4, 3, d)
    grid = Grid.from_axes(shape.tolist(), axes[:, rng.permutation(d)], rng.normal(0, 100, d))
    return Image(rng.integers(-900, 900, (1, *shape)).astype(dtype), grid)


@given(SEEDS, st.floats(0, 12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_voxels_keep_value_dtype_and_place_and_go_back(case, margin, padded):
    d, seed = case
    rng = np.random.default_rng(seed)
    image = _image(d, rng)
    points = image.grid.to_world(rng.uniform(0, 1, (3, d)) * (np.array(image.grid.shape) - 1))
    asked = box_around(image.grid, points, margin)
    box = asked if padded else asked.within(image.grid)
    part = cut_out(image, box, fill=-7)
    assert part.array.dtype == np.int16
    whole = image.grid.to_index(part.grid.points())
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-6)
    at = np.round(whole).astype(int)
    inside = ((at >= 0) & (at < image.grid.shape)).all(-1)
    np.testing.assert_array_equal(part.array[0][inside], image.array[0][tuple(at[inside].T)])
    assert (part.array[0][~inside] == -7).all()
    back = paste(part, image.grid, fill=99)
    assert back.grid == image.grid
    assert back.array.dtype == np.int16
    kept = tuple(slice(max(v, 0), u) for v, u in zip(box.lower, box.upper, strict=True))
    np.testing.assert_array_equal(back.array[0][kept], image.array[0][kept])
    outside = np.ones(image.grid.shape, dtype=bool)
    outside[kept] = False
    assert (back.array[0][outside] == 99).all()


@given(SEEDS, st.floats(0, 12))
@settings(max_examples=60, deadline=None)
def test_box_holds_points_and_margin_and_no_voxel_more(case, margin):
    d, seed = case
    rng = np.random.default_rng(seed)
    grid = _image(d, rng).grid
    points = grid.to_world(rng.uniform(-3, 12, (4, d)))
    box = box_around(grid, points, margin)
    index, room = grid.to_index(points), margin / grid.spacing
    below, above = index.min(0) - room - (np.array(box.lower) - 0.5), np.array(box.upper) - 0.5 - index.max(0) - room
    for gap in (below, above):
        assert (gap > -1e-5).all()
        assert (gap < 1 + 1e-5).all()


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_fixed_size_depends_on_spacing_alone(case):
    d, seed = case
    rng = np.random.default_rng(seed)
    grid = _image(d, rng).grid
    size = rng.uniform(2, 20, d)
    centre = grid.to_world(rng.uniform(0, 5, d))
    box, other = (box_of_size(grid, c, size) for c in (centre, centre + rng.normal(0, 5, d)))
    shape = np.subtract(box.upper, box.lower)
    np.testing.assert_array_equal(shape, np.subtract(other.upper, other.lower))
    middle = (np.array(box.upper) + box.lower - 1) / 2
    assert (np.abs(grid.to_index(centre) - middle) <= 0.5 + 1e-9).all()
    order, _ = grid._canonical_axes()
    for axis, wanted in zip(order, size[::-1], strict=True):
        assert wanted - 1e-2 <= shape[axis] * grid.spacing[axis] < wanted + grid.spacing[axis]


def test_what_cannot_be_done_is_refused():
    grid = Grid.from_axes((5, 5), np.eye(2)[:, ::-1] * 2.0, np.zeros(2))
    image = Image(np.zeros((1, 5, 5), np.uint8), grid)
    with pytest.raises(ValueError, match="outside the image"):
        Box((7, 0), (9, 2)).within(grid)
    with pytest.raises(ValueError, match="uint8 cannot hold the value -1000"):
        cut_out(image, Box((0, 0), (2, 2)), fill=-1000)
    with pytest.raises(ValueError, match="other axes or spacing"):
        paste(Image(np.zeros((1, 3, 3), np.uint8), Grid.centred((3, 3), grid.axes / 2, (4, 4))), grid)
    with pytest.raises(ValueError, match="between those"):
        paste(Image(image.array, Grid.from_axes((5, 5), grid.axes, (1.0, 0.0))), grid)


def test_float32_headers_do_not_stop_a_paste():
    grid = Grid.from_axes((40, 50, 60), np.eye(3)[:, ::-1] * 0.1410013, (123.4567, -87.654321, 55.5555))
    image = Image(np.arange(40 * 50 * 60, dtype=np.int32).reshape(1, 40, 50, 60), grid)
    box = Box((3, 4, 5), (30, 40, 55))
    part = cut_out(image, box)
    rough = Image(part.array, Grid(part.grid.shape, part.grid.affine.astype(np.float32)))
    back = paste(rough, grid, fill=-1)
    np.testing.assert_array_equal(back.array[0, 3:30, 4:40, 5:55], part.array[0])
    assert (back.array == -1).sum() == 40 * 50 * 60 - 27 * 36 * 50
