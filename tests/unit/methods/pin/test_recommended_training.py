"""The recommended PIN in training: what it is shown, its votes and its loss, its plan, weights of another model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import phantom
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.shape import PCAShape, Pose, procrustes, random_rotation
from anatomark.methods.kit.posed import planes
from anatomark.methods.kit.working import Parts
from anatomark.methods.pin.net import read_votes
from anatomark.methods.pin.recommended import PIN, Level, PINConfig, PINFacts, default_levels
from anatomark.model.start import moved_weights

pytestmark = pytest.mark.usefixtures("float32")


# ---------------------------------------------------------------------- what it is shown


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("update", ["shape", "free"])
def test_patches_show_the_landmark_where_the_target_says(ndim: int, update: str) -> None:
    level = phantom.LEVELS[0].model_copy(update={"update": update, "reach": 0.15})
    method = phantom.untrained(ndim, levels=[level], intensity=0.0, warp_share=0.7)
    case = phantom.training_cases(method, [phantom.phantom(0, ndim)])[0]
    misses = []
    for seed in range(25):
        example = method.examples(case, method.stages()[1], np.random.default_rng(seed))
        assert example["patches"].shape == (5, 2 * len(planes(ndim)), 16, 16)
        assert example["target_mask"].all()
        for n in range(4):  # the fifth is dim and has brighter ones about it
            for channel, axes in enumerate(planes(ndim)):
                row, column = np.unravel_index(int(example["patches"][n, channel].argmax()), (16, 16))
                seen = np.array([column, row]) * 2 / 15 - 1
                misses.append(np.abs(seen - example["target"][n, list(axes)].numpy()).max() * 7.5)
    assert np.median(misses) < 0.8  # pixels
    assert np.mean(np.array(misses) < 2) > 0.8


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_coarse_block_shows_the_brightest_landmark_where_the_target_says(ndim: int) -> None:
    method = phantom.untrained(ndim, intensity=0.0, rotations_deg=180.0, warp_share=0.7)
    case = phantom.training_cases(method, [phantom.phantom(0, ndim)])[0]
    misses = []
    for seed in range(40):
        example = method.examples(case, method.stages()[0], np.random.default_rng(seed))
        at = np.array(np.unravel_index(int(example["block"][0].argmax()), (16,) * ndim))[::-1] * 2 / 15 - 1
        misses.append(np.abs(at - example["target"][0].numpy()).max() * 7.5)
    assert np.median(misses) < 0.8


def test_working_images_are_thinned_towards_their_spacing_and_shared() -> None:
    method = phantom.untrained(3)
    image, _ = phantom.phantom(0, 3)
    images = method.working_images(image)
    assert set(images) == {"context", "0.0", "0.1", "1.0", "1.1"}
    for key, made in images.items():
        k, s = (int(x) for x in key.split(".")) if key != "context" else (0, 0)
        wanted = (
            phantom.LEVELS[k].spacing * phantom.LEVELS[k].scales[s] * method.radius
            if key != "context"
            else method.spacing
        )
        assert (made.grid.spacing <= np.maximum(wanted * 1.15, image.grid.spacing) + 1e-9).all(), key
        assert made.array.dtype == np.float32
    assert len({id(made) for made in images.values()}) < len(images)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_part_of_an_image_around_the_points_gives_the_same_patches(ndim: int) -> None:
    shape = [6 * n + 1 for n in phantom.oblique(ndim).shape]  # a large image; the last block is cut short
    grid = Grid.from_axes(shape, phantom.oblique(ndim).axes / 3, np.zeros(ndim))
    image = Image(np.random.default_rng(0).integers(0, 500, (1, *shape), dtype=np.int16), grid)
    method = phantom.untrained(ndim)
    corner = grid.to_world(np.array(shape) * 0.85)
    pose, points = Pose(random_rotation(np.random.default_rng(1), ndim), corner), method.mean[None]
    part = method._around(Parts(image, method.facts.intensity), 0, pose.apply(method.mean))
    whole = method.working_images(image)
    for key, made in part.items():
        assert max(whole[key].grid.spacing / grid.spacing) > 1.5
        assert made.array.size < 0.8 * whole[key].array.size
    near, all_of_it = (method._patches(0, images, [pose], points) for images in (part, whole))
    torch.testing.assert_close(near, all_of_it, rtol=0, atol=1e-3)


# ---------------------------------------------------------------------- votes and loss


def votes_at(displacement: torch.Tensor, k: int, sigma_cells: float = 0.7) -> torch.Tensor:
    """Logits (..., P, k, k) of Gaussians about displacements (..., D) in half widths of 2 k pixels."""
    cells = ((torch.arange(k) * 2 + 0.5) / (2 * k - 1)) * 2 - 1
    width = sigma_cells * 4 / (2 * k - 1)
    maps = []
    for u, v in planes(displacement.shape[-1]):
        column = -0.5 * ((cells - displacement[..., u, None]) / width) ** 2
        row = -0.5 * ((cells - displacement[..., v, None]) / width) ** 2
        maps.append(row[..., :, None] + column[..., None, :])
    return torch.stack(maps, -3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_votes_are_read_back_below_a_cell(ndim: int) -> None:
    method, k = phantom.untrained(ndim), 8
    truth = torch.rand(4, 5, ndim, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.7
    mean, variance = read_votes(votes_at(truth, k), method.ndim)
    cell = 4 / (2 * k - 1)
    assert np.abs(mean - truth.numpy()).max() < 0.2 * cell
    assert (variance > 0).all()
    wider = read_votes(votes_at(truth * 0.3, k, 1.5), method.ndim)[1]
    assert wider.mean() > 2 * variance.mean()


def test_an_unsure_plane_does_not_spoil_a_sure_one() -> None:
    method, k = phantom.untrained(3), 8
    truth = torch.tensor([[[0.5, -0.4, 0.3]]])
    logits = votes_at(truth, k)
    logits[:, :, 2] = 0  # the plane xy says nothing; x and y are still seen in xz and yz
    mean, _ = read_votes(logits, method.ndim)
    assert np.abs(mean - truth.numpy()).max() < 0.2 * 4 / (2 * k - 1)


class Says(nn.Module):
    """A network that answers the same whatever it is shown."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_least_for_votes_at_the_target(ndim: int) -> None:
    method = phantom.untrained(ndim)
    truth = torch.rand(3, 5, ndim, generator=torch.Generator().manual_seed(1)) - 0.5
    batch = {"patches": torch.zeros(3, 5, 1), "target": truth, "target_mask": torch.ones(3, 5)}

    def loss(displacement: torch.Tensor) -> float:
        method.nets[0] = Says(votes_at(displacement, 8))
        return float(method.loss(batch, method.stages()[1])["loss"])

    best = loss(truth)
    assert loss(truth.flip(-1)) > best + 0.2  # axes exchanged
    for axis in range(ndim):
        for step in (-0.3, 0.3):
            aside = truth.clone()
            aside[..., axis] += step
            assert loss(aside) > best + 0.1
    outside = {**batch, "target": torch.full_like(truth, 5.0)}  # beyond the patch: nothing to be learned there
    assert float(method.loss(outside, method.stages()[1])["loss"]) == 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_unannotated_landmark_carries_no_loss(ndim: int) -> None:
    image, marks = phantom.phantom(0, ndim)
    method = phantom.untrained(ndim).train()
    case = phantom.training_cases(method, [(image, phantom.without(marks, "c"))])[0]
    for stage in method.stages():
        examples = [method.examples(case, stage, np.random.default_rng(s)) for s in range(6)]
        batch = {k: torch.stack([e[k] for e in examples]) for k in examples[0]}
        assert batch["target_mask"].tolist() == [[1, 1, 0, 1, 1]] * 6
        assert batch["target"].isfinite().all()
        torch.manual_seed(0)
        loss = method.loss(batch, stage)["loss"]
        method.zero_grad()
        loss.backward()
        if stage.name == "context":
            rows = [method.context.head[4].weight.grad.view(5, ndim, -1)]
        else:
            net = method.nets[stage.index - 1]
            rows = [net.weight.grad, net.bias.grad]
        for row in rows:
            assert not row[2].any()
            assert all(row[n].any() for n in (0, 1, 3, 4))
        torch.manual_seed(0)
        batch["target"][:, 2] = 0.3
        assert torch.equal(method.loss(batch, stage)["loss"], loss)


