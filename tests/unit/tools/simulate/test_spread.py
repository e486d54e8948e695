"""Points spread evenly over a foreground, and carried by registration to where the same place is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.tools.simulate.deform import deformation
from anatomark.tools.simulate.motion import Simulation, draw_motion, read_through
from anatomark.tools.simulate.spread import carry_points, nearest_to_mean, spread_points

SHAPES = {2: (90, 100), 3: (44, 48, 52)}


def _grid(ndim: int) -> Grid:
    return Grid.centred(SHAPES[ndim], np.eye(ndim)[:, ::-1] * 2.0, np.zeros(ndim))


def _body(ndim: int, seed: int = 0) -> Image:
    """A bright ellipsoid with texture and a dark hollow in it, in darkness."""
    grid = _grid(ndim)
    world = grid.points()
    rng = np.random.default_rng([seed, ndim])
    inside = ((world / (0.36 * grid.extent_mm[::-1])) ** 2).sum(-1) < 1
    values = 100.0 * inside
    for _ in range(60 if ndim == 2 else 90):
        centre = rng.uniform(-0.35, 0.35, ndim) * grid.extent_mm[::-1]
        values += (
            inside * rng.uniform(-60, 60) * np.exp(-((world - centre) ** 2).sum(-1) / (2 * rng.uniform(4, 9) ** 2))
        )
    values = np.where((world**2).sum(-1) < 10**2, 5.0, values)
    return Image((values.clip(3) + rng.normal(0, 1, grid.shape))[None].astype(np.float32), grid)


def _gaps(points: NDArray[np.float64]) -> NDArray[np.float64]:
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    return np.asarray(apart.min(1))


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_are_even_inside_the_foreground_hollow_and_all(ndim: int) -> None:
    image = _body(ndim)
    points = spread_points(image, 100, np.random.default_rng(0))
    assert points.shape == (100, ndim)
    radius = np.sqrt(((points / (0.36 * image.grid.extent_mm[::-1])) ** 2).sum(-1))
    assert radius.max() < 1.1
    assert (radius < 0.5).mean() > 0.6 * 0.5**ndim  # not along the surface alone
    gaps = _gaps(points)
    assert gaps.min() > 0.4 * np.median(gaps) > 0
    assert gaps.max() < 2 * np.median(gaps)
    assert np.array_equal(points, spread_points(image, 100, np.random.default_rng(0)))
    assert not np.array_equal(points, spread_points(image, 100, np.random.default_rng(1)))


def test_more_points_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(InputError, match="no room for 5000"):
        spread_points(_body(2), 5000, np.random.default_rng(0))


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_go_where_a_known_warp_takes_them_whatever_the_contrast(ndim: int) -> None:
    image = _body(ndim)
    corners = Landmarks(tuple("abcd")[: ndim + 1], np.vstack([np.zeros(ndim), np.eye(ndim) * 25]))
    points = spread_points(image, 60, np.random.default_rng(0))
    motion = draw_motion(
        image.grid, Landmarks(tuple(map(str, range(60))), points), np.random.default_rng(3),
        Simulation(amplitude_mm=9, wavelength_mm=70, rotation_deg=8),
    )  # fmt: skip
    other = read_through(image, motion, 3.0)
    world = image.grid.points()
    other = Image((other.array.clip(0) ** 0.8 * 7 * (1.2 + world[..., 0] / 150)).astype(np.float32), image.grid)
    truth = motion.move(points)
    marks = corners.with_points(motion.move(corners.points))
    found = carry_points(points, (image, corners), (other, marks))
    straight = np.linalg.norm(motion.pose.apply(points) - truth, axis=1)
    off = np.linalg.norm(found - truth, axis=1)
    assert np.median(straight) > 2
    assert np.median(off) < 0.4 * np.median(straight)


def test_points_that_leave_the_image_are_nowhere() -> None:
    image = _body(2)
    marks = Landmarks(("a", "b", "c"), np.array([[0.0, 0], [20, 0], [0, 20]]))
    cut = Image(image.array[:, :50], Grid.from_axes((50, 100), image.grid.axes, image.grid.origin))
    points = np.array([[0.0, -40], [0, 0], [0, 40]])
    found = carry_points(points, (image, marks), (cut, marks))
    assert np.isfinite(found).all(1).tolist() == [True, True, False]


def test_a_case_without_a_common_landmark_is_refused() -> None:
    image = _body(2)
    a, b = (Landmarks((name,), np.zeros((1, 2))) for name in "ab")
    with pytest.raises(InputError, match="no defined landmark"):
        carry_points(np.zeros((1, 2)), (image, a), (image, b))


def test_the_field_does_not_fold_on_noise() -> None:
    rng = np.random.default_rng(0)
    field = deformation(rng.random((40, 40, 40)), rng.random((40, 40, 40)))
    assert field.shape == (3, 40, 40, 40)
    slopes = np.stack([np.stack(np.gradient(u), -1) for u in field.numpy()], -2)
    assert np.linalg.det(slopes + np.eye(3)).min() > 0


def test_the_case_nearest_the_mean_is_found() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 30, (10, 3))
    shapes = {f"c{k}": base + rng.normal(0, 3 if k != 2 else 0.1, base.shape) for k in range(5)}
    marks = {k: Landmarks(tuple("abcdefghij"), v @ np.diag([1.0, 1, 1]) + 100 * int(k[1])) for k, v in shapes.items()}
    assert nearest_to_mean(marks) == "c2"
    assert nearest_to_mean({"only": marks["c1"]}) == "only"
