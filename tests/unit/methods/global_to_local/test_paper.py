"""The published global-to-local method on phantoms: it learns, and it keeps to the paper and to the contract."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import Evidence, Stage, Study
from anatomark.methods.global_to_local.paper import (
    PaperGlobalToLocal,
    PaperGlobalToLocalConfig,
    cell_centres,
    cut,
    decode,
)
from anatomark.methods.kit.precision import use_bf16
from phantom import stacked, training_cases

NAMES = ("a", "b", "c")
SMALL: dict[str, Any] = {
    "spacing_mm": 0.5, "pools": [True, False, False, False], "crop_px": 40, "widths": [8, 12, 16, 16],
    "blocks": [1, 1, 1, 1], "local_widths": [8, 12], "batch": 4,
}  # fmt: skip
Cases = list[tuple[Image, Landmarks]]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    use_bf16(False)
    yield
    use_bf16(None)


def phantom(seed: int, ndim: int = 2, turn: np.ndarray | None = None) -> tuple[Image, Landmarks]:
    """Three Gaussian blobs of different width and brightness at known mm, in an image away from the origin."""
    rng = np.random.default_rng(seed)
    shape = (46, 50, 42)[:ndim]
    axes = np.eye(ndim)[:, ::-1] * 0.5
    grid = Grid.from_axes(shape, axes if turn is None else turn @ axes, np.arange(ndim) * 7.0 - 20)
    middle = np.array([[-10, -7, 2], [9, -4, -3], [0, 10, 1]])[:, :ndim]
    points = grid.to_world((np.asarray(shape) - 1) / 2 + middle + rng.uniform(-5, 5, (3, ndim)))
    away = np.linalg.norm(grid.points()[..., None, :] - points, axis=-1) / [1.0, 1.8, 1.4]
    values = (np.exp(-0.5 * away**2) * [1.0, 0.8, -0.8]).sum(-1)
    return Image(values[None].astype(np.float32), grid), Landmarks(NAMES, points)


def study(cases: Cases) -> Study:
    made = [Case(str(i), given=landmarks, held=image) for i, (image, landmarks) in enumerate(cases)]
    return Study(made, NAMES, "mr", {"kind": "percentiles", "low": 1.0, "high": 99.5})


def make(cases: Cases, **settings: Any) -> PaperGlobalToLocal:
    torch.manual_seed(0)
    config = PaperGlobalToLocalConfig(**{**SMALL, **settings})
    facts = PaperGlobalToLocal.prepare(config, study(cases))
    return PaperGlobalToLocal(config, type(facts).model_validate(json.loads(facts.model_dump_json()))).eval()


def train(method: PaperGlobalToLocal, cases: Cases, stage: Stage, steps: int, lr: float) -> None:
    read, rng = training_cases(method, cases), np.random.default_rng(1)
    method.begin(stage, Evidence())
    net = method.get_submodule(stage.modules[0]).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, amsgrad=stage.amsgrad)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        method.loss(stacked(method, read, stage, rng), stage)["loss"].backward()
        optimizer.step()
    net.eval()


def error(method: PaperGlobalToLocal, cases: Cases) -> float:
    return float(np.mean([method.locate(x).errors_to(m) for x, m in cases]))


def test_it_learns_a_phantom_in_two_stages() -> None:
    cases, others = [phantom(seed) for seed in range(24)], [phantom(seed) for seed in range(100, 106)]
    method = make(cases)
    points = np.stack([m.points for _, m in cases])
    mean = np.linalg.norm(np.stack([m.points for _, m in others]) - points.mean(0), axis=2).mean()
    first, second = method.stages()
    train(method, cases, first, 300, 3e-3)
    rough = error(method, others)
    train(method, cases, second, 250, 5e-3)
    fine = error(method, others)
    assert rough < 0.5 * mean and fine < 0.6 * rough

    image, marks = others[0]
    found = method.locate(image)
    again = method.locate(image)
    assert np.array_equal(found.points, again.points)
    assert found.score is not None and (found.score > 0.2).all() and len(found.meta["posterior_mass"]) == 3
    assert found.covariance is not None and (np.linalg.eigvalsh(found.covariance) > -1e-9).all()

    use_bf16(True)
    assert 0 < method.locate(image).errors_to(found).mean() < 0.05
    use_bf16(False)

    # a first guess stands in for the global network, which must then not matter
    with torch.no_grad():
        for p in method.global_net.parameters():
            p.zero_()
    guess = marks.with_points(marks.points + 1.0)
    assert method.locate(image, guess).errors_to(marks).mean() < 0.3
    assert method.locate(image).errors_to(marks).mean() > 1.0
    half = Landmarks(NAMES[:2], guess.points[:2])
    errors = method.locate(image, half).errors_to(marks)
    assert errors[:2].mean() < 0.3 < errors[2]


def literal(method: PaperGlobalToLocal, image: Image) -> np.ndarray:
    """As published: plain layers, whole image, then one landmark after the other; world mm."""
    work = method.working_images(image)["work"]
    q, n = method.global_net.stride, len(NAMES)
    shape = [-(-s // q) * q for s in work.grid.shape]
    padded = torch.zeros(1, 1, *shape)
    padded[(0, 0, *(slice(s) for s in work.grid.shape))] = torch.from_numpy(work.array[0].astype(np.float32))

    def vote(maps: tuple[torch.Tensor, torch.Tensor], k: int, stride: int) -> np.ndarray:
        logits, moves = (m.detach()[0, k].double() for m in maps)
        centres = cell_centres(logits.shape, stride).double()
        total, weight = np.zeros(work.ndim), 0.0
        for cell in np.ndindex(*logits.shape):
            p, r = float(torch.sigmoid(logits[cell])), moves[(slice(None), *cell)].numpy()
            total += p * (centres[(slice(None), *cell)].numpy() + np.sign(r) * (10 ** np.abs(r) - 1))
            weight += p
        return total / weight

    maps = method.global_net(padded)
    out = []
    for k in range(n):
        first = np.round(vote(maps, k, q) - 7.5).astype(int)
        block = cut(work.array[0], first[None], 16)
        alone = torch.zeros(1, n, *(16,) * work.ndim)
        alone[0, k] = torch.from_numpy(block[0].astype(np.float32))
        out.append(vote(method.local_nets(alone), k, 2) + first)
    return work.grid.to_world(np.array(out))


@pytest.mark.parametrize("ndim", [2, 3])
def test_fast_is_literal(ndim: int) -> None:
    """Also in a turned image whose size is no multiple of the stride."""
    turn = random_rotation(np.random.default_rng(3), ndim, 30)
    cases = [phantom(seed, ndim, turn) for seed in range(2)]
    method = make(cases, spacing_mm=0.7)
    assert any(s % method.global_net.stride for s in method.working_images(cases[0][0])["work"].grid.shape)
    image = cases[0][0]
    with torch.no_grad():  # untrained displacements are far too large
        method.global_net.regress[4].weight.mul_(0.1)
    assert np.abs(method.locate(image).points - literal(method, image)).max() < 2e-3


@pytest.mark.parametrize("ndim", [2, 3])
def test_examples_show_where_the_landmark_is(ndim: int) -> None:
    """The brightest voxel of blob a is at the target's point, in crops and in sub-images, in any of their voxels."""
    image, marks = phantom(5, ndim, random_rotation(np.random.default_rng(1), ndim, 10))
    image = Image((image.array * 200 + 40).clip(0).astype(np.uint8), image.grid)
    method = make([(image, marks)])
    case, rng = training_cases(method, [(image, marks)])[0], np.random.default_rng(0)
    assert case.images["work"].array.dtype == np.uint8
    crop, local = method.stages()
    seen = []
    for _ in range(60):
        example = method.examples(case, local, rng)
        point = example["points"][0].numpy()
        assert ((point >= -0.5) & (point < 15.5)).all()
        seen.append(np.floor(point[0] + 0.5))
        inside = example["image"][0].numpy()
        if ((point > 1) & (point < 14)).all():
            brightest = np.argwhere(inside == inside.max()).mean(0)
            assert np.abs(brightest - point).max() < 1.1
    assert min(seen) == 0 and max(seen) == 15
    whole = method.examples(case, crop, rng)
    assert whole["image"].shape == (1, *(40,) * ndim) and whole["image"].dtype == torch.uint8
    for k in range(3):
        at = np.round(whole["points"][k].numpy()).astype(int)
        if ((at >= 0) & (at < 40)).all():
            world = case.images["work"].grid.to_index(marks.points[k])
            value = case.images["work"].array[(0, *np.round(world).astype(int))]
            assert whole["image"][(0, *at)] == value