def test_the_loss_is_made_where_the_batch_is() -> None:
    """Nothing of it is made on the CPU when the batch lies elsewhere."""
    method = phantom.untrained(3)
    case = phantom.training_cases(method, [phantom.phantom(0, 3)])[0]
    examples = {s.name: method.examples(case, s, np.random.default_rng(0)) for s in method.stages()}
    method.to("meta")
    for stage in method.stages():
        batch = {k: torch.stack([v, v]).to("meta") for k, v in examples[stage.name].items()}
        assert method.loss(batch, stage)["loss"].device.type == "meta"


# ---------------------------------------------------------------------- plans, weights of another model


def test_one_training_case_is_enough_to_begin() -> None:
    method = phantom.untrained(3, warped_copies=30)
    _, truth = phantom.phantom(0, 3)
    assert method.model.shape.size >= 3  # from warped copies
    pose = procrustes(method.mean, truth.points)
    np.testing.assert_allclose(pose.apply(method.mean), truth.points, atol=1e-6)
    assert method.facts.rotations_deg == 30
    rigid = phantom.untrained(2, warped_copies=0)
    assert rigid.model.shape.size == 0
    image = phantom.phantom(0, 2)[0]
    assert np.isfinite(rigid.locate(image).points).all()


def test_rotations_and_levels_come_from_the_cases() -> None:
    upright = phantom.untrained(3, [phantom.phantom(i, 3) for i in range(3)], rotations_deg=None)
    turned = phantom.untrained(3, [phantom.phantom(i, 3, 180) for i in range(5)], rotations_deg=None)
    assert upright.facts.rotations_deg == 30
    assert turned.facts.rotations_deg == 180
    np.testing.assert_array_equal(turned.facts.start_offset_mm, 0)
    assert [v.update for v in default_levels(1 / 100)] == ["shape", "free"]
    assert len(default_levels(1 / 300)) == 3
    assert len(phantom.untrained(3, levels=None).levels) == 2


