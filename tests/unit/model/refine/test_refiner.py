"""The refiner: sized by evidence, right in every frame, and better than where it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import phantom
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import Pose, procrustes, random_rotation, rotation_from_vector
from anatomark.methods.base import Plan, Stage, TrainingCase
from anatomark.methods.kit.precision import use_bf16
from anatomark.model.refine.refiner import STRIDE, RefineConfig, Refiner

pytestmark = pytest.mark.usefixtures("float32")
SMALL: dict[str, Any] = {"levels": 1, "px": 16, "width": 8, "batch": 8, "reach_mm": [4.0]}


def refiner(ndim: int, cases: list[tuple[Image, Landmarks]] | None = None, **settings: Any) -> Refiner:
    """Untrained, of phantoms, with all its levels sized."""
    study = phantom.study(cases or [phantom.phantom(0, ndim)])
    facts = {"refine": Refiner.prepare_facts(study, {})}
    plan = Plan(names=list(phantom.NAMES), ndim=ndim, modality=study.modality, intensity=dict(study.intensity),
                facts=facts)  # fmt: skip
    torch.manual_seed(2)
    method = Refiner(RefineConfig(**{**SMALL, **settings}), plan)
    for stage in method.stages():
        method.begin(stage, {})
    return method.eval()


def displaced(truth: Landmarks, seed: int, mm: float) -> Landmarks:
    """Every point ``mm`` away, in directions of their own."""
    way = np.random.default_rng([seed, 9]).normal(size=truth.points.shape)
    return truth.with_points(truth.points + mm * way / np.linalg.norm(way, axis=1, keepdims=True))


class Said(nn.Module):
    """A network that says the same of every sub-image: ``shift`` (D,) cells along the model's axes, 2D."""

    def __init__(self, shift: Array, px: int, seen: float = 20.0, spread: Array | None = None):
        super().__init__()
        self.k, self.seen = px // 4, seen
        self.register_buffer("shift", torch.tensor(shift).float())
        self.spread = torch.zeros(2) if spread is None else torch.tensor(spread).float()

    def forward(self, patches: torch.Tensor, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        from anatomark.model.refine.cellvotes import cell_centres

        b, n, c = *patches.shape[:2], self.k**2
        logits = torch.zeros(b, n, 1, c + 1)
        logits[..., :-1] = self.seen
        sign = torch.tensor([1.0, -1.0]).repeat(c // 2)  # half of the cells say a bit more, half a bit less
        votes = self.shift[:, None] - cell_centres(self.k) + self.spread[:, None] * sign
        return logits, votes.expand(b, n, 1, 2, c)


def said(shift: Any, seen: float = 20.0, spread: Array | None = None, **settings: Any) -> Refiner:
    """A 2D refiner of one look with :class:`Said` for a network."""
    method = refiner(2, **{"looks": 1, "passes": 1, **settings})
    method.nets[0] = Said(np.asarray(shift, float), method.px, seen, spread)
    method.parameters = lambda *a: iter([torch.zeros(1)])  # type: ignore[method-assign,assignment,misc]
    return method


# ---------------------------------------------------------------------- levels from evidence


def evidence(errors: Array, independent: bool = True) -> dict[str, Any]:
    """Predictions of one 2D landmark a case that are off by ``errors`` mm; in the first case it was missed."""
    truth = {f"c{i}": Landmarks(("a",), np.zeros((1, 2))) for i in range(len(errors) + 1)}
    found = {f"c{i + 1}": Landmarks(("a",), np.array([[0.6, 0.8]]) * e) for i, e in enumerate(errors)}
    found["c0"] = Landmarks(("a",), np.full((1, 2), np.nan))
    return {"stage": "x", "independent": independent, "predictions": found, "truth": truth}


def level_of(given: dict[str, Any], **settings: Any) -> dict[str, Any]:
    method = refiner(2, **settings)
    method.facts["voxel_mm"] = 0.1
    method.begin(method.stages()[0], given)
    return method.facts["levels"][0]


def test_sub_images_cover_the_errors_before() -> None:
    errors = np.linspace(0.5, 6, 100)
    level = level_of(evidence(errors), reach_mm=None, coverage=0.9, px=32)
    assert level["reach_mm"] == pytest.approx(np.quantile(errors, 0.9))
    assert level["half_mm"] == pytest.approx(2 * level["reach_mm"])
    assert level["half_mm"] == pytest.approx(level["spacing_mm"] * 16)
    assert level["source"] == "validation"
    assert level["coverage"] == 1.0
    assert level["errors"] == 100


def test_copies_of_training_cases_flatter() -> None:
    errors = np.linspace(0.5, 4, 50)
    new, copies = (level_of(evidence(errors, x), reach_mm=None, px=32) for x in (True, False))
    assert copies["reach_mm"] == pytest.approx(1.5 * new["reach_mm"])
    assert copies["source"] == "augmented copies"


def test_few_errors_do_not_say_how_small_they_are() -> None:
    guessed = level_of({}, reach_mm=None)
    few = level_of(evidence(np.full(8, 0.01)), reach_mm=None)
    assert few["reach_mm"] == guessed["reach_mm"] == pytest.approx(0.1 * refiner(2).radius)
    assert few["source"].startswith("guessed")
    assert guessed["coverage"] is None
    far = level_of(evidence(np.full(8, 1e3)), reach_mm=None)
    assert far["coverage"] == 0.0  # nobody is deceived about it


def test_a_given_reach_counts_first_and_its_coverage_is_told() -> None:
    errors = np.linspace(0, 10, 101)
    level = level_of(evidence(errors), px=32, reach_mm=[3.0])
    assert (level["reach_mm"], level["source"]) == (3.0, "given")
    assert level["coverage"] == pytest.approx((errors <= level["half_mm"]).mean())
    assert 0.55 < level["coverage"] < 0.65


def test_the_spacing_is_neither_finer_than_the_voxels_nor_coarser_than_the_anatomy() -> None:
    method = refiner(2, reach_mm=None)
    assert method.facts["voxel_mm"] == pytest.approx(1.2)
    level = method._level(0, evidence(np.full(40, 1e-3)))
    assert level["spacing_mm"] == pytest.approx(0.75 * 1.2)
    assert level_of({}, reach_mm=[1e3])["spacing_mm"] == pytest.approx(method.radius / 20)


def test_a_level_is_sized_anew_without_touching_those_before() -> None:
    method = refiner(2, levels=2, reach_mm=None)
    first, second = method.stages()
    method.begin(first, evidence(np.full(40, 3.0)))
    one = dict(method.facts["levels"][0])
    method.begin(second, evidence(np.full(40, 1.0)))
    assert method.facts["levels"][0] == one
    assert len(method.facts["levels"]) == 2
    assert method.facts["levels"][1]["reach_mm"] == pytest.approx(1.0)
    assert method.plan.facts["refine"]["levels"] == method.facts["levels"]  # so plan.json holds them


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 2, "reach_mm": [3.0]}, "1 lengths for 2 levels"),
        ({"only": True, "enabled": False}, "only=true"),
        ({"scales": []}, "scales"),
        ({"reach_mm": [-1.0], "levels": 1}, "reach_mm"),
        ({"px": 40}, "px"),
    ],
)
def test_impossible_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RefineConfig(**settings)


