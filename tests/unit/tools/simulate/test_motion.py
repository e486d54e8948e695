"""A simulated case: image and landmarks move alike, on the same grid, in the same dtype, by the generator alone."""

from __future__ import annotations

import time

import numpy as np
import pytest

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.tools.simulate.motion import Simulation, draw_motion, read_through, simulate_case
from phantom import oblique, phantom
from points import named


def _bytes(image: Image) -> Image:
    return Image(np.clip(image.array, 0, 255).astype(np.uint8), image.grid, image.meta)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_blobs_lie_where_the_landmarks_say(ndim: int, seed: int) -> None:
    image, marks = phantom(seed, ndim)
    new, moved = simulate_case(image, marks, np.random.default_rng(seed), Simulation(intensity=0))
    assert np.linalg.norm(moved.points - marks.points, axis=1).max() > 0.5
    world = new.grid.points()
    for point in moved.points[moved.defined]:
        weight = np.clip(new.array[0] - 15, 0, None) * (np.linalg.norm(world - point, axis=-1) < 5)
        middle = (world * weight[..., None]).reshape(-1, ndim).sum(0) / weight.sum()
        assert np.linalg.norm(middle - point) < 0.6


@pytest.mark.parametrize("ndim", [2, 3])
def test_every_voxel_is_read_where_the_motion_says(ndim: int) -> None:
    grid = oblique(ndim)
    ramps = Image(np.moveaxis(grid.points(), -1, 0).astype(np.float32), grid)  # each voxel holds its own place
    marks = phantom(0, ndim)[1]
    settings = Simulation(amplitude_mm=8, wavelength_mm=40, rotation_deg=30, scale=0.2, shift=0.4)
    motion = draw_motion(grid, marks, np.random.default_rng(3), settings)
    read = np.moveaxis(read_through(ramps, motion, np.nan).array, 0, -1)
    expected = motion.read(grid.points())
    index = grid.to_index(expected)
    within = ((index >= 0) & (index <= np.array(grid.shape) - 1)).all(-1)
    assert 0.3 < within.mean() < 1
    assert np.abs(read - expected)[within].max() < 0.01
    outside = ~grid.contains(expected)
    assert np.isnan(read[outside]).mean() > 0.999
    assert np.isfinite(read[within]).all()
    assert motion.warp.jacobian_minimum() > 0.25


@pytest.mark.parametrize("seed", range(5))
def test_landmarks_come_back_from_where_they_went(seed: int) -> None:
    image, marks = phantom(seed, 3)
    motion = draw_motion(image.grid, marks, np.random.default_rng(seed), Simulation(amplitude_mm=30, wavelength_mm=25))
    assert np.abs(motion.read(motion.move(marks.points)) - marks.points).max() < 1e-3


def test_the_same_generator_gives_the_same_case() -> None:
    image, marks = phantom(1, 3)
    (a, one), (b, two), (c, other) = (simulate_case(image, marks, np.random.default_rng(s)) for s in (5, 5, 6))
    assert np.array_equal(a.array, b.array)
    assert np.array_equal(one.points, two.points)
    assert not np.array_equal(a.array, c.array)
    assert not np.array_equal(one.points, other.points)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_grid_and_kind_of_values_stay(dtype: str) -> None:
    image, marks = phantom(2, 2)
    image = Image(np.rint(image.array.clip(0)).astype(dtype), image.grid)
    new, _ = simulate_case(image, marks, np.random.default_rng(0), Simulation(intensity=1))
    assert new.grid == image.grid
    assert new.array.dtype == np.dtype("float32" if dtype == "float64" else dtype)
    assert new.array.min() >= 0
    assert 0.4 < np.percentile(new.array, 99) / np.percentile(image.array, 99) < 2


def test_bright_tissue_is_not_cut_off_at_the_dtypes_end() -> None:
    rng = np.random.default_rng(0)
    grid = Grid.from_axes((64, 64), [[0, 1], [1, 0]], (0, 0))
    image = Image(rng.uniform(100, 255, (1, 64, 64)).astype(np.uint8), grid)
    marks = named({"a": (20, 20), "b": (40, 44)})
    shares = [(simulate_case(image, marks, np.random.default_rng(s))[0].array == 255).mean() for s in range(12)]
    assert max(shares) < 0.02


def test_a_blackened_background_stays_black() -> None:
    image, marks = phantom(3, 3)
    array = np.where(image.array > 20, image.array, 0).astype(np.uint8)
    new, _ = simulate_case(Image(array, image.grid), marks, np.random.default_rng(1))
    assert abs((new.array == 0).mean() - (array == 0).mean()) < 0.15


def test_no_intensity_changes_no_value() -> None:
    image, marks = phantom(4, 3)
    still = Simulation(amplitude_mm=0, rotation_deg=0, scale=0, shift=0, intensity=0)
    new, moved = simulate_case(_bytes(image), marks, np.random.default_rng(0), still)
    assert np.array_equal(new.array, _bytes(image).array)
    assert np.allclose(moved.points, marks.points, atol=1e-4)


def test_states_are_carried_and_what_leaves_is_absent() -> None:
    image, marks = phantom(0, 3)
    edge = image.grid.to_world(np.array([0.0, 18, 20]))
    names = (*marks.names, "edge", "gone", "unknown")
    nowhere = np.full(3, np.nan)
    states = (*marks.status, Status.DEFINED, Status.ABSENT, Status.UNANNOTATED)
    known = Landmarks(names, np.vstack([marks.points, edge, nowhere, nowhere]), states, descriptions=tuple("12345678"))
    left = set()
    for seed in range(12):
        new, moved = simulate_case(image, known, np.random.default_rng(seed))
        assert moved.names == names
        assert moved.descriptions == known.descriptions
        assert moved.status[6:] == (Status.ABSENT, Status.UNANNOTATED)
        assert new.grid.contains(moved.points[moved.defined]).all()
        left.add(moved.status[5])
    assert left == {Status.DEFINED, Status.ABSENT}


def test_all_landmarks_leaving_is_an_error_for_the_caller() -> None:
    image, _ = phantom(0, 3)
    corners = image.grid.to_world(np.array([[0.0, 0, 0], [29, 35, 39]]))
    with pytest.raises(RuntimeError, match="leaves"):
        simulate_case(
            image, Landmarks(("a", "b"), corners), np.random.default_rng(0), Simulation(rotation_deg=0, shift=1)
        )


@pytest.mark.parametrize("wrong", [{"amplitude_mm": -1}, {"wavelength_mm": 0}, {"rotation_deg": 181}, {"scale": -0.1},
                                   {"intensity": float("nan")}])  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Simulation(**wrong)


def test_a_brain_sized_volume_takes_seconds() -> None:
    grid = Grid.from_axes((182, 218, 182), np.eye(3)[:, ::-1], (0, 0, 0))
    image = Image(np.random.default_rng(0).integers(0, 200, (1, *grid.shape)).astype(np.uint8), grid)
    marks = named({"a": (50, 60, 70), "b": (120, 150, 100)})
    begun = time.process_time()
    simulate_case(image, marks, np.random.default_rng(0))
    assert time.process_time() - begun < 20
