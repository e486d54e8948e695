"""Deep Q-learning agents on phantoms: what they may do, what they are paid, when they stop, and that they learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import phantom
from anatomark.cases.case import Case
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.methods.base import Batch
from anatomark.methods.dqn import method as agent
from anatomark.methods.dqn.method import AGENTS, DQN, DQNConfig
from anatomark.methods.dqn.moves import Walk, directions, reward
from anatomark.model.start import moved_weights
from anatomark.training.optimise import make_optimizer, rate_factor, set_modes

pytestmark = pytest.mark.usefixtures("float32")
SMALL: dict[str, Any] = {
    "voxels": 20, "patch_px": 11, "scales": [4, 2, 1], "layers": [(8, 5), (16, 3)], "hidden": 48, "narrow": 16,
    "batch": 48, "target_every": 50, "warp_share": 0.3, "intensity": 0.5, "starts": 3, "steps": 250, "lr": 3e-3,
}  # fmt: skip


def untrained(ndim: int, cases: list[tuple[Image, Landmarks]] | None = None, **settings: Any) -> DQN:
    config = DQNConfig(**{**SMALL, **settings})
    torch.manual_seed(1)
    return DQN(config, DQN.prepare(config, phantom.study(cases or [phantom.phantom(0, ndim)])))


def train(method: DQN, cases: list[tuple[Image, Landmarks]], steps: int, first: int = 0) -> list[float]:
    """The steps from ``first`` on, as the engine goes through them in rounds of 50."""
    known, (stage,), losses = phantom.training_cases(method, cases), method.stages(), []
    set_modes(method, stage)
    optimizer = make_optimizer(method, stage)
    stream: Iterator[Batch] | None = None
    for step in range(first, steps):
        if step % 50 == 0 or stream is None:
            stream = method.collect(known, stage, np.random.default_rng([0, step]))
        assert stream is not None
        optimizer.param_groups[0]["lr"] = stage.lr * rate_factor(stage, step)
        loss = method.loss(next(stream), stage)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(stage)
        losses.append(float(loss.detach()))
    return losses


def first_errors(method: DQN, cases: list[tuple[Image, Landmarks]]) -> Array:
    """Of the mean positions where a search begins."""
    firsts = [method._first_points(method.working_images(image)["scale0"], None) for image, _ in cases]
    return np.stack([np.linalg.norm(f - t.points, axis=1) for f, (_, t) in zip(firsts, cases, strict=True)])


class Trained(NamedTuple):
    method: DQN
    cases: list[tuple[Image, Landmarks]]


@pytest.fixture(scope="module")
def trained(float32: None) -> Trained:
    """A model of six phantoms; one landmark is not annotated in one of them."""
    cases = [phantom.phantom(i, 2) for i in range(6)]
    known = [(image, phantom.without(marks, "dx"[min(i, 1)])) for i, (image, marks) in enumerate(cases)]
    method = untrained(2, known)
    losses = train(method, known, 250)
    assert np.mean(losses[-50:]) < 0.7 * np.mean(losses[:50])
    return Trained(method.eval(), cases)


# ---------------------------------------------------------------------- moves, reward, oscillation


@pytest.mark.parametrize("ndim", [2, 3])
def test_moves_go_both_ways_along_each_axis(ndim: int) -> None:
    ways = directions(ndim)
    assert ways.shape == (2 * ndim, ndim)
    assert len({tuple(w) for w in ways.tolist()}) == 2 * ndim
    np.testing.assert_array_equal(np.abs(ways).sum(1), 1)
    np.testing.assert_array_equal(ways.sum(0), 0)


def test_a_reward_is_the_distance_gained_in_steps() -> None:
    truth = np.zeros((4, 2))
    before = np.array([[4.0, 0], [4, 0], [3, 4], [50, 0]])
    after = np.array([[2.0, 0], [6, 0], [3, 2], [0, 0]])
    paid = reward(before, after, truth, np.full(4, 2.0))
    np.testing.assert_allclose(paid, [1, -1, (5 - np.sqrt(13)) / 2, 1])


def steepest(at: Array, goal: Array, ways: Array, step: Array) -> Array:
    """Q of an agent that knows the truth: minus the distance after each move."""
    return -np.linalg.norm(at[:, None] + step[:, None, None] * ways - goal[:, None], axis=2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_agents_that_know_the_way_end_within_half_a_step(ndim: int) -> None:
    rng = np.random.default_rng(0)
    at, goal = rng.uniform(-30, 30, (20, ndim)), rng.uniform(-30, 30, (20, ndim))
    walk, ways, turns = Walk(at, [6.0, 3.0, 1.0], 100), directions(ndim), 0
    while len(rows := walk.active):
        # what a move gains: at the nearest place of the lattice no move gains anything
        here = np.linalg.norm(walk.at[rows] - goal[rows], axis=1)
        walk.go(here[:, None] + steepest(walk.at[rows], goal[rows], ways, walk.steps[walk.scale[rows]]), everywhere)
        turns += 1
    assert turns < 60
    assert np.abs(walk.at - goal).max() <= 0.5 + 1e-9
    np.testing.assert_allclose((walk.at - at) % 1, ((walk.at - at) % 1).round(), atol=1e-9)  # on a lattice of 1 mm


def everywhere(here: Array, there: Array) -> np.ndarray:
    return np.ones(len(there), dtype=bool)


def test_of_an_oscillation_the_place_with_least_to_gain_is_kept() -> None:
    right, left = [1.0, 0, 0, 0], [0, 2.0, 0, 0]
    walk = Walk(np.array([[0.0, 0.0]]), [4.0, 1.0], 100)
    walk.go(np.array([right]), everywhere)
    np.testing.assert_array_equal(walk.at, [[4, 0]])
    assert walk.made.tolist() == [1]
    walk.go(np.array([left]), everywhere)  # back at 0, where the best move was worth less
    np.testing.assert_array_equal(walk.at, [[0, 0]])
    assert (walk.scale.tolist(), walk.made.tolist()) == ([1], [0])
    walk.go(np.array([[5.0, 0, 0, 0]]), everywhere)
    walk.go(np.array([left]), everywhere)
    np.testing.assert_array_equal(walk.at, [[1, 0]])
    assert len(walk.active) == 0


def test_a_round_of_four_moves_ends_too_and_a_straight_way_when_it_is_too_long() -> None:
    walk = Walk(np.zeros((1, 2)), [1.0], 100)
    for k, action in enumerate([0, 2, 1, 3]):
        assert len(walk.active) == 1
        q = np.zeros((1, 4))
        q[0, action] = 1 + (k - 2) ** 2
        walk.go(q, everywhere)
    assert len(walk.active) == 0
    np.testing.assert_array_equal(walk.at, [[1, 1]])
    far = Walk(np.zeros((1, 2)), [1.0], 7)
    while len(far.active):
        far.go(np.array([[1.0, 0, 0, 0]]), everywhere)
    np.testing.assert_array_equal(far.at, [[6, 0]])  # the newest of the last four: none is worth less


def test_nobody_leaves_the_image() -> None:
    walk = Walk(np.zeros((1, 2)), [1.0, 0.5], 100)
    while len(walk.active):
        walk.go(np.array([[1.0, 0, 0, 0]]), lambda here, there: there[:, 0] < 2.2)
    np.testing.assert_array_equal(walk.at, [[2, 0]])


@pytest.mark.parametrize("ndim", [2, 3])
def test_who_is_far_outside_walks_back_in_and_no_farther_out(ndim: int) -> None:
    method = untrained(ndim)
    images = method.working_images(phantom.phantom(0, ndim)[0])
    grid = images["scale0"].grid
    goal = np.asarray(grid.centre)
    far = goal + np.eye(ndim)[0] * (grid.extent_mm.max() + method.radius)
    step = method.steps_mm[0] * directions(ndim)
    away = method._allowed(images, np.tile(far, (2 * ndim, 1)), far + step)
    assert away[:2].tolist() == [False, True]  # +x, -x
    walk = Walk(far[None], method.steps_mm, 200)
    while len(rows := walk.active):
        at = walk.at[rows]
        q = np.linalg.norm(at - goal, axis=1)[:, None]
        walk.go(
            q + steepest(at, goal[None], directions(ndim), walk.steps[walk.scale[rows]]),
            lambda here, there: method._allowed(images, here, there),
        )
    assert np.abs(walk.at - goal).max() <= 0.5 * method.steps_mm[-1] + 1e-9


# ---------------------------------------------------------------------- it learns and finds


def test_both_presets_align() -> None:
    assert DQN.aligned
    paper = DQNConfig(**DQN.presets["paper"])
    assert (paper.patch_px, paper.scales, paper.double, paper.head_per_scale) == (45, [3, 2, 1], False, False)
    assert DQNConfig(**DQN.presets["recommended"]) == DQNConfig()


def test_agents_find_landmarks_better_than_the_mean_position(trained: Trained) -> None:
    method, cases = trained
    for some in (cases, [phantom.phantom(50 + i, 2) for i in range(4)]):
        found, first = phantom.errors(method, some), first_errors(method, some)
        assert np.median(found) < 0.5 * np.median(first)
        assert found.mean() < first.mean()  # nobody goes astray


def test_in_3d_too() -> None:
    cases = [(image, marks.select(["b"])) for image, marks in (phantom.phantom(i, 3) for i in range(4))]
    config = DQNConfig(**{**SMALL, "patch_px": 9, "steps": 120, "batch": 32, "warp_share": 0.0, "intensity": 0.0})
    torch.manual_seed(1)
    method = DQN(config, DQN.prepare(config, replace(phantom.study(cases), names=("b",))))
    train(method, cases, 120)
    method.eval()
    rng, found, first = np.random.default_rng(0), [], []
    for image, truth in cases:
        aside = truth.with_points(truth.points + rng.normal(0, 4, (1, 3)))
        first.append(aside.errors_to(truth)[0])
        found.append(method.locate(image, aside).errors_to(truth)[0])
    assert np.mean(found) < 0.5 * np.mean(first)


def test_the_answer_knows_how_sure_it_is(trained: Trained) -> None:
    image, _ = phantom.phantom(50, 2)
    found = trained.method.locate(image)
    assert found.names == phantom.NAMES
    assert found.score is not None
    assert found.covariance is not None
    assert ((found.score > 0) & (found.score <= 1)).all()
    assert (np.linalg.eigvalsh(found.covariance) > 0).all()
    again = trained.method.locate(image)
    np.testing.assert_array_equal(found.points, again.points)
    nothing = trained.method.locate(replace(image, array=np.full_like(image.array, 10)))
    assert np.isfinite(nothing.points).all()


def test_a_first_guess_is_where_the_agents_start(trained: Trained) -> None:
    image, truth = trained.cases[2]
    seen: list[Array] = []
    walked = trained.method._walked
    trained.method._walked = lambda images, at, landmark: seen.append(at) or walked(images, at, landmark)  # type: ignore[method-assign,func-returns-value]
    try:
        found = trained.method.locate(image, phantom.without(truth, "a"))
    finally:
        del trained.method._walked
    np.testing.assert_allclose(seen[0][1:5], truth.points[1:], atol=1e-9)
    assert np.linalg.norm(seen[0][0] - truth.points[0]) < 5  # as the mean shape lies on the others
    assert np.median(found.errors_to(truth)) < 2
    with pytest.raises(InputError, match="none of the model's landmarks: a, b, c"):
        trained.method.locate(image, Landmarks(("elsewhere",), truth.points[:1]))


# ---------------------------------------------------------------------- what is played and learned


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_agent_at_its_landmark_sees_it_in_the_middle(ndim: int) -> None:
    """Also through warps and turns, at every scale."""
    method = untrained(ndim, warp_share=1.0, turn_deg=20.0, patch_px=9)
    (case,) = phantom.training_cases(method, [phantom.phantom(0, ndim)])
    for seed in range(5):
        way, truth, _ = method._view(case, np.random.default_rng(seed))
        assert way is not None
        np.testing.assert_allclose(way(truth), case.landmarks.points, atol=0.1)
        for scale in range(3):
            patch = method._read(case.images, truth[:1], np.array([scale]), way)[0]
            brightest = np.unravel_index(int(patch.argmax()), patch.shape)
            assert np.abs(np.array(brightest) - 4).max() <= 1


def test_an_episode_is_what_its_agents_did() -> None:
    method = untrained(2, warp_share=0.0, intensity=0.0, head_per_scale=True)
    (case,) = phantom.training_cases(method, [phantom.phantom(0, 2)])
    positions: list[Array] = []
    read = method._read
    method._read = lambda images, at, scale, way: positions.append(at) or read(images, at, scale, way)  # type: ignore[method-assign,func-returns-value]
    played = method._play(case, np.random.default_rng(0), 1.0)
    assert played.frames.shape == (len(positions), AGENTS, 11, 11)
    truth = case.landmarks.points
    for k in range(len(played.action)):
        t, a = int(played.time[k]), int(played.agent[k])
        scale, landmark = divmod(int(played.head[k]), 5)
        step = method.steps_mm[scale]
        there = positions[t][a] + step * directions(2)[int(played.action[k])]
        if not method._allowed(case.images, positions[t][a][None], there[None])[0]:
            np.testing.assert_array_equal(positions[t + 1][a], positions[t][a])
            assert float(played.reward[k]) == -1
            continue
        np.testing.assert_allclose(positions[t + 1][a], there)
        gained = np.linalg.norm(positions[t][a] - truth[landmark]) - np.linalg.norm(there - truth[landmark])
        assert float(played.reward[k]) == pytest.approx(np.clip(gained / step, -1, 1), abs=1e-5)
        near = np.linalg.norm(there - truth[landmark]) <= 0.5 * step
        assert bool(played.arrived[k]) == near
        assert not (near and ((played.agent == a) & (played.time > t)).any())  # an agent that arrived rests
        state = played.state(k)
        np.testing.assert_array_equal(state[-1], played.frames[t + 1, a])
        np.testing.assert_array_equal(state[0], played.frames[max(0, t - 3), a])


def test_the_goal_is_reward_and_what_the_target_network_expects() -> None:
    for double in (False, True):
        method = untrained(2, double=double)
        for p in method.target.parameters():
            torch.nn.init.normal_(p, std=0.3)
        (stage,) = method.stages()
        known = phantom.training_cases(method, [phantom.phantom(0, 2)])
        batch = next(method.collect(known, stage, np.random.default_rng(0)))
        batch["arrived"][:10] = 1.0
        with torch.no_grad():
            q = method.net(batch["frames"][:, :4], batch["head"])[torch.arange(48), batch["action"]]
            later = method.target(batch["frames"][:, 1:], batch["head"])
            chosen = (method.net(batch["frames"][:, 1:], batch["head"]) if double else later).argmax(1)
            goal = batch["reward"] + 0.5 * (1 - batch["arrived"]) * later[torch.arange(48), chosen]
            apart = (q - goal).abs()
            wanted = torch.where(apart < 1, 0.5 * apart**2, apart - 0.5).mean()
            torch.testing.assert_close(method.loss(batch, stage)["loss"], wanted)


def test_the_target_network_follows_now_and_then() -> None:
    method = untrained(2, target_every=3)
    (stage,) = method.stages()
    with torch.no_grad():
        method.net.last_bias += 1.0
    for step in range(1, 4):
        method.after_step(stage)
        assert torch.equal(method.net.last_bias, method.target.last_bias) == (step == 3)


def test_moves_are_random_at_first_and_rarely_so_in_the_end() -> None:
    method = untrained(2, steps=100, explore=0.1, explore_share=0.5)
    (stage,) = method.stages()
    shares = []
    for _ in range(101):
        shares.append(method._exploring(stage))
        method.after_step(stage)
    np.testing.assert_allclose([shares[i] for i in (0, 25, 50, 100)], [1.0, 0.55, 0.1, 0.1])


def test_a_round_depends_on_weights_and_generator_alone() -> None:
    """So a training that is resumed where a round begins goes on as it would have."""
    cases = [phantom.phantom(i, 2) for i in range(3)]
    whole = untrained(2, cases, steps=60)
    train(whole, cases, 50)
    state = {k: v.clone() for k, v in whole.state_dict().items()}
    resumed = DQN(whole.config, whole.facts)
    resumed.load_state_dict(state)
    (stage,) = whole.stages()
    known = phantom.training_cases(whole, cases)
    first, again = (m.collect(known, stage, np.random.default_rng(4)) for m in (whole, resumed))
    for _ in range(12):
        a, b = next(first), next(again)
        assert all(torch.equal(a[k], b[k]) for k in a)
    other = next(whole.collect(known, stage, np.random.default_rng(5)))
    assert not torch.equal(other["frames"], b["frames"])


def test_what_is_not_annotated_is_nobodys_goal() -> None:
    image, truth = phantom.phantom(0, 2)
    method = untrained(2)
    none = Case("none", given=phantom.without(truth, *"abcde"), images=method.working_images(image))
    some = Case("some", given=phantom.without(truth, "c", "e"), images=none.images)
    (stage,) = method.stages()
    stream = method.collect([none, some], stage, np.random.default_rng(0))
    batches = [next(stream) for _ in range(8)]
    assert set(torch.cat([b["head"] % 5 for b in batches]).tolist()) == {0, 1, 3}
    assert all(v.isfinite().all() for b in batches for v in b.values())


# ---------------------------------------------------------------------- settings, plans, few landmarks


def test_the_finest_voxel_follows_the_anatomy_down_to_the_images_own() -> None:
    coarse, fine = untrained(2, voxels=10), untrained(2, voxels=1000)
    assert coarse.steps_mm[-1] == pytest.approx(coarse.radius / 10)
    assert fine.steps_mm[-1] == pytest.approx(1.2)
    assert fine.steps_mm.tolist() == pytest.approx([4.8, 2.4, 1.2])
    assert list(coarse.working_images(phantom.phantom(0, 2)[0])) == ["scale0", "scale1", "scale2"]


def test_small_patches_are_refused() -> None:
    with pytest.raises(InputError, match="patch_px 4 is too small for 4 layers"):
        untrained(2, patch_px=4, layers=[(4, 3)] * 4, pooled=True)


def test_even_kernels_are_refused_unless_pooled() -> None:
    with pytest.raises(ValueError, match="kernels must be odd unless pooled, found 4"):
        DQNConfig(layers=[(8, 5), (8, 4)])
    assert DQNConfig(layers=[(8, 4)], pooled=True).pooled


def test_large_patches_go_through_the_network_few_at_a_time(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    method, cases = trained
    whole, sizes, walked = method.locate(cases[0][0]), [], method._walked
    monkeypatch.setattr(agent, "NUMBERS", 10 * 8 * 11**2)  # ten agents' first maps
    monkeypatch.setattr(
        method, "_walked", lambda images, at, landmark: sizes.append(len(at)) or walked(images, at, landmark)
    )
    np.testing.assert_allclose(method.locate(cases[0][0]).points, whole.points, atol=1e-6)
    assert sizes == [10, 5]


@pytest.mark.parametrize("head_per_scale", [False, True])
def test_another_model_lends_each_landmark_its_heads(head_per_scale: bool) -> None:
    old = untrained(2, head_per_scale=head_per_scale)
    old.learned += 5
    names = ["c", "new", "a"]
    new = DQN(old.config, old.facts.model_copy(update={"names": names, "mean_shape": old.facts.mean_shape[:3]}))
    state = moved_weights(old.state_dict(), new.per_landmark(), names, old.names, new.state_dict())
    new.load_state_dict({**new.state_dict(), **state})
    assert new.learned == 0  # it explores from the beginning
    frames = torch.rand(2, 4, 11, 11)
    for scale in range(3 if head_per_scale else 1):
        for mine, theirs in ((0, 2), (2, 0)):
            q = old.net(frames, torch.full((2,), 5 * scale + theirs))
            torch.testing.assert_close(new.net(frames, torch.full((2,), 3 * scale + mine)), q)


def test_a_plan_keeps_the_voxel_of_the_old() -> None:
    old, new = untrained(3, voxels=5).facts, untrained(3).facts
    assert DQN.adapted(new, old).spacing_mm == old.spacing_mm
    assert DQN.adapted(new, untrained(2).facts) is new


def test_an_aligned_anatomy_lies_where_it_lies_in_the_template() -> None:
    cases = [phantom.phantom(i, 3) for i in range(3)]
    study = replace(phantom.study(cases), aligned=True)
    config = DQNConfig(**SMALL)
    method = DQN(config, DQN.prepare(config, study))
    mean = np.mean([marks.points.mean(0) for _, marks in cases], 0)
    aside = Image(np.zeros((1, 9, 9, 9), np.float32), Grid.from_axes((9, 9, 9), np.eye(3), np.zeros(3)))
    np.testing.assert_allclose(method._first_points(aside, None).mean(0), mean, atol=0.5)
    assert method.facts.start_shift_mm == pytest.approx(0.06 * method.radius)


def test_a_single_landmark_has_an_agent_too() -> None:
    image, marks = phantom.phantom(0, 3)
    one = marks.select(["b"])
    study = replace(phantom.study([(image, one)]), names=("b",))
    config = DQNConfig(**{**SMALL, "patch_px": 7})
    method = DQN(config, DQN.prepare(config, study))
    case = Case("a", given=one, images=method.working_images(image))
    (stage,) = method.stages()
    batch = next(method.collect([case], stage, np.random.default_rng(0)))
    assert method.loss(batch, stage)["loss"].isfinite()
    assert np.isfinite(method.locate(image).points).all()