# ---------------------------------------------------------------------- frames


TURN = Pose(rotation_from_vector([0.5]), np.array([31.0, -12.0]), 1.2)


def test_a_vote_is_a_displacement_along_the_axes_of_the_pose() -> None:
    method = said([1.0, -0.5])
    image, _ = phantom.phantom(0, 2)
    start = Landmarks(phantom.NAMES, TURN.apply(method.mean))
    found = method.locate(image, start)
    cell = 4 * method.facts["levels"][0]["spacing_mm"]
    want = TURN.apply(method.mean + np.array([1.0, -0.5]) * cell)
    np.testing.assert_allclose(found.points, want, atol=1e-3)
    assert found.score is not None
    assert (found.score > 0.99).all()


def test_covariance_is_in_the_worlds_frame() -> None:
    method = said([0.0, 0.0], spread=np.array([2.0, 0.5]))
    image, _ = phantom.phantom(0, 2)
    found = method.locate(image, Landmarks(phantom.NAMES, TURN.apply(method.mean)))
    cell = 4 * method.facts["levels"][0]["spacing_mm"]
    own = np.array([[4.0, 1.0], [1.0, 0.25]]) + 0.02 * np.eye(2)
    want = (TURN.scale * cell) ** 2 * TURN.rotation @ own @ TURN.rotation.T
    assert found.covariance is not None
    np.testing.assert_allclose(found.covariance, np.broadcast_to(want, (5, 2, 2)), rtol=1e-3)


