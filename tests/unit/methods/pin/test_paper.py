"""The published PIN on phantoms: it learns, it repeats itself, and it keeps to the contract."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import PCAShape
from anatomark.errors import InputError
from anatomark.methods.base import Evidence, Stage, Study
from anatomark.methods.kit.precision import use_bf16
from anatomark.methods.pin.paper import PaperPIN, PaperPINConfig, PaperPINFacts, default_spacing
from anatomark.methods.pin.paper_net import update
from anatomark.methods.pin.spaces import start_pattern
from anatomark.model.start import moved_weights

NAMES = ("a", "b", "c")
SHARE = {"patch_px": 14, "dropout": 0.0, "batch": 16, "sampling": "multiscale"}


def phantom(seed: int, ndim: int = 3, spacing: float = 0.5) -> tuple[Image, Landmarks]:
    """Three Gaussian blobs of different brightness at known mm, in an image away from the origin."""
    rng = np.random.default_rng(seed)
    shape = (26, 28, 30)[:ndim]
    grid = Grid.from_axes(shape, np.eye(ndim)[:, ::-1] * spacing, np.arange(ndim) * 7.0 - 20)
    middle = np.array([[-4, -3, 2], [4, -2, -3], [0, 5, 1]])[:, :ndim] * spacing
    points = grid.centre + middle + rng.normal(0, 2.0 * spacing, 3 * ndim).reshape(3, ndim)
    away = ((grid.points()[..., None, :] - points) / (4 * spacing)) ** 2
    values = (np.exp(-0.5 * away.sum(-1)) * [1.0, 0.6, -0.8]).sum(-1)
    return Image(values[None].astype(np.float32), grid), Landmarks(NAMES, points)


def study(cases: list[tuple[Image, Landmarks]]) -> Study:
    made = [Case(str(i), given=marks, held=image) for i, (image, marks) in enumerate(cases)]
    return Study(made, NAMES, "mr", {"kind": "percentiles", "low": 1.0, "high": 99.5, "skip_zero": False})


def make(cases: list[tuple[Image, Landmarks]], **settings: object) -> PaperPIN:
    torch.manual_seed(0)
    config = PaperPINConfig(**{**SHARE, **settings})
    facts = PaperPIN.prepare(config, study(cases))
    return PaperPIN(config, PaperPINFacts.model_validate(json.loads(facts.model_dump_json())))


def training(method: PaperPIN, cases: list[tuple[Image, Landmarks]]) -> list[Case]:
    names = method.names
    return [Case(str(i), given=m.select(names), images=method.working_images(x)) for i, (x, m) in enumerate(cases)]


def train(method: PaperPIN, cases: list[tuple[Image, Landmarks]], steps: int, lr: float = 1e-3) -> list[float]:
    """A short loop as the engine's, through the method's own stages, examples and loss."""
    read, losses = training(method, cases), []
    method.train()
    for stage in method.stages():
        method.begin(stage, Evidence())
        chosen = [p for m in stage.modules for p in method.get_submodule(m).parameters()]
        optimizer = torch.optim.Adam(chosen, lr=lr)
        rng = np.random.default_rng(1)
        made = method.collect(read, stage, rng)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + np.cos(np.pi * step / steps))
            batch = next(made) if made is not None else stacked(method, read, stage, rng)
            loss = method.loss(batch, stage)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(chosen, 10.0)
            optimizer.step()
            losses.append(loss.item())
    return losses


def stacked(method: PaperPIN, read: list[Case], stage: Stage, rng: np.random.Generator) -> dict:
    drawn = [method.examples(read[rng.integers(len(read))], stage, rng) for _ in range(stage.batch)]
    return {key: torch.stack([d[key] for d in drawn]) for key in drawn[0]}


def error(method: PaperPIN, cases: list[tuple[Image, Landmarks]]) -> float:
    names = method.names
    found = [np.linalg.norm(method.locate(x).points - m.select(names).points, axis=1) for x, m in cases]
    return float(np.mean(found))


def spread(cases: list[tuple[Image, Landmarks]], names: tuple[str, ...] = NAMES) -> float:
    """What copying the mean position of each landmark costs (all grids are the same)."""
    points = np.stack([m.select(names).points for _, m in cases])
    return float(np.linalg.norm(points - points.mean(0), axis=2).mean())


@pytest.fixture(scope="module")
def six() -> list[tuple[Image, Landmarks]]:
    return [phantom(seed) for seed in range(6)]


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "c-pair", "whiten": True},
        {"rule": "B"},
        {"rule": "c-pair", "sampling": "on_policy"},
        {"rule": "c-pair", "shape_model": "autoencoder", "whiten": True, "modes": 6, "autoencoder_steps": 1000},
        {"mode": "single", "landmarks": ["b"], "rule": "B", "batch": 32},
    ],
    ids=lambda s: "-".join(str(v) for v in s.values()),
)
def test_it_overfits_a_phantom(six: list[tuple[Image, Landmarks]], settings: dict) -> None:
    method = make(six, **settings)
    single = settings.get("mode") == "single"  # its 19 starts come from further away
    train(method, six, 220 if single else 120)
    assert error(method, six) < (0.7 if single else 0.5) * spread(six, method.names)


def test_it_overfits_a_2d_phantom() -> None:
    cases = [phantom(seed, ndim=2) for seed in range(5)]
    method = make(cases, rule="c-pair")
    assert method.nets[0].convs[0].in_channels == 3  # one plane for each landmark
    train(method, cases, 100)
    assert error(method, cases) < 0.5 * spread(cases)


def test_the_papers_settings_are_the_defaults() -> None:
    c = PaperPINConfig()
    assert (c.patch_px, c.alpha, c.rule, c.batch, c.lr, c.steps) == (101, 0.5, "C", 64, 1e-3, 100_000)
    assert (c.variance, c.whiten, c.sampling, c.dropout, c.intensity) == (0.995, False, "uniform", 0.5, "none")
    assert PaperPIN.presets == {"paper": {}, "paper-single": {"mode": "single"}}


def test_starts_and_iterations_are_the_published_ones(six: list[tuple[Image, Landmarks]]) -> None:
    size = np.array([30.0, 28.0, 26.0])
    several, single = make(six), make(six, mode="single", landmarks=["a"])
    starts = several.spaces[0].starts(size, None)
    assert len(starts) == 6
    assert not starts[0].any()
    assert (np.abs(starts) <= 3 * several.spaces[0].pca.sd).all()
    np.testing.assert_array_equal(starts, make(six).spaces[0].starts(size, None))
    assert not np.array_equal(starts, make(six, seed=1).spaces[0].starts(size, None))
    around = single.spaces[0].starts(size, None) - (size - 1) / 2
    assert len(around) == 19
    assert sorted((around != 0).sum(1)) == [0] + [1] * 6 + [2] * 12
    assert set(np.unique(np.abs(around / size))) == {0.0, 0.25}
    assert len(start_pattern(2)) == 9
    assert [make(six, rule=r).iterations for r in ("A", "B", "C")] == [350, 10, 10]


def test_states_are_voxels_of_the_image(six: list[tuple[Image, Landmarks]]) -> None:
    image, marks = six[0]
    case = training(make(six), six)[0]
    method = make(six, mode="single")
    example = method.examples(case, method.stages()[1], np.random.default_rng(5))
    space = method.spaces[1]
    index = image.grid.to_index(marks.points[1])[::-1]
    again = np.random.default_rng(5)
    near = again.random() < 0.5
    size = np.array([30.0, 28.0, 26.0])
    want = space.near(again, index, size) if near else space.uniform(again, size)
    np.testing.assert_allclose(example["displacement"].numpy(), index - want, atol=1e-4)
    pca = make(six).spaces[0]
    back = pca.decode(pca.encode(image.grid.to_index(marks.points)[:, ::-1])[None])[0]
    np.testing.assert_allclose(image.grid.to_world(back[:, ::-1]), marks.points, atol=1.0)


def test_locate_leaves_the_mode_alone(six: list[tuple[Image, Landmarks]]) -> None:
    method = make(six, dropout=0.5).train()
    method.locate(six[0][0])
    assert method.training
    assert all(net.training for net in method.nets)


def tamed(method: PaperPIN, voxels: float = 0.5) -> PaperPIN:
    """Random weights that move about half a voxel a step, so that the patches differ and stay inside."""
    with torch.no_grad():
        for net in method.nets:
            net.regression[-1].weight.mul_(voxels / 20)
            net.regression[-1].bias.mul_(0)
    return method


def test_all_starts_at_once_is_one_by_one(six: list[tuple[Image, Landmarks]]) -> None:
    method = tamed(make(six, rule="c-pair"))
    work = method.working_images(six[0][0])["work"]
    space, net = method.spaces[0], method.nets[0]
    use_bf16(False)
    try:
        starts = space.starts(np.array([30.0, 28.0, 26.0]), None)
        together = method.iterate(space, net, work, starts)
        alone = np.concatenate([method.iterate(space, net, work, s[None]) for s in starts])
    finally:
        use_bf16(None)
    assert np.abs(together - starts).max() > 0.1
    np.testing.assert_allclose(together, alone, atol=1e-2)


def test_bf16_positions_are_float32_positions(six: list[tuple[Image, Landmarks]]) -> None:
    method = make(six, rule="c-pair")
    train(method, six, 60)
    found = []
    for force in (True, False):
        use_bf16(force)
        try:
            found.append(method.locate(six[1][0]).points)
        finally:
            use_bf16(None)
    assert np.abs(found[0] - found[1]).max() < 0.5  # one voxel


def test_covariance_is_the_spread_of_the_starts_in_world_mm(six: list[tuple[Image, Landmarks]]) -> None:
    method = tamed(make(six, mode="single", landmarks=["a"], iterations=1))
    with torch.no_grad():
        method.nets[0].regression[-1].weight.zero_()  # nothing moves: the spread is that of the starts
    image = six[0][0]
    found = method.locate(image)
    starts = method.spaces[0].starts(np.array([30.0, 28.0, 26.0]), None) * 0.5
    np.testing.assert_allclose(found.covariance[0], np.cov(starts.T), atol=1e-9)
    np.testing.assert_allclose(found.points[0], image.grid.centre, atol=1e-9)


def test_a_flipped_file_gives_the_same_answer(six: list[tuple[Image, Landmarks]]) -> None:
    method = tamed(make(six, rule="c-pair"))
    image = six[0][0]
    axes = image.grid.axes.copy()
    axes[:, 2] *= -1
    far = image.grid.to_world([0, 0, image.grid.shape[2] - 1])
    flipped = Image(image.array[..., ::-1], Grid.from_axes(image.grid.shape, axes, far))
    turned = Image(
        flipped.array.transpose(0, 3, 1, 2),
        Grid.from_axes([flipped.grid.shape[k] for k in (2, 0, 1)], axes[:, [2, 0, 1]], far),
    )
    want = method.locate(image).points
    np.testing.assert_allclose(method.locate(flipped).points, want, atol=1e-6)
    np.testing.assert_allclose(method.locate(turned).points, want, atol=1e-6)


def test_working_image_is_a_view_where_it_can_be(six: list[tuple[Image, Landmarks]]) -> None:
    method = make(six)
    image = Image((six[0][0].array * 100 + 100).astype(np.uint8), six[0][0].grid)
    work = method.working_images(image)["work"]
    assert np.shares_memory(work.array, image.array)
    assert work.array.dtype == np.uint8
    finer = make(six, spacing_mm=0.25).working_images(image)["work"]
    np.testing.assert_allclose(finer.grid.spacing, 0.25)
    colour = Image(np.repeat(image.array, 3, 0), image.grid)
    np.testing.assert_array_equal(method.working_images(colour)["work"].array, image.array)


def test_a_first_guess_is_where_the_starts_begin(six: list[tuple[Image, Landmarks]]) -> None:
    image, marks = six[3]
    for settings in ({"mode": "single"}, {"variance": 1.0}):
        method = tamed(make(six, iterations=1, **settings), voxels=0.0)
        plain = np.linalg.norm(method.locate(image).points - marks.points, axis=1).mean()
        helped = np.linalg.norm(method.locate(image, start=marks).points - marks.points, axis=1).mean()
        assert helped < 0.6 * plain
    some = marks.select(("a", "nobody"))
    assert np.isfinite(method.locate(image, start=some).points).all()


def test_missing_points_carry_no_loss(six: list[tuple[Image, Landmarks]]) -> None:
    gone = [(x, m.with_points(m.points)) for x, m in six]
    points = six[0][1].points.copy()
    points[1] = np.nan
    gone[0] = (six[0][0], Landmarks(NAMES, points))
    single = make(gone, mode="single")
    case = training(single, gone)[0]
    rng = np.random.default_rng(0)
    weights = [single.examples(case, s, rng)["weight"].item() for s in single.stages()]
    assert weights == [1.0, 0.0, 1.0]
    several = make(gone)
    example = several.examples(training(several, gone)[0], several.stages()[0], rng)
    assert example["weight"] == 1
    assert torch.isfinite(example["displacement"]).all()
    nothing = training(several, gone)[0].with_landmarks(Landmarks(NAMES, np.full((3, 3), np.nan)))
    assert several.examples(nothing, several.stages()[0], rng)["weight"] == 0


def test_a_diverged_network_gives_no_nan(six: list[tuple[Image, Landmarks]]) -> None:
    method = make(six, rule="B")
    with torch.no_grad():
        method.nets[0].regression[-1].bias.fill_(torch.inf)
    found = method.locate(six[0][0])
    assert np.isfinite(found.points).all()
    assert (found.score == 0).all()


def test_rule_a_moves_one_voxel_whatever_the_unit(six: list[tuple[Image, Landmarks]]) -> None:
    d, logits = torch.zeros(1, 5), torch.zeros(1, 10)
    logits[0, 3] = 1.0
    for settings in ({}, {"whiten": True}, {"shape_model": "autoencoder", "modes": 5}):
        method = make(six, rule="A", variance=1.0, **settings)
        space = method.spaces[0]
        step = method._step(space, d, logits)[0]
        assert space.size == 5
        np.testing.assert_allclose(step * space.unit, update("A", d, logits)[0].numpy())


def test_modes_explain_the_variance_and_stay_below_the_number_of_cases(six: list[tuple[Image, Landmarks]]) -> None:
    voxels = np.stack([x.grid.to_index(m.points)[:, ::-1].ravel() for x, m in six])
    assert make(six, variance=1.0).spaces[0].size == 5
    assert make(six, variance=0.7).spaces[0].size == PCAShape.fit(voxels, variance=0.7).size < 5


def test_stages_are_one_network_for_each_single_landmark(six: list[tuple[Image, Landmarks]]) -> None:
    stages = make(six, mode="single").stages()
    assert [s.modules for s in stages] == [("nets.0",), ("nets.1",), ("nets.2",)]
    assert all(s.schedule == "constant" for s in stages)
    coded = make(six, shape_model="autoencoder").stages()
    assert [(s.name, s.modules) for s in coded] == [("pin", ("nets.0",))]


def test_networks_of_later_stages_are_left_alone(six: list[tuple[Image, Landmarks]]) -> None:
    method = make(six, mode="single")
    assert method.locate(six[0][0]).defined.all()
    method.begin(method.stages()[1], Evidence())
    assert method.locate(six[0][0]).defined.tolist() == [True, True, False]


def test_the_autoencoder_learns_the_shapes_once(six: list[tuple[Image, Landmarks]]) -> None:
    points = six[0][1].points.copy()
    points[2] = np.nan
    cases = [(six[0][0], Landmarks(NAMES, points)), *six[1:]]
    method = make(cases, shape_model="autoencoder", modes=6, autoencoder_steps=1500)
    truth = np.stack([x.grid.to_index(m.points)[:, ::-1] for x, m in six])
    stage, space = method.stages()[0], method.spaces[0]

    def residual() -> float:
        back = [space.decode(space.encode(t)[None])[0] for t in truth[1:]]
        return float(np.linalg.norm(np.stack(back) - truth[1:], axis=2).mean())

    before = residual()
    method.begin(stage, Evidence())
    after = residual()
    assert after < 0.5 < 1.0 < before  # voxels
    assert not any(p.requires_grad for p in method.autoencoder.parameters())
    codes = np.stack([space.encode(t) for t in truth[1:]]) / (space.reach / 3)
    assert 0.5 < codes.std() < 1.5
    again = make(cases, shape_model="autoencoder", modes=6)
    again.load_state_dict(method.state_dict())
    again.begin(stage, Evidence())  # a resumed run keeps what it has
    for name, value in method.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_bad_studies_are_refused_in_one_line(six: list[tuple[Image, Landmarks]]) -> None:
    with pytest.raises(InputError, match="'d' is in no training case"):
        make(six, landmarks=["a", "d"])
    with pytest.raises(InputError, match="two or more different training shapes, found 1"):
        make(six[:1])
    never = [(x, Landmarks(NAMES, np.vstack([m.points[:2], np.full((1, 3), np.nan)]))) for x, m in six]
    with pytest.raises(InputError, match="'c' is annotated in no training case"):
        make(never)


def test_default_spacing_thins_large_2d_images() -> None:
    cephalogram = Grid.from_axes((2400, 1935), np.eye(2)[:, ::-1] * 0.1, np.zeros(2))
    assert default_spacing([cephalogram]) == pytest.approx(0.5)
    skull = Grid.from_axes((150, 160, 140), np.eye(3)[:, ::-1] * 0.141, np.zeros(3))
    assert default_spacing([skull]) == pytest.approx(0.141)


def taken(new: PaperPIN, old: PaperPIN) -> dict[str, torch.Tensor]:
    return moved_weights(old.state_dict(), new.per_landmark(), new.names, old.names, new.state_dict())


def test_weights_of_another_model_find_their_landmarks() -> None:
    cases = [phantom(i) for i in range(4)]
    old, new = make(cases, mode="single"), make(cases, mode="single", landmarks=["c", "a"])
    new.load_state_dict(taken(new, old))
    for net, i in zip(new.nets, (2, 0), strict=True):
        torch.testing.assert_close(net.state_dict(), old.nets[i].state_dict())
    several, fewer = make(cases), make(cases, landmarks=["c", "a"])
    first = "nets.0.convs.0.weight"
    before, after = several.state_dict()[first], taken(fewer, several)[first]
    torch.testing.assert_close(after, torch.cat([before[:, 6:9], before[:, 0:3]], 1))


@pytest.mark.parametrize("sampling", ["uniform", "on_policy"])
def test_chosen_landmarks_are_taught_by_name(sampling: str) -> None:
    cases = [phantom(i) for i in range(3)]
    chosen = make(cases, mode="single", landmarks=["c"], sampling=sampling)
    image, marks = cases[0]
    whole = Case(
        "0", given=marks, images=chosen.working_images(image)
    )  # as the engine has it: all of the study's landmarks
    by_name = whole.with_landmarks(marks.select(["c"]))
    stage = chosen.stages()[0]

    def targets(case: Case) -> torch.Tensor:
        made = chosen.collect([case], stage, np.random.default_rng(3))
        batch = chosen.examples(case, stage, np.random.default_rng(3)) if made is None else next(made)
        return batch["displacement"]

    torch.testing.assert_close(targets(whole), targets(by_name))
