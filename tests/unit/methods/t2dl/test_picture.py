"""The mean picture: what it is made of, and that it draws a bent image back onto itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.core.warp import Warp, random_warp
from anatomark.methods.t2dl import picture as module
from anatomark.methods.t2dl.picture import WIDE, Picture, PictureFacts, _step, _window, in_pose

RADIUS, PX = 40.0, 40
SPACING = 2.7 * RADIUS / PX


def world_of_blobs(ndim: int) -> Image:
    """Smooth blobs of random brightness, 2 mm apart, over the radius and somewhat more."""
    grid = Grid.centred((60,) * ndim, np.eye(ndim)[:, ::-1] * 2.0, np.zeros(ndim))
    noise = torch.from_numpy(np.random.default_rng(3).uniform(0, 1, (1, 1, *grid.shape))).float()
    smooth = _window(noise, 2, 3)
    smooth = (smooth - smooth.mean()) / smooth.std() * 0.15 + 0.5
    return Image(smooth[0].numpy() * (np.linalg.norm(grid.points(), axis=-1) < 52), grid)


def spread(ndim: int, count: int = 60) -> Array:
    points = np.random.default_rng(1).normal(size=(count, ndim))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * np.linspace(5, RADIUS * 0.85, count)[:, None]


def bent(image: Image, seed: int, most: float) -> tuple[Image, Warp]:
    """The image at ``warp(x)``, in another contrast: what lay at p lies at the warp's inverse of p."""
    warp = random_warp(np.random.default_rng(seed), image.grid, most, 1.2 * RADIUS, nodes=24)
    empty = Picture(torch.zeros(1, 1, *image.grid.shape), 2.0)
    seen = empty.read(image, Pose.identity(image.ndim), warp)[0]
    return Image((0.2 + 0.7 * seen**1.3).numpy(), image.grid), warp


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_bent_image_is_drawn_back(ndim: int) -> None:
    """Most of what a similarity leaves is gone; the pose in which it is read does not matter."""
    image, mean = world_of_blobs(ndim), spread(ndim)
    picture = Picture.of([(image, mean)], mean, PX, SPACING, RADIUS)
    before, after = [], []
    for seed in range(3):
        moved, warp = bent(image, seed, 8.0)
        truth = warp.inverse(mean)
        pose = procrustes(mean, truth)
        before.append(np.linalg.norm(pose.apply(mean) - truth, axis=1).mean())
        start = Pose(pose.rotation @ random_rotation(np.random.default_rng(seed), ndim, 3), pose.translation + 1.0)
        found, form = picture.settle(moved, start, mean)
        after.append(np.linalg.norm(in_pose(form, found)(found.apply(mean)) - truth, axis=1).mean())
        assert form.jacobian_minimum() > 0
    assert np.mean(before) > 1.5
    assert np.mean(after) < 0.6 * np.mean(before)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_picture_is_made_of_cases_drawn_onto_the_mean_shape(ndim: int) -> None:
    """Of bent copies the mean, aligned by landmarks (one not known in one case), is sharper than as they lie."""
    image, mean = world_of_blobs(ndim), spread(ndim, 300)
    cases = []
    for seed in range(4):
        moved, warp = bent(image, 10 + seed, 8.0)
        cases.append((moved, warp.inverse(mean)))
    cases[0][1][7] = np.nan
    drawn = Picture.of(cases, mean, PX, SPACING, RADIUS).values
    empty = Picture(torch.zeros_like(drawn), SPACING)
    plain = torch.cat([empty.read(c, Pose.identity(ndim)) for c, _ in cases]).mean(0)
    there = empty.read(bent(image, 0, 0.0)[0], Pose.identity(ndim))
    inside = np.linalg.norm(Grid.centred((PX,) * ndim, np.eye(ndim) * SPACING, np.zeros(ndim)).points(), axis=-1) < 30
    off = [float((x.squeeze() - there.squeeze())[torch.from_numpy(inside)].square().mean()) for x in (drawn, plain)]
    assert off[0] < 0.5 * off[1]


def test_nothing_to_see_draws_nothing() -> None:
    """Flat images say nothing: no displacement, no NaN."""
    flat = Image(
        np.full((1, 30, 30, 30), 0.5, dtype=np.float32),
        world_of_blobs(3).grid.__class__.centred((30, 30, 30), np.eye(3)[:, ::-1] * 6.0, np.zeros(3)),
    )
    picture = Picture(torch.full((1, 1, 20, 20, 20), 0.5), 4.0)
    form = picture.draw(flat, Pose.identity(3), WIDE)
    assert float(form.field.abs().max()) < 1e-3


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_step_is_the_shift(ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture shifted by a fraction of a voxel, x first, where nothing damps it."""
    monkeypatch.setattr(module, "DAMPING", 1e-3)
    axis = torch.arange(48.0)
    shift = [0.3, -0.2, 0.4][:ndim]
    at = torch.meshgrid(*[axis] * ndim, indexing="ij")[::-1]

    def pattern(offset: list[float]) -> torch.Tensor:
        phase = [0.35 * (x - o) for x, o in zip(at, offset, strict=True)]
        return sum((torch.sin(p + i) for i, p in enumerate(phase)), torch.zeros(()))[None, None]

    step = _step(pattern(shift), pattern([0.0] * ndim), 3)
    middle = step[(slice(None), *[slice(8, 16)] * ndim)].flatten(1).mean(1)
    np.testing.assert_allclose(middle.numpy(), shift, rtol=0.15)


def test_windows_are_means_and_know_the_border() -> None:
    x = torch.randn(2, 3, 7, 9)
    found = _window(x, 2)
    assert found.shape == x.shape
    torch.testing.assert_close(found[:, :, 3, 4], x[:, :, 1:6, 2:7].mean((2, 3)))
    torch.testing.assert_close(found[:, :, 0, 0], x[:, :, :3, :3].mean((2, 3)))
    torch.testing.assert_close(_window(x, 2, 2), _window(found, 2))


def test_facts_keep_it() -> None:
    picture = Picture(torch.rand(1, 1, 6, 6, 6), 1.5, 7)
    again = Picture.from_facts(PictureFacts.model_validate_json(picture.facts().model_dump_json()))
    assert (again.spacing, again.cases) == (1.5, 7)
    torch.testing.assert_close(again.values, picture.values, atol=1e-3, rtol=0)