def test_landmarks_without_a_start_come_from_the_mean_shape() -> None:
    method = said([0.0, 0.0])
    image, _ = phantom.phantom(0, 2)
    whole = Landmarks(phantom.NAMES, TURN.apply(method.mean), radius90=np.ones(5))
    found = method.locate(image, phantom.without(whole, "b", "e"))
    np.testing.assert_allclose(found.points, whole.points, atol=1e-3)
    assert set(found.status) == {Status.DEFINED}
    assert found.radius90 is None  # that of the start says nothing of these points
    shuffled = method.locate(image, whole.select(["e", "c", "unknown", "a"]))
    assert shuffled.names == phantom.NAMES
    np.testing.assert_allclose(shuffled.points, whole.points, atol=1e-3)


def test_nothing_comes_of_nothing() -> None:
    method = said([1.0, 1.0])
    image, truth = phantom.phantom(0, 2)
    nothing = phantom.without(truth, *phantom.NAMES)
    assert not method.locate(image, nothing).defined.any()
    with pytest.raises(ValueError, match="first guess"):
        method.locate(image)
    method.use_levels(0)
    start = phantom.without(truth, "a")
    np.testing.assert_array_equal(method.locate(image, start).points, start.points)


def test_where_nothing_is_seen_the_guess_stands() -> None:
    method = said([1.0, 1.0], seen=-20.0, looks=4, passes=2)
    image, truth = phantom.phantom(0, 2)
    found = method.locate(image, displaced(truth, 0, 2.0))
    np.testing.assert_allclose(found.points, displaced(truth, 0, 2.0).points, atol=1e-9)
    assert found.score is not None
    assert (found.score < 0.01).all()


def test_a_landmark_is_as_present_as_the_less_sure_of_both_says() -> None:
    image, truth = phantom.phantom(0, 2)
    sure = np.linspace(0.1, 0.9, len(truth))
    for seen, least in ((20.0, 0.99), (-20.0, 0.0)):
        found = said([0, 0], seen=seen).locate(image, replace(truth, score=sure))
        alone = said([0, 0], seen=seen).locate(image, truth)
        assert found.score is not None and alone.score is not None
        assert (alone.score >= least).all() and (found.score <= sure).all()
        np.testing.assert_allclose(found.score, np.minimum(sure, alone.score))
    unsaid = said([0, 0]).locate(image, replace(truth, score=np.full(len(truth), np.nan)))
    assert unsaid.score is not None and (unsaid.score > 0.99).all()


def test_one_landmark_alone() -> None:
    image, truth = phantom.phantom(0, 2)
    one = [(image, truth.select(["c"]))]
    study = replace(phantom.study(one), names=("c",))
    plan = Plan(names=["c"], ndim=2, modality="xray", intensity=dict(study.intensity),
                facts={"refine": Refiner.prepare_facts(study, {})})  # fmt: skip
    method = Refiner(RefineConfig(**SMALL), plan)
    method.begin(method.stages()[0], {})
    case = phantom.training_cases(method, one)[0]
    example = method.examples(case, method.stages()[0], np.random.default_rng(0))
    assert example["patches"].shape[0] == 1
    found = method.locate(image, one[0][1])
    assert np.isfinite(found.points).all()


# ---------------------------------------------------------------------- what it is shown


