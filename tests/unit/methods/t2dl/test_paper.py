"""The published T2DL on phantoms: it learns, its map is its patches, and it keeps to the contract."""

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
from anatomark.methods.kit.precision import use_bf16
from anatomark.methods.kit.working import cut
from anatomark.methods.t2dl.paper import PaperT2DL, PaperT2DLConfig
from anatomark.methods.t2dl.working import (
    along,
    bright_points,
    clipped_image,
    default_lengths,
    default_spacing,
    first_voxels,
    read_warped,
    z_score,
)
from anatomark.model.start import moved_weights
from anatomark.training.optimise import make_optimizer, set_modes, set_rate
from phantom import stacked, training_cases

NAMES = ("a", "b", "c")
SMALL: dict[str, Any] = {"spacing_mm": 0.5, "maps": [8, 12, 16], "hidden": 32, "dropout": 0.0, "augment": 0.0}
Cases = list[tuple[Image, Landmarks]]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    use_bf16(False)
    yield
    use_bf16(None)


def phantom(seed: int, ndim: int = 2, turn: np.ndarray | None = None, size: int = 62) -> tuple[Image, Landmarks]:
    """Three blobs of different width and brightness at known mm in a wide one, in an image away from the origin."""
    rng = np.random.default_rng(seed)
    shape = (size, size + 4, size - 6)[:ndim]
    axes = np.eye(ndim)[:, ::-1] * 0.5
    grid = Grid.from_axes(shape, axes if turn is None else turn @ axes, np.arange(ndim) * 7.0 - 20)
    middle = np.array([[-10, -7, 2], [9, -4, -3], [0, 10, 1]])[:, :ndim]
    shift = rng.uniform(-8, 8, ndim)
    points = grid.to_world((np.asarray(shape) - 1) / 2 + shift + middle + rng.uniform(-2, 2, (3, ndim)))
    away = np.linalg.norm(grid.points()[..., None, :] - points, axis=-1) / [1.0, 1.6, 1.3]
    head = np.linalg.norm(grid.points() - grid.to_world((np.asarray(shape) - 1) / 2 + shift), axis=-1) / 7
    values = (np.exp(-0.5 * away**2) * [1.0, 0.6, -0.8]).sum(-1) + np.exp(-0.5 * head**2)
    values += rng.normal(0, 0.03, shape)
    return Image(values[None].astype(np.float32), grid), Landmarks(NAMES, points)


def study(cases: Cases, names: tuple[str, ...] = NAMES) -> Study:
    made = [Case(str(i), given=landmarks, held=image) for i, (image, landmarks) in enumerate(cases)]
    return Study(made, names, "mr", {"kind": "percentiles", "low": 0.5, "high": 99.5, "skip_zero": False})


def make(cases: Cases, **settings: Any) -> PaperT2DL:
    torch.manual_seed(0)
    config = PaperT2DLConfig(**{**SMALL, **settings})
    facts = PaperT2DL.prepare(config, study(cases))
    return PaperT2DL(config, type(facts).model_validate(json.loads(facts.model_dump_json()))).eval()


def train(method: PaperT2DL, cases: Cases, stage: Stage, steps: int) -> None:
    """As the engine does."""
    read, rng = training_cases(method, cases), np.random.default_rng(1)
    stage = Stage(**{**vars(stage), "steps": steps})
    method.begin(stage, Evidence())
    optimizer = make_optimizer(method, stage)
    set_modes(method, stage)
    for step in range(steps):
        set_rate(optimizer, stage, step)
        method.loss(stacked(method, read, stage, rng), stage)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    method.eval()


def error(method: PaperT2DL, cases: Cases, decode: str = "full") -> float:
    method.config.decode = decode  # type: ignore[assignment]
    return float(np.mean([method.locate(x).errors_to(m) for x, m in cases]))


def learned(
    ndim: int, count: int, steps: tuple[int, int], **settings: Any
) -> tuple[PaperT2DL, Cases, dict[str, float]]:
    """A method trained on some cases, cases it did not see, and their errors by decoding; ``early``: after stage 1."""
    cases, others = [phantom(seed, ndim) for seed in range(count)], [phantom(seed, ndim) for seed in range(100, 106)]
    method = make(cases, lr=5e-3, lr_joint=5e-3, **settings)
    errors = {}
    for stage, n in zip(method.stages(), steps, strict=True):
        train(method, cases, stage, n)
        errors.setdefault("early", error(method, others))
    return method, others, errors | {d: error(method, others, d) for d in ("mean", "stage1", "votes", "full")}