def test_shapes_with_gaps_make_a_whole_model() -> None:
    cases = [phantom.phantom(i, 3) for i in range(4)]
    gaps = [(image, phantom.without(marks, phantom.NAMES[i])) for i, (image, marks) in enumerate(cases)]
    whole, holed = phantom.untrained(3, cases), phantom.untrained(3, gaps)
    assert np.isfinite(holed.mean).all()
    fitted = procrustes(holed.mean, whole.mean)
    assert np.linalg.norm(fitted.apply(holed.mean) - whole.mean, axis=1).max() < 2


@pytest.mark.parametrize("px", [4, 20, 31])
def test_a_patch_size_that_does_not_halve_thrice_is_refused(px: int) -> None:
    with pytest.raises(ValidationError, match="px"):
        Level(px=px, spacing=0.1, rotation_deg=1, shift=0, log_scale=0, reach=0.1)


WINDOW = {"kind": "window", "low": 0.0, "high": 1.0}


def facts_of(names: list[str], points: Array, **given: Any) -> PINFacts:
    """Of a mean shape (N, D), without images."""
    shape = {"mean": points.ravel().tolist(), "modes": [[1.0], *[[0.0]] * (points.size - 1)], "sd": [1.0]}
    plain = {
        "names": names, "ndim": points.shape[1], "modality": "mr", "intensity": WINDOW,
        "mean_shape": points.tolist(), "radius_mm": 30.0, "rotations_deg": 30.0, "shape": shape,
        "start_offset_mm": [0.0] * points.shape[1], "start_shift_mm": 5.0, "levels": phantom.LEVELS,
    }  # fmt: skip
    return PINFacts(**{**plain, **given})