def test_a_target_points_from_the_sub_images_centre_to_the_landmark() -> None:
    """The image is bright at one landmark only: its sub-image is bright where the target says, whatever the warp."""
    method = refiner(2, px=32, crop_share=0, intensity=0, warp_share=1.0, rotation_deg=20, reach_mm=[3.0], scales=[1.0])
    _, truth = phantom.phantom(0, 2)
    axes = phantom.oblique(2).axes / phantom.oblique(2).spacing * 0.3
    grid = Grid.centred((200, 220), axes, truth.points.mean(0))
    stage, world, seen = method.stages()[0], grid.points(), 0
    method.facts["voxel_mm"] = 0.3
    method.begin(stage, {})
    steps = (torch.arange(32) - 15.5) / 4  # cells
    for i in range(5):
        array = np.exp(-((world - truth.points[i]) ** 2).sum(-1) / (2 * 0.7**2)) * 255
        case = phantom.training_cases(method, [(Image(array[None].astype(np.float32), grid), truth)])[0]
        for seed in range(4):
            example = method.examples(case, stage, np.random.default_rng(seed))
            target, bright = example["target"][i], (example["patches"][i, 0] > 0.5).float()
            if target.abs().max() < 3:
                middle = torch.stack([bright.sum(0) @ steps, bright.sum(1) @ steps]) / bright.sum()
                assert (middle - target).abs().max() < 0.5  # the warp stretches the blob too
                seen += 1
    assert seen > 10