def test_what_is_known_of_a_landmark() -> None:
    image, marks = phantom(0)
    method = make([(image, marks)])
    points = np.where(np.array([[True], [False], [False]]), marks.points, np.nan)
    states = (Status.DEFINED, Status.ABSENT, Status.UNANNOTATED)
    case = Case("x", given=Landmarks(NAMES, points, states), images=method.working_images(image))
    crop, local = method.stages()
    rng = np.random.default_rng(0)
    one = method.examples(case, crop, rng)
    assert one["defined"].tolist() == [1, 0, 0] and one["judged"].tolist() == [1, 1, 0]
    assert torch.isfinite(one["points"]).all()
    one = method.examples(case, local, rng)
    assert one["defined"].tolist() == one["judged"].tolist() == [1, 0, 0]
    method.train()
    loss = method.loss({k: torch.stack([v, v]) for k, v in one.items()}, local)["loss"]
    loss.backward()
    gradient = method.local_nets.convs[2].weight.grad.unflatten(0, (3, -1)).abs().flatten(1).sum(1)
    assert gradient[0] > 0 and gradient[1] == gradient[2] == 0


def test_presets_are_the_published_settings() -> None:
    cephalogram = Image(np.zeros((1, 480, 400)), Grid.from_axes((480, 400), np.eye(2)[:, ::-1] * 0.1, (0, 0)))
    volume = Image(np.zeros((1, 40, 30, 20)), Grid.from_axes((40, 30, 20), np.eye(3)[:, ::-1] * 1.5, (0, 0, 0)))
    with torch.device("meta"):
        for preset, image, spacing, q, crop, weight in (
            ("paper", cephalogram, 0.1, 32, 992, 20),
            ("paper", volume, 1.5, 8, 72, 8),
            ("paper-cephalogram", cephalogram, 0.1, 32, 992, 20),
            ("paper-ccta", volume, 1.5, 8, 72, 8),
            ("paper-olfactory-mr", volume, 0.47, 8, 72, 2),
        ):
            config = PaperGlobalToLocalConfig(**PaperGlobalToLocal.presets[preset])
            case = Case("1", given=Landmarks(("x",), np.ones((1, image.ndim))), held=image)
            facts = PaperGlobalToLocal.prepare(
                config, Study([case], ("x",), "ct", {"kind": "window", "low": 0.0, "high": 1.0})
            )
            method = PaperGlobalToLocal(config, facts)
            assert (facts.spacing_mm, facts.crop_px, facts.classification_weight) == (spacing, crop, weight)
            assert method.global_net.stride == q
            one, many = method.stages()
            assert (one.steps, one.schedule) == (300_000, "constant")
            assert (many.steps, many.schedule) == (310_000, "restarts")
            assert all((s.batch, s.lr, s.amsgrad, s.weight_decay) == (4, 1e-3, True, 0) for s in (one, many))
            assert many.cycles == 5 and method.config.local_px == 16