def test_it_learns_a_phantom_in_two_stages() -> None:
    method, others, mm = learned(2, 32, (150, 150), lr_shared=2e-4)
    assert mm["early"] < 0.6 * mm["mean"] and mm["votes"] < mm["early"] and mm["full"] < 0.5 * mm["mean"], mm
    found, again = method.locate(others[0][0]), method.locate(others[0][0])
    assert np.array_equal(found.points, again.points)
    assert found.score is not None and (found.score > 0.1).all() and (found.score <= 1).all()
    assert found.covariance is not None and (np.linalg.eigvalsh(found.covariance) > 0).all()

    use_bf16(True)
    assert 0 < np.median(method.locate(others[0][0]).errors_to(found)) < 0.5
    use_bf16(False)

    # an image that is stored along other axes has the same points, and a first guess changes nothing
    image, marks = others[1]
    flipped = Image(image.array[:, ::-1].swapaxes(1, 2), _flipped(image.grid))
    assert np.allclose(method.locate(flipped).points, method.locate(image).points, atol=1e-4)
    assert method.locate(image, marks.with_points(marks.points + 3)).errors_to(marks).mean() < 0.6 * mm["mean"]


def _flipped(grid: Grid) -> Grid:
    axes = grid.axes.copy()
    corner = grid.to_world(np.array([grid.shape[0] - 1, 0]))
    axes[:, 0] *= -1
    return Grid.from_axes(grid.shape[::-1], axes[:, ::-1], corner)


