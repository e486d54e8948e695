"""Views of an image in poses: what is seen in a block comes back where it lies in the world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import phantom
from anatomark.core.shape import Pose, rotation_angle
from anatomark.methods.kit.frame import BlockMethod
from anatomark.methods.kit.posed import Views, turned
from anatomark.methods.kit.working import Parts

WINDOW = {"kind": "window", "low": 0.0, "high": 270.0}
PX, SPACING = 48, 1.5


class Brightest(BlockMethod):
    """One landmark a block: the brightest voxel, in pairs of voxels from the middle, x first; its value is the score,
    and its covariance has one unit along x."""

    def __init__(self, at_once: int):
        nn.Module.__init__(self)
        self.px, self.spacing, self.unit = PX, SPACING, 2 * SPACING
        self.at_once = at_once  # type: ignore[misc]

    def _read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b, d = len(blocks), blocks.ndim - 2
        score, at = blocks.flatten(1).max(1)
        index = np.stack(np.unravel_index(at.numpy(), blocks.shape[2:]), -1)[:, ::-1] - (PX - 1) / 2
        covariance = torch.zeros(b, 1, d, d)
        covariance[..., 0, 0] = 1
        return torch.from_numpy(index[:, None].copy()) / 2, covariance, score[:, None]


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_a_view_shows_is_where_it_lies(ndim: int) -> None:
    image, truth = phantom.phantom(0, ndim)
    work = Parts(image, WINDOW).whole(SPACING)
    pose = Pose(np.eye(ndim), truth.points.mean(0), 1.2)
    poses = turned(pose, np.random.default_rng(0), 7, 40.0)
    assert 5 < max(rotation_angle(p.rotation) for p in poses) <= 40
    views = Brightest(3)._views(work, poses)
    assert views.points.shape == (7, 1, ndim)
    assert np.linalg.norm(views.points[:, 0] - truth.points[0], axis=1).max() < 2.5
    assert (views.score > 0.5).all()
    for p, covariance in zip(poses, views.covariance[:, 0], strict=True):
        along = p.rotation[:, 0]
        np.testing.assert_allclose(covariance, (1.2 * 2 * SPACING) ** 2 * np.outer(along, along), atol=1e-9)
    whole = Brightest(100)._views(work, poses)
    np.testing.assert_array_equal(whole.points, views.points)


def test_a_way_leads_from_where_a_block_lies_to_where_it_is_read() -> None:
    image, truth = phantom.phantom(0, 2)
    work = Parts(image, WINDOW).whole(SPACING)
    aside = Pose(np.eye(2), truth.points.mean(0) + [100.0, 0])
    far = Brightest(1)._views(work, [aside])
    assert far.score.max() < 0.1
    there = Brightest(1)._views(work, [aside], way=lambda x: x - [100.0, 0])
    assert np.linalg.norm(there.points[0, 0] - truth.points[0]) < 2.5


def test_views_that_disagree_widen_the_covariance() -> None:
    points = np.array([[[0.0, 0]], [[2, 0]], [[4, 0]]])
    views = Views(points, np.tile(np.eye(2), (3, 1, 1, 1)), np.ones((3, 1)))
    np.testing.assert_allclose(views.covariance_about(np.array([[2.0, 0]]))[0], [[1 + 8 / 3, 0], [0, 1]])
    np.testing.assert_allclose(views.covariance_about(np.array([[2.0, 3]]))[0], [[1 + 8 / 3, 0], [0, 10]])
    some = views.some(np.array([True, False, True]))
    np.testing.assert_array_equal(some.points, points[::2])