def test_settings_that_cannot_work_are_refused() -> None:
    cases = [phantom(0)]
    with pytest.raises(InputError, match="multiple of the output stride, 4"):
        make(cases, crop_px=30)
    with pytest.raises(InputError, match="spacing_mm"):
        make(cases, spacing_mm=5.0)
    with pytest.raises(ValueError, match="1 or more"):
        PaperGlobalToLocalConfig(blocks=[0, 1, 1, 1])


def test_positive_votes_are_an_option() -> None:
    method = make([phantom(0)], vote="positive")
    image = phantom(0)[0]
    with torch.no_grad():
        method.local_nets.classify[4].bias.fill_(-50.0)  # no cell is positive: the best cell's vote
        work = method.working_images(image)["work"]
        votes, first = method._locally(work, np.full((3, 2), 20.0))
        maps = method.local_nets(torch.from_numpy(cut(work.array[0], first, 16))[None])
    assert torch.allclose(votes.points, decode(*maps, 2, "positive").points)
    assert votes.covariance.isnan().all()


def test_cut_pads_with_zeros() -> None:
    array = np.arange(12).reshape(3, 4) + 1
    blocks = cut(array, np.array([[-1, 2], [1, -3], [5, 0], [-9, -9]]), 3)
    assert blocks[0].tolist() == [[0, 0, 0], [3, 4, 0], [7, 8, 0]]
    assert not blocks[1][:, :3].any() and not blocks[2:].any()
