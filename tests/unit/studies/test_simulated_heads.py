"""Simulated heads: what is drawn at a landmark is still there when the head has changed."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks

NAMES = ("1", "15", "16", "17", "18", "21", "22", "23", "24", "25", "26", "29", "30")


def head(rng: np.random.Generator) -> tuple[Image, Landmarks]:
    """A blob of 5 mm at each landmark, on an oblique grid of 2 mm whose axes are not in order."""
    axes = np.array([[0, 0.1, 1.0], [-0.1, 1.0, -0.1], [1.0, 0.1, 0]])[:, [1, 0, 2]]
    grid = Grid.centred((70, 60, 66), axes / np.linalg.norm(axes, axis=0) * 2.0, np.array([3.0, -9, 14]))
    points = grid.centre + rng.uniform(-28, 28, (len(NAMES), 3))
    world = grid.points()
    near = [np.exp(-((world - p) ** 2).sum(-1) / (2 * 2.5**2)) for p in points]
    return Image(np.asarray(sum(near), dtype=np.float32)[None], grid), Landmarks(NAMES, points)


def centre_of(image: Image, near: np.ndarray) -> np.ndarray:
    """The centre of brightness within 6 mm."""
    world = image.grid.points()
    weight = image.array[0] * (((world - near) ** 2).sum(-1) < 36)
    return np.asarray((world * weight[..., None]).sum((0, 1, 2)) / weight.sum())


@pytest.mark.parametrize("kind", ["thick", "cut", "shaped"])
@pytest.mark.parametrize("seed", range(3))
def test_landmarks_stay_with_what_they_mark(study: Callable[[str], ModuleType], kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, marks = head(rng)
    lone = [n for n in NAMES if np.sort(np.linalg.norm(marks.points - marks[n], axis=1))[1] > 14]
    assert lone
    made, points = getattr(study("simulated_heads"), kind)(image, marks, rng)
    assert made.array.shape[1:] == made.grid.shape
    inside = [n for n in lone if made.grid.contains(points[n][None])[0]]
    assert len(inside) == len(lone)
    for name in inside:
        tolerance = 1.5 if kind != "cut" else 0.3  # a thick slice is 6.5 mm; a warped blob is no longer round
        assert np.linalg.norm(centre_of(made, points[name]) - points[name]) < tolerance, name
    changed = {"thick": made.grid.spacing.max() > 3, "cut": made.array.size < image.array.size}
    assert changed.get(kind, not np.allclose(points.points, marks.points))


def test_a_curve_and_noise_move_nothing(study: Callable[[str], ModuleType]) -> None:
    rng = np.random.default_rng(5)
    image, _ = head(rng)
    made = study("simulated_heads").recoloured(image, rng)
    assert np.allclose(made.grid.affine, image.grid.affine)
    bright = image.array > 0.5
    assert made.array[bright].mean() > 3 * made.array[~bright].mean()
    assert not np.allclose(made.array / made.array.max(), image.array / image.array.max())


def test_the_skull_goes_where_the_other_brain_ends(study: Callable[[str], ModuleType]) -> None:
    """A ball is the brain of one head; the other head is the same, 1.2 times as large, turned and elsewhere."""
    rng = np.random.default_rng(7)
    own = Grid.centred((50, 50, 50), np.eye(3)[:, ::-1] * 2.0, np.zeros(3))
    ball = (np.linalg.norm(own.points(), axis=-1) < 35).astype(np.float32)
    points = rng.uniform(-30, 30, (len(NAMES), 3))
    brain = Case("brain", given=Landmarks(NAMES, points), held=Image(ball[None], own))
    turn = np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]])
    there = np.array([5.0, -20, 9])
    grid = Grid.centred((60, 58, 62), np.eye(3)[:, [1, 0, 2]] * 2.0, there)
    head = Image(np.full((1, *grid.shape), 7, dtype=np.float32), grid)
    head.array[0, 0, 0, 0] = 1  # what is taken off is as dark as the darkest
    made, marks = study("simulated_heads").stripped(brain)(head, Landmarks(NAMES, there + 1.2 * points @ turn.T), rng)
    assert np.allclose(marks.points, there + 1.2 * points @ turn.T)
    far = np.linalg.norm(grid.points() - there, axis=-1)
    assert (made.array[0][far < 1.2 * 35 - 4] == 7).all() and (made.array[0][far > 1.2 * 35 + 4] == 1).all()