def test_it_learns_in_3d_with_augmentation() -> None:
    _, _, mm = learned(3, 12, (60, 8), lr_shared=1e-3, augment=0.3, patches=8, batch=2, maps=[6, 8, 12])
    assert mm["early"] < 0.75 * mm["mean"] and mm["full"] < 0.75 * mm["mean"], mm


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_map_is_the_patches_and_votes_as_specified(ndim: int) -> None:
    """Also in a turned image whose size is no multiple of the stride, patch by patch and in plain numpy."""
    turn = random_rotation(np.random.default_rng(3), ndim, 25)
    method = make([phantom(seed, ndim, turn, 45) for seed in range(3)])
    with torch.no_grad():
        torch.nn.init.normal_(method.net.out.weight, std=0.1)
        torch.nn.init.normal_(method.extra.log_alpha, -1, 0.5)
        torch.nn.init.normal_(method.extra.joint.up.weight, std=0.01)
    image = phantom(9, ndim, turn, 45)[0]
    work, side = method.working_images(image)["work"], method.net.patch
    first = np.array(list(np.ndindex(*[(n - side) // 8 + 1 for n in work.grid.shape]))) * 8
    patches = torch.from_numpy(cut(work.array[0], first, side))[:, None]
    with torch.no_grad():
        votes = method.net.votes(method.net.features(z_score(patches, work)))[:, 0].double().numpy()
    votes = votes * method.unit
    alpha = method.extra.log_alpha.detach().exp().double().numpy() * method.unit
    weight = np.exp(-np.linalg.norm(votes, axis=2) / alpha)
    weight /= weight.sum(0)
    places = work.grid.to_world(first + (side - 1) / 2)[:, None] + votes @ along(work.grid).T
    mean = (weight[..., None] * places).sum(0)
    aside = places - mean
    cloud = np.einsum("kn,kni,knj->nij", weight, aside, aside)
    method.config.decode = "votes"
    found = method.locate(image)
    assert found.covariance is not None
    assert np.abs(found.points - mean).max() < 1e-3
    assert np.abs(found.covariance - cloud - 0.05**2 * np.eye(ndim)).max() < 1e-3 * np.abs(cloud).max()
    method.config.decode = "full"
    local = torch.from_numpy((mean - method.origin) / method.unit).float()[None]
    moved = (method.extra.joint(local) - local)[0].detach().double().numpy() * method.unit
    assert np.abs(moved).max() > 0.01 and np.abs(method.locate(image).points - mean - moved).max() < 1e-3


def brightest_near(array: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Index of the middle of the brightest voxels within about four of ``at``."""
    first = np.maximum(at.astype(int) - 4, 0)
    near = array[tuple(slice(a, a + 10) for a in first)]
    return np.argwhere(near >= np.quantile(near, 0.97)).mean(0) + first


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_examples_show_where_the_landmark_is(ndim: int, augment: float) -> None:
    """Blob a is the brightest voxel of patches and images, plain and warped, upright and turned."""
    turn = random_rotation(np.random.default_rng(1), ndim, 10)
    cases = [phantom(5, ndim, turn, 70)]
    method = make(cases, augment=augment, near=0.1)
    case, rng = training_cases(method, cases)[0], np.random.default_rng(0)
    first, second = method.stages()
    one = method.examples(case, first, rng)
    assert one["patches"].shape == (16, 1, *(30,) * ndim) and one["goal"].shape == (16, 3, ndim)
    middle, seen = (30 - 1) / 2, 0
    for patch, goal in zip(one["patches"], one["goal"][:, 0] * method.unit / method.spacing, strict=True):
        at = (goal.flip(0) + middle).numpy()
        if ((at > 4) & (at < 24)).all():
            assert np.abs(brightest_near(patch[0].numpy(), at) - at).max() < (1.6 if augment else 0.8)
            seen += 1
    assert seen >= 2
    whole = method.examples(case, second, rng)
    p = (whole["points"][0] - whole["corner"]) @ whole["axes"] * (method.unit / method.spacing)
    at = p.flip(0).numpy()
    assert np.abs(brightest_near(whole["image"][0].numpy(), at) - at).max() < (1.6 if augment else 0.8)


def test_half_of_the_patches_lie_in_the_foreground_and_half_around_landmarks() -> None:
    image, marks = phantom(2, 2, size=120)
    method = make([(image, marks)], near=0.1, patches=400)
    case = training_cases(method, [(image, marks)])[0]
    work = case.images["work"]
    bright = bright_points(work, 200, np.random.default_rng(0))
    at = tuple(np.round(work.grid.to_index(bright)).astype(int).T)
    assert (work.array[0][at] > work.meta["foreground"]).all()
    goal = method.examples(case, method.stages()[0], np.random.default_rng(0))["goal"].numpy() * method.unit
    nearest = np.linalg.norm(goal[200:], axis=2).min(1)
    assert 1.0 < nearest.mean() < 1.9  # 0.1 patches are 1.5 mm a side
    corners = first_voxels(work.grid, np.array([[-99.0, -99.0], [999.0, 0.0]]), 30)
    assert corners.min() == 0 and corners[1, 1] == work.grid.shape[1] - 30


def test_what_is_not_known_teaches_nothing() -> None:
    image, marks = phantom(0)
    method = make([(image, marks)])
    points = np.where(np.array([[True], [False], [False]]), marks.points, np.nan)
    states = (Status.DEFINED, Status.ABSENT, Status.UNANNOTATED)
    partial = Landmarks(NAMES, points, states)
    case, rng = Case("x", given=partial, images=method.working_images(image)), np.random.default_rng(0)
    for stage in method.stages():
        set_modes(method, stage)
        one = method.examples(case, stage, rng)
        assert one["defined"].tolist() == [1, 0, 0]
        assert all(torch.isfinite(v).all() for v in one.values())
        method.zero_grad()
        method.loss({k: v[None] for k, v in one.items()}, stage)["loss"].backward()
        gradient = method.net.out.weight.grad
        assert gradient is not None
        each = gradient.unflatten(0, (3, 2)).abs().flatten(1).sum(1)
        assert each[0] > 0 and each[1] == each[2] == 0
    nothing = Case("y", given=Landmarks(NAMES, np.full((3, 2), np.nan)), images=case.images)
    batch = {k: v[None] for k, v in method.examples(nothing, method.stages()[0], rng).items()}
    assert method.loss(batch, method.stages()[0])["loss"] == 0


def test_chunks_of_landmarks_give_the_same() -> None:
    rng = np.random.default_rng(0)
    image, _ = phantom(1, 3, size=46)
    names = tuple(f"p{i}" for i in range(37))
    many = Landmarks(names, image.grid.centre + rng.normal(0, 5, (37, 3)))
    config = PaperT2DLConfig(**SMALL)
    method = PaperT2DL(config, PaperT2DL.prepare(config, study([(image, many)], names)))
    torch.nn.init.normal_(method.net.out.weight, std=0.1)
    found = []
    for chunk in (1, 10, 37, 1000):
        method.config.chunk = chunk
        found.append(method.locate(image))
    for other in found[1:]:
        assert np.abs(other.points - found[0].points).max() < 1e-4
        assert np.allclose(other.covariance, found[0].covariance, atol=1e-3)
    stage = method.stages()[1]
    case = Case("", given=many, images=method.working_images(image))
    batch = {k: v[None] for k, v in method.examples(case, stage, rng).items()}
    losses = []
    for chunk in (5, 1000):
        method.config.chunk = chunk
        losses.append(method.loss(batch, stage)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_second_stage_has_two_rates_or_leaves_the_first_alone() -> None:
    cases = [phantom(seed) for seed in range(3)]
    method = make(cases)
    first, second = method.stages()
    optimizer = make_optimizer(method, second)
    set_rate(optimizer, second, 0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-5, 1e-4])
    set_rate(optimizer, second, second.steps // 2)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([5e-6, 5e-5])
    held = [{id(p) for p in g["params"]} for g in optimizer.param_groups]
    assert held == [{id(p) for p in m.parameters()} for m in (method.net, method.extra)]
    assert len(make_optimizer(method, first).param_groups) == 1

    moved = {}
    for freeze in (False, True):
        method = make(cases, freeze_stage1=freeze, lr_joint=1e-2, lr_shared=1e-3)
        before = {k: v.clone() for k, v in method.state_dict().items()}
        train(method, cases, method.stages()[1], 3)
        moved[freeze] = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert moved[True] == {k for k in moved[False] if k.startswith("extra.")} and len(moved[True]) > 5
    assert {"net.out.weight", "net.trunk.0.weight", "extra.log_alpha"} <= moved[False]
    assert not any("running" in k for k in moved[False])  # the statistics of the first stage stay


def test_only_what_is_asked_for_is_trained() -> None:
    cases = [phantom(seed) for seed in range(3)]
    stages = {d: [s.name for s in make(cases, decode=d).stages()] for d in ("mean", "stage1", "votes", "full")}
    both = ["patches", "joint"]
    assert stages == {"mean": [], "stage1": ["patches"], "votes": both, "full": both}
    method = make(cases, decode="votes")
    train(method, cases, method.stages()[1], 1)
    assert method.extra.joint.up.weight.abs().max() == 0
    full = make(cases)
    with torch.no_grad():
        full.extra.joint.up.bias.fill_(1.0)
    full.begin(full.stages()[0], Evidence())  # while stage 1 is trained nothing of stage 2 is looked at
    early = full.locate(cases[0][0]).points
    full.begin(full.stages()[1], Evidence())
    assert np.allclose(full.locate(cases[0][0]).points - early, full.unit, atol=0.05)
    mean = make(cases, decode="mean").locate(cases[0][0])
    assert np.allclose(mean.points, np.mean([m.points for _, m in cases], 0)) and mean.covariance is not None


def test_huber_loss_is_an_option() -> None:
    cases = [phantom(0)]
    for huber in (None, 1.0):
        method = make(cases, huber_mm=huber)
        stage = method.stages()[1]
        case, rng = training_cases(method, cases)[0], np.random.default_rng(0)
        batch = {k: v[None] for k, v in method.examples(case, stage, rng).items()}
        loss = method.loss(batch, stage)["loss"].item()
        method.config.decode = "full"
        away = np.abs((method.locate(cases[0][0]).points - cases[0][1].points) / method.unit)
        if huber is None:
            expected = (away**2).sum(1).mean()
        else:
            d = huber / method.unit
            expected = np.where(away < d, away**2 / 2, d * (away - d / 2)).sum(1).mean()
        assert loss == pytest.approx(expected, rel=1e-3)


def test_an_image_smaller_than_a_patch_is_padded() -> None:
    cases = [phantom(seed, 2, size=40) for seed in range(3)]
    method = make(cases)
    small = Image(cases[0][0].array[:, :12, :40], Grid((12, 40), cases[0][0].grid.affine))
    work = method.working_images(small)["work"]
    assert work.grid.shape == (30, 40) and not work.array[0, 12:].any()
    assert np.allclose(work.grid.affine, small.grid.affine)
    found = method.locate(small)
    assert np.isfinite(found.points).all()
    case = Case("", given=cases[0][1], images={"work": work})
    batch = method.examples(case, method.stages()[0], np.random.default_rng(0))
    assert batch["patches"].shape[2:] == (30, 30)
    with pytest.raises(InputError, match=r"22 voxels .* a patch has 30: set a finer method.spacing_mm"):
        make(cases, spacing_mm=1.0)


def test_values_are_clipped_and_scored_by_the_foreground() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (1, 100, 100))
    values[:, 30:70, 30:70] += 100
    values[0, 0, 0] = 1e6
    image = Image(values, Grid.from_axes((100, 100), np.eye(2)[:, ::-1], (0, 0)))
    work = clipped_image(image, 1.0, {"kind": "percentiles", "low": 0.5, "high": 99.5}, 30)
    assert work.array.min() == 0 and work.array.max() == 1
    scored = z_score(torch.from_numpy(work.array), work)[0].numpy()
    assert abs(scored[30:70, 30:70].mean()) < 0.05 and scored[30:70, 30:70].std() == pytest.approx(1, abs=0.1)
    assert scored[5, 5] < -10 and work.array[0, 5, 5] < 0.1
    twice = clipped_image(image, 2.0, {"kind": "percentiles", "low": 0.5, "high": 99.5}, 30)
    assert twice.grid.shape == (50, 50)
    plain = clipped_image(Image(np.ones((1, 40, 40)), Grid.from_axes((40, 40), np.eye(2), (0, 0))), 1.0,
                          {"kind": "percentiles", "low": 0.5, "high": 99.5}, 30)  # fmt: skip
    assert torch.isfinite(z_score(torch.from_numpy(plain.array), plain)).all()


def test_a_warp_of_the_whole_image() -> None:
    image, _ = phantom(0, 3)
    work = clipped_image(image, 0.5, {"kind": "percentiles", "low": 0.0, "high": 100.0}, 30)
    shift = np.array([1.0, -0.5, 0.5])  # whole voxels along x, y, z
    moved = read_warped(work, lambda x: x + shift)[0].numpy()
    assert np.allclose(moved[:-1, 1:, :-2], work.array[0, 1:, :-1, 2:], atol=1e-4)
    assert np.allclose(read_warped(work, lambda x: x).numpy(), work.array, atol=1e-4)


def test_defaults_come_from_the_data() -> None:
    brain = Grid.from_axes((182, 218, 182), np.eye(3)[:, ::-1], (0, 0, 0))
    cephalogram = Grid.from_axes((2400, 1935), np.eye(2)[:, ::-1] * 0.1, (0, 0))
    small = Grid.from_axes((100, 100, 100), np.eye(3)[:, ::-1] * 0.1, (0, 0, 0))
    assert default_spacing([brain]) == 1.0 and default_spacing([small]) == pytest.approx(0.1)
    assert 200 <= 240 / default_spacing([cephalogram]) <= 256
    assert default_lengths([brain], np.zeros((1, 2, 3))) == {"displacement_mm": 50.0, "alpha_mm": 40.0}
    lengths = default_lengths([small], np.full((1, 2, 3), 5.0))
    assert lengths["alpha_mm"] == pytest.approx(0.2 * 10 * 3**0.5)
    assert 4 < lengths["displacement_mm"] < 5.5  # from the middle of a cube of 10 mm
    c = PaperT2DLConfig()
    assert (c.maps, c.hidden, c.dropout, c.rank, c.steps_patches) == ([32, 64, 128], 512, 0.5, 64, 60_000)
    assert PaperT2DL.aligned and PaperT2DL.axis_bound


def test_weights_move_to_landmarks_of_their_name() -> None:
    cases = [phantom(seed) for seed in range(3)]
    old = make(cases)
    with torch.no_grad():
        for name, p in old.named_parameters():
            if name.startswith(("net.out", "extra")):
                torch.nn.init.normal_(p, std=0.1)
    rows = [2, 0, 1]
    names = [NAMES[r] for r in rows]
    moved = {k: [getattr(old.facts, k)[r] for r in rows] for k in ("mean_world", "mean_shape")}
    new = PaperT2DL(old.config, old.facts.model_copy(update={"names": names, **moved}))
    new.load_state_dict(moved_weights(old.state_dict(), new.per_landmark(), names, old.names, new.state_dict()))
    a, b = old.locate(cases[0][0]), new.locate(cases[0][0])
    assert all(np.allclose(a[n], b[n], atol=1e-4) for n in NAMES)
    other = PaperT2DL.adapted(old.facts.model_copy(update={"displacement_mm": 1.0}), old.facts)
    assert other.displacement_mm == old.unit