def test_an_image_that_ends_near_a_landmark() -> None:
    settings: dict[str, Any] = {"px": 32, "intensity": 0, "warp_share": 0, "rotation_deg": 0, "log_scale": 0,
                                "scales": [1.0, 2.0]}  # fmt: skip
    whole, cut = refiner(2, crop_share=0, **settings), refiner(2, crop_share=1, **settings)
    truth = phantom.phantom(0, 2)[1]
    grid = Grid.centred((200, 200), np.eye(2)[:, ::-1], truth.points.mean(0))
    bright = Image(np.ones((1, 200, 200), np.float32), grid)
    case = phantom.training_cases(whole, [(bright, truth)])[0]
    case = replace(case, images={k: Image(np.ones_like(v.array), v.grid) for k, v in case.images.items()})
    gone = kept = 0
    for seed in range(40):
        before, after = (m.examples(case, m.stages()[0], np.random.default_rng(seed)) for m in (whole, cut))
        for i in range(5):
            target = before["target"][i]
            inside = bool((target.abs() < 4).all())
            lost = bool((after["target"][i].abs() > 1e2).all())
            assert lost or torch.equal(after["target"][i], target)
            if not inside:
                continue
            column, row = (target * 4 + 15.5).round().int().clamp(0, 31).tolist()
            value = after["patches"][i, 0, row, column]
            near = after["patches"][i, 0, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            if near.min() == near.max():  # not just at the cut
                assert float(value) == (0.0 if lost else 1.0)
                gone, kept = gone + lost, kept + (not lost)
    assert gone > 10
    assert kept > 10


def test_what_is_not_annotated_is_masked() -> None:
    method = refiner(3)
    image, truth = phantom.phantom(0, 3)
    case = phantom.training_cases(method, [(image, phantom.without(truth, "b"))])[0]
    for seed in range(4):
        example = method.examples(case, method.stages()[0], np.random.default_rng(seed))
        assert example["mask"].tolist() == [1, 0, 1, 1, 1]
        assert all(torch.isfinite(x).all() for x in example.values())
    none = phantom.training_cases(method, [(image, phantom.without(truth, *phantom.NAMES))])[0]
    example = method.examples(none, method.stages()[0], np.random.default_rng(0))
    assert example["mask"].sum() == 0
    with torch.no_grad():
        loss = method.loss({k: v[None] for k, v in example.items()}, method.stages()[0])["loss"]
    assert float(loss) == 0


# ---------------------------------------------------------------------- learning, and using what was learned


@pytest.fixture(scope="module")
def trained() -> tuple[Refiner, list[tuple[Image, Landmarks]]]:
    use_bf16(False)
    cases = [phantom.phantom(i, 2) for i in range(6)]
    method = refiner(2, cases, px=32, steps=80, levels=2, reach_mm=[5.0, 1.5], looks=2, warp_share=0.3)
    phantom.train(method, cases[:5], pool=80)
    return method.eval(), cases


def _errors(method: Refiner, case: tuple[Image, Landmarks], mm: float = 4.0) -> Array:
    image, truth = case
    return method.locate(image, displaced(truth, 0, mm)).errors_to(truth)


def test_it_lowers_the_error(trained: tuple[Refiner, list[tuple[Image, Landmarks]]]) -> None:
    method, cases = trained
    start = 4.0  # mm, with pixels of 1.2 x 1.7 mm
    for count, most in ((1, start / 2), (2, start / 4)):
        method.use_levels(count)
        assert np.mean([_errors(method, c, start).mean() for c in cases[:5]]) < most
        assert _errors(method, cases[5], start).mean() < 1.5 * most  # a new one


@pytest.mark.parametrize("degrees", [90.0, 143.0])
def test_a_rigid_motion_moves_the_answer_with_it(
    trained: tuple[Refiner, list[tuple[Image, Landmarks]]], degrees: float
) -> None:
    method, cases = trained
    image, truth = cases[5]
    start = displaced(truth, 1, 3.0)
    motion = Pose(rotation_from_vector([np.radians(degrees)]), np.array([70.0, -250.0]))
    here = method.locate(image, start)
    there = method.locate(phantom.moved(image, motion), start.with_points(motion.apply(start.points)))
    np.testing.assert_allclose(there.points, motion.apply(here.points), atol=0.02)
    assert here.covariance is not None
    assert there.covariance is not None
    turned = motion.rotation @ here.covariance @ motion.rotation.T
    np.testing.assert_allclose(there.covariance, turned, atol=0.02 * np.abs(turned).max())


def test_the_same_image_gives_the_same_answer(trained: tuple[Refiner, list[tuple[Image, Landmarks]]]) -> None:
    method, cases = trained
    image, truth = cases[0]
    start = displaced(truth, 2, 3.0)
    first = method.locate(image, start)
    np.testing.assert_array_equal(method.locate(image, start).points, first.points)
    method.config.chunk = 2
    try:
        np.testing.assert_allclose(method.locate(image, start).points, first.points, atol=1e-3)
    finally:
        method.config.chunk = 64


def test_an_image_smaller_than_a_sub_image(trained: tuple[Refiner, list[tuple[Image, Landmarks]]]) -> None:
    method, cases = trained
    image, truth = cases[0]
    index = np.clip(image.grid.to_index(truth["a"]).round().astype(int), 3, None)
    cut = image.array[:, index[0] - 3 : index[0] + 4, index[1] - 3 : index[1] + 4]
    small = Image(cut, Grid.from_axes(cut.shape[1:], image.grid.axes, image.grid.to_world(index - 3)))
    found = method.locate(small, truth)
    assert np.isfinite(found.points).all()
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    case = phantom.training_cases(method, [(small, truth)])[0]
    assert all(
        torch.isfinite(x).all() for x in method.examples(case, method.stages()[0], np.random.default_rng(0)).values()
    )


@pytest.mark.parametrize("trunk", ["grouped", "shared"])
def test_in_3d(trunk: str) -> None:
    cases = [phantom.phantom(i, 3) for i in range(2)]
    method = refiner(3, cases, trunk=trunk, steps=4, levels=2, reach_mm=[4.0, 2.0], batch=2)
    losses = phantom.train(method, cases, pool=4)
    assert set(losses) == {"refine1", "refine2"}
    image, truth = cases[0]
    found = method.locate(image, phantom.without(displaced(truth, 0, 3.0), "d"))
    assert np.isfinite(found.points).all()
    assert found.covariance is not None
    assert found.score is not None
    np.testing.assert_allclose(found.covariance, np.swapaxes(found.covariance, 1, 2), rtol=1e-4)
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    assert ((found.score >= 0) & (found.score <= 1)).all()
    motion = Pose(random_rotation(np.random.default_rng(0), 3), np.array([5.0, -80.0, 33.0]))
    start = displaced(truth, 0, 2.0)
    here = method.locate(image, start)
    there = method.locate(phantom.moved(image, motion), start.with_points(motion.apply(start.points)))
    np.testing.assert_allclose(there.points, motion.apply(here.points), atol=0.05)


# ---------------------------------------------------------------------- another model's weights


def test_the_frame_of_another_models_refiner() -> None:
    cases = [phantom.phantom(i, 2) for i in range(3)]
    old = refiner(2, cases).plan
    turn = Pose(rotation_from_vector([0.7]), np.zeros(2), 1.3)
    moved = Landmarks(phantom.NAMES, turn.apply(np.asarray(old.facts["refine"]["mean_shape"])))
    facts = {**old.facts["refine"], "mean_shape": moved.points.tolist(), "radius_mm": 99.0}
    names = ["e", "c", "a"]
    own = moved.select(names).points @ rotation_from_vector([1.0]).T
    out = Refiner.adapt_facts({**facts, "mean_shape": own.tolist(), "radius_mm": 50.0}, names,
                              old.model_copy(update={"facts": {"refine": facts}}))  # fmt: skip
    np.testing.assert_allclose(out["mean_shape"], moved.select(names).points, atol=1e-6)
    assert out["radius_mm"] == 99.0
    assert Refiner.adapt_facts(facts, list(phantom.NAMES), old.model_copy(update={"facts": {}})) == facts


def test_each_landmark_takes_the_network_of_its_name(
    trained: tuple[Refiner, list[tuple[Image, Landmarks]]],
) -> None:
    method, cases = trained
    names = ["d", "a", "e", "c", "b"]
    mean = method.mean[[phantom.NAMES.index(n) for n in names]]
    facts = {"refine": {**method.facts, "mean_shape": mean.tolist()}}
    plan = method.plan.model_copy(update={"names": names, "facts": facts})
    other = Refiner(method.config, plan)
    other.load_state_dict(other.adapt_state(method.state_dict(), method.plan))
    image, truth = cases[0]
    start = displaced(truth, 0, 2.0)
    assert other.locate(image, start).errors_to(truth).mean() < 0.5 * start.errors_to(truth).mean()
    assert procrustes(mean, truth.select(names).points).scale == pytest.approx(
        procrustes(method.mean, truth.points).scale
    )


def test_stages_train_one_level_each() -> None:
    method = refiner(2, levels=2, reach_mm=None)
    stages = method.stages()
    assert [s.name for s in stages] == ["refine1", "refine2"]
    assert [s.modules for s in stages] == [("nets.0",), ("nets.1",)]
    assert all(isinstance(s, Stage) and "ema" in s.options for s in stages)


def test_an_absent_landmark_teaches_that_it_is_not_there_and_an_unknown_one_nothing() -> None:
    image, truth = phantom.phantom(3, 2)
    method = refiner(2, [(image, truth)], crop_share=0.0)
    points = truth.points.copy()
    points[[1, 2]] = np.nan
    states = ["defined", "absent", "unannotated", *["defined"] * (len(truth) - 3)]
    marks = Landmarks(truth.names, points, tuple(Status(s) for s in states))
    case = TrainingCase("a", method.working_images(image), marks)
    batch = method.examples(case, method.stages()[0], np.random.default_rng(0))
    assert batch["mask"].tolist() == [1.0, 1.0, 0.0, *[1.0] * (len(truth) - 3)]
    half = method.px / STRIDE / 2
    assert (batch["target"][1].abs() > half).all() and (batch["target"][0].abs() < 2 * half).all()


def test_a_case_whose_pose_was_lost_does_not_size_the_sub_images() -> None:
    level = level_of(evidence(np.r_[np.full(99, 0.5), 1e4]), reach_mm=None)
    assert level["reach_mm"] == pytest.approx(0.5)
    assert (level["errors"], level["coverage"]) == (100, 0.99)  # but it is told


def test_few_errors_still_say_how_large_they_are() -> None:
    usual = level_of({}, reach_mm=None)["reach_mm"]
    few = level_of(evidence(np.full(8, 1.5 * usual)), reach_mm=None)
    assert few["reach_mm"] == pytest.approx(1.5 * usual)
