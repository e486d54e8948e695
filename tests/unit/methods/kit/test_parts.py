"""A part of an image is the same as that region of the whole working image, on any grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.shape import random_rotation
from anatomark.methods.kit.anatomy import block_for
from anatomark.methods.kit.working import Parts

RULE = {"kind": "percentiles", "low": 1.0, "high": 99.0}
STEPS = np.array([0.5, 1.1, 0.7])


def image_of(seed: int, ndim: int, kind: Any = np.int16, channels: int = 1) -> Image:
    """Noise over a slope on a rotated, anisotropic grid whose sizes are no multiples of any block."""
    rng = np.random.default_rng(seed)
    shape = (61, 53) if ndim == 2 else (37, 29, 31)
    axes = random_rotation(rng, ndim)[:, ::-1] * STEPS[:ndim]
    grid = Grid.centred(shape, axes, rng.normal(0, 20, ndim))
    values = rng.integers(0, 100, (channels, *shape)) + 2 * np.arange(shape[-1])
    return Image(values.astype(kind), grid)


def cut_of(whole: Image, part: Image) -> np.ndarray:
    """The region of ``whole`` that ``part`` says it is."""
    first = np.round(whole.grid.to_index(part.grid.origin)).astype(int)
    np.testing.assert_allclose(whole.grid.to_world(first), part.grid.origin, atol=1e-9)
    np.testing.assert_allclose(whole.grid.axes, part.grid.axes, atol=1e-12)
    end = first + part.grid.shape
    assert (first >= 0).all()
    assert (end <= whole.grid.shape).all()
    return whole.array[(slice(None), *(slice(a, b) for a, b in zip(first, end, strict=True)))]


@given(
    st.integers(0, 1000), st.sampled_from([2, 3]), st.floats(0.4, 4), st.floats(1, 8), st.floats(-0.2, 1.2),
    st.sampled_from([np.int16, np.uint8, np.float32]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_part_is_that_region_of_the_whole(
    seed: int, ndim: int, spacing: float, reach: float, at: float, kind: Any
) -> None:
    image = image_of(seed, ndim, kind)
    parts = Parts(image, RULE)
    points = image.grid.to_world(np.array(image.grid.shape) * np.array([[at] * ndim, [0.5] * ndim]))
    whole, part = parts.whole(spacing), parts.around(spacing, points, reach)
    np.testing.assert_allclose(part.array, cut_of(whole, part), atol=1e-5)
    # and all of the image that lies that near is in it
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.grid.shape), indexing="ij"), -1).reshape(-1, ndim)
    world = image.grid.to_world(index)
    near = np.abs(index[:, None] - image.grid.to_index(points)) * image.grid.spacing < reach
    inside = part.grid.to_index(world[near.all(2).any(1)])
    assert ((inside > -0.5 - 1e-9) & (inside < np.array(part.grid.shape) - 0.5 + 1e-9)).all()


def test_a_large_image_is_not_read_whole() -> None:
    image = image_of(0, 3)
    part = Parts(image, RULE).around(0.5, image.grid.centre[None], 3.0)
    assert part.array.size < 0.2 * image.array.size
    assert part.array.shape[0] == 1


def test_a_part_serves_again() -> None:
    image = image_of(1, 2)
    centre = image.grid.centre[None]
    parts = Parts(image, RULE)
    wide = parts.around(1.0, centre, 9.0)
    assert parts.around(1.0, centre + 1.0, 5.0) is wide
    assert block_for(image, 1.05) == block_for(image, 1.0)
    assert parts.around(1.05, centre, 5.0) is wide  # what counts is the block
    assert parts.around(1.0, centre + 5.0, 9.0) is not wide
    assert parts.around(4.0, centre, 3.0).grid.spacing.max() > 2 * wide.grid.spacing.max()


def test_room_is_read_but_not_asked_for() -> None:
    image = image_of(2, 2)
    centre, step = image.grid.centre[None], image.grid.axes[:, 0] / image.grid.spacing[0]
    parts = Parts(image, RULE)
    roomy = parts.around(0.5, centre, 4.0, 3.0)
    np.testing.assert_array_equal(roomy.array, Parts(image, RULE).around(0.5, centre, 7.0).array)
    assert parts.around(0.5, centre + 2.5 * step, 4.0, 3.0) is roomy
    assert parts.around(0.5, centre + 4.5 * step, 4.0, 3.0) is not roomy


@pytest.mark.parametrize("away", [1e3, -1e3])
def test_points_far_outside_give_a_part_at_the_border(away: float) -> None:
    image = image_of(3, 3)
    part = Parts(image, RULE).around(1.0, image.grid.centre[None] + away, 2.0)
    assert min(part.grid.shape) >= 1
    cut_of(Parts(image, RULE).whole(1.0), part)


def test_colour_becomes_grey_by_the_bounds_of_the_whole() -> None:
    image = image_of(4, 2, np.uint8, channels=3)
    parts = Parts(image, RULE)
    whole, part = parts.whole(1.2), parts.around(1.2, image.grid.centre[None], 6.0)
    assert whole.array.shape[0] == part.array.shape[0] == 1
    np.testing.assert_allclose(part.array, cut_of(whole, part), atol=1e-5)
    assert part.array.max() < whole.array.max()  # a part's own bounds would make its brightest 1