def bare(names: list[str], ndim: int) -> PIN:
    """A model of random weights with any number of landmarks, made without images."""
    points = np.random.default_rng(0).normal(0, 10, (len(names), ndim))
    method = PIN(PINConfig(**phantom.SMALL), facts_of(names, points))
    for net in method.nets:
        for film in net.films:
            nn.init.normal_(film)
        nn.init.normal_(net.bias)
    return method


MANY = "".join(map(chr, range(100, 228)))  # 128 landmarks have 384 coordinates, as many as hidden units


@pytest.mark.parametrize(
    ("ndim", "before", "names"),
    [(3, "abcde", "db"), (3, "abcde", "edcba"), (2, "abc", "cxa"), (2, "ab", "zbya"), (3, MANY, "xw")],
    ids=["subset", "reordered", "one new", "superset", "as many outputs as hidden units"],
)  # fmt: skip
def test_weights_of_another_model_find_their_landmarks(ndim: int, before: str, names: str) -> None:
    old, new = bare(list(before), ndim).eval(), bare(list(names), ndim).eval()
    own = new.state_dict()
    new.load_state_dict(moved_weights(old.state_dict(), new.per_landmark(), names, before, own))
    at = [before.index(n) if n in before else -1 for n in names]
    known = [i for i, row in enumerate(at) if row >= 0]
    rows = [at[i] for i in known]
    block = torch.randn(2, 1, *(16,) * ndim)
    torch.testing.assert_close(new.context(block)[:, known], old.context(block)[:, rows])
    everything = torch.randn(1, len(before), 2 * len(planes(ndim)), 16, 16)
    asked = torch.randn(1, len(names), *everything.shape[2:])
    asked[:, known] = everything[:, rows]
    for one, other in zip(new.nets, old.nets, strict=True):
        torch.testing.assert_close(one(asked)[:, known], other(everything)[:, rows])
        for i, row in enumerate(at):
            if row < 0:
                torch.testing.assert_close(one.weight[i], other.weight.mean(0))


def test_facts_laid_onto_another_model_make_its_weights_fit_a_subset() -> None:
    # the subset's own radius and centre differ, so without the old frame the old weights would read other patches
    rng = np.random.default_rng(3)
    points = rng.normal(size=(6, 3)) * 20
    names = [f"p{i}" for i in range(6)]

    def of(kept: list[str], levels: list[Level]) -> PINFacts:
        rows = [names.index(n) for n in kept]
        mean = points[rows] - points[rows].mean(0)
        shape = PCAShape(mean.ravel(), np.linalg.qr(rng.normal(size=(mean.size, 2)))[0], np.array([2.0, 1.0]))
        radius = float(np.linalg.norm(mean, axis=1).max())
        return facts_of(kept, mean, radius_mm=radius, shape=shape.to_json(), levels=levels)

    old, new = of(names, phantom.LEVELS), of(["p4", "p0", "p2"], phantom.LEVELS[:1])
    laid = PIN.adapted(new, old)
    assert laid.radius_mm == old.radius_mm != new.radius_mm
    assert laid.levels == old.levels
    expected = np.asarray(old.mean_shape)[[4, 0, 2]]
    np.testing.assert_allclose(laid.mean_shape, expected, atol=1e-9)
    np.testing.assert_allclose(np.asarray(laid.shape["mean"]).reshape(-1, 3), expected, atol=1e-9)
    modes = np.asarray(laid.shape["modes"])
    np.testing.assert_allclose(modes.T @ modes, np.eye(2), atol=1e-9)
    few = of(["p1", "p2"], phantom.LEVELS[:1])
    assert PIN.adapted(few, old) is few
