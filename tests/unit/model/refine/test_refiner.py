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
from anatomark.cases.case import Case
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import Pose, procrustes, random_rotation, rotation_from_vector
from anatomark.methods.base import Evidence, Facts
from anatomark.methods.kit.precision import use_bf16
from anatomark.model.refine.refiner import STRIDE, RefineConfig, Refiner
from anatomark.model.start import moved_weights

pytestmark = pytest.mark.usefixtures("float32")
SMALL: dict[str, Any] = {"levels": 1, "px": 16, "width": 8, "batch": 8, "reach_mm": [4.0]}


def refiner(ndim: int, cases: list[tuple[Image, Landmarks]] | None = None, **settings: Any) -> Refiner:
    """Untrained, of phantoms, with all its levels sized."""
    config = RefineConfig(**{**SMALL, **settings})
    facts = Refiner.prepare(config, phantom.study(cases or [phantom.phantom(0, ndim)]))
    torch.manual_seed(2)
    method = Refiner(config, facts)
    for stage in method.stages():
        method.begin(stage, Evidence())
    return method.eval()


def with_voxel(method: Refiner, mm: float) -> None:
    """The level sized for images of such voxels."""
    method.facts = method.facts.model_copy(update={"voxel_mm": mm})
    method.begin(method.stages()[0], Evidence())


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
        from anatomark.model.refine.net import cell_centres

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


# ---------------------------------------------------------------------- facts, settings


def test_the_anatomy_is_that_of_the_method_before_where_it_has_one() -> None:
    study = phantom.study([phantom.phantom(i, 2) for i in range(3)])
    config = RefineConfig(**SMALL)
    own = Refiner.prepare(config, study)
    before = phantom.untrained(2).facts.model_copy(update={"radius_mm": 77.0, "names": ["a", "b", "c", "d", "e"]})
    taken = Refiner.prepare(config, replace(study, known=before))
    assert (taken.radius_mm, taken.mean_shape, taken.warp_mm) == (77.0, before.mean_shape, before.warp_mm)
    assert own.radius_mm != 77.0
    assert taken.voxel_mm == own.voxel_mm == pytest.approx(1.2)
    few = Facts(
        names=["c", "a"], ndim=2, modality="mr", intensity={"kind": "window", "low": 0.0, "high": 1.0}
    )  # of a method that knows no anatomy
    some = Refiner.prepare(config, replace(study, known=few))
    assert some.names == ["c", "a"]
    assert len(some.mean_shape) == 2
    assert set(own.own()) == {"mean_shape", "radius_mm", "warp_mm", "voxel_mm", "levels"}


def test_a_level_is_sized_anew_without_touching_those_before() -> None:
    method = refiner(2, levels=2, reach_mm=None)
    first, second = method.stages()
    whole = method.facts
    method.begin(first, far_off(3.0))
    one = method.facts.levels[0]
    assert len(method.facts.levels) == 1
    method.begin(second, far_off(1.0))
    assert method.facts.levels[0] == one
    assert one.reach_mm == pytest.approx(3.0)
    assert method.facts.levels[1].reach_mm == pytest.approx(1.0)
    assert [x.errors for x in whole.levels] == [0, 0]  # facts are replaced, never changed
    assert "level 2: sub-images of 16 pixels" in method.notes()[1]


def far_off(mm: float) -> Evidence:
    """40 predictions that err by so much."""
    truth = Landmarks(("a",), np.zeros((1, 2)))
    return Evidence({str(i): truth.with_points(np.array([[0.6, 0.8]]) * mm) for i in range(40)},
                    {str(i): truth for i in range(40)})  # fmt: skip


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
    cell = 4 * method.facts.levels[0].spacing_mm
    want = TURN.apply(method.mean + np.array([1.0, -0.5]) * cell)
    np.testing.assert_allclose(found.points, want, atol=1e-3)
    assert found.score is not None
    assert (found.score > 0.99).all()


def test_covariance_is_in_the_worlds_frame() -> None:
    method = said([0.0, 0.0], spread=np.array([2.0, 0.5]))
    image, _ = phantom.phantom(0, 2)
    found = method.locate(image, Landmarks(phantom.NAMES, TURN.apply(method.mean)))
    cell = 4 * method.facts.levels[0].spacing_mm
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
    start = phantom.without(truth, "a")
    before = method.before_stages(image, start)
    assert list(before) == ["refine1"]
    np.testing.assert_array_equal(before["refine1"].points, start.points)


def test_the_score_is_the_lower_of_both() -> None:
    image, truth = phantom.phantom(0, 2)
    start = replace(truth, score=np.array([0.0, 0.2, 0.7, 1.0, np.nan]))
    surely, hardly = (said([0.0, 0.0], seen=x).locate(image, start).score for x in (20.0, -20.0))
    assert surely is not None and hardly is not None
    np.testing.assert_allclose(surely, [0.0, 0.2, 0.7, 1.0, 1.0], atol=0.01)
    np.testing.assert_allclose(hardly, 0.0, atol=0.01)


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
    config = RefineConfig(**SMALL)
    method = Refiner(config, Refiner.prepare(config, study))
    method.begin(method.stages()[0], Evidence())
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
    with_voxel(method, 0.3)
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


def _errors(method: Refiner, case: tuple[Image, Landmarks], mm: float, *, first_only: bool) -> Array:
    image, truth = case
    start = displaced(truth, 0, mm)
    refined = method.before_stages(image, start)["refine2"] if first_only else method.locate(image, start)
    return refined.errors_to(truth)


def test_it_lowers_the_error(trained: tuple[Refiner, list[tuple[Image, Landmarks]]]) -> None:
    method, cases = trained
    start = 4.0  # mm, with pixels of 1.2 x 1.7 mm
    for first_only, most in ((True, start / 2), (False, start / 4)):
        means = [_errors(method, c, start, first_only=first_only).mean() for c in cases]
        assert np.mean(means[:5]) < most
        assert means[5] < 1.5 * most  # a new one


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
    own = refiner(2, [phantom.phantom(i, 2) for i in range(3)]).facts
    turn = Pose(rotation_from_vector([0.7]), np.zeros(2), 1.3)
    moved = Landmarks(phantom.NAMES, turn.apply(np.asarray(own.mean_shape)))
    old = own.model_copy(update={"mean_shape": moved.points.tolist(), "radius_mm": 99.0})
    names = ["e", "c", "a"]
    turned = moved.select(names).points @ rotation_from_vector([1.0]).T
    new = own.model_copy(update={"names": names, "mean_shape": turned.tolist(), "radius_mm": 50.0})
    laid = Refiner.adapted(new, old)
    np.testing.assert_allclose(laid.mean_shape, moved.select(names).points, atol=1e-6)
    assert laid.radius_mm == 99.0
    few = old.model_copy(update={"names": ["e", "c", "x", "y", "z"]})
    assert Refiner.adapted(new, few) is new


def taken(new: Refiner, old: Refiner) -> dict[str, torch.Tensor]:
    return moved_weights(old.state_dict(), new.per_landmark(), new.names, old.names, new.state_dict())


def test_each_landmark_takes_the_network_of_its_name(
    trained: tuple[Refiner, list[tuple[Image, Landmarks]]],
) -> None:
    method, cases = trained
    names = ["d", "a", "e", "c", "b"]
    mean = method.mean[[phantom.NAMES.index(n) for n in names]]
    other = Refiner(method.config, method.facts.model_copy(update={"names": names, "mean_shape": mean.tolist()}))
    other.load_state_dict(taken(other, method))
    image, truth = cases[0]
    start = displaced(truth, 0, 2.0)
    assert other.locate(image, start).errors_to(truth).mean() < 0.5 * start.errors_to(truth).mean()
    assert procrustes(mean, truth.select(names).points).scale == pytest.approx(
        procrustes(method.mean, truth.points).scale
    )


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["grouped", "shared"])
def test_weights_of_other_landmarks_go_by_name(trunk: str) -> None:
    old = refiner(2, trunk=trunk)
    for name, value in old.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.3)
    mean = old.facts.mean_shape[:3]
    new = Refiner(old.config, old.facts.model_copy(update={"names": ["e", "x", "b"], "mean_shape": mean})).eval()
    fresh = {k: v.clone() for k, v in new.state_dict().items()}
    new.load_state_dict(taken(new, old))
    patches = torch.rand(2, 5, 2, 16, 16)
    want, got = old.nets[0](patches)[0], new.nets[0](patches[:, [4, 0, 1]])[0]
    torch.testing.assert_close(got[:, [0, 2]], want[:, [4, 1]], rtol=1e-4, atol=1e-5)
    if trunk == "grouped":  # the new landmark's network is as it was
        torch.testing.assert_close(new.nets[0].convs[0].weight[4:8], fresh["nets.0.convs.0.weight"][4:8])
    else:
        torch.testing.assert_close(new.nets[0].weight[1], old.nets[0].weight.mean(0))


def test_stages_train_one_level_each() -> None:
    method = refiner(2, levels=2, reach_mm=None)
    stages = method.stages()
    assert [s.name for s in stages] == ["refine1", "refine2"]
    assert [s.modules for s in stages] == [("nets.0",), ("nets.1",)]
    assert [s.index for s in stages] == [0, 1]
    assert all(s.ema == 0.998 for s in stages)


def test_an_absent_landmark_teaches_that_it_is_not_there_and_an_unknown_one_nothing() -> None:
    image, truth = phantom.phantom(3, 2)
    method = refiner(2, [(image, truth)], crop_share=0.0)
    case = Case("a", given=phantom.partly_known(truth), images=method.working_images(image))
    batch = method.examples(case, method.stages()[0], np.random.default_rng(0))
    assert batch["mask"].tolist() == [1.0, 1.0, 0.0, *[1.0] * (len(truth) - 3)]
    half = method.px / STRIDE / 2
    assert (batch["target"][1].abs() > half).all() and (batch["target"][0].abs() < 2 * half).all()


def test_neither_stages_nor_working_images_go_by_a_part_of_their_names() -> None:
    """A method before the refiner may have a stage ``refine_pose`` and an image ``refine.pose``."""
    case = phantom.phantom(0, 2)
    method = refiner(2, [case])
    stage = replace(method.stages()[0], name="refine_pose")
    method.begin(stage, Evidence())
    own = phantom.training_cases(method, [case])[0]
    coarse = Image(np.full((1, 4, 4), 9.0, np.float32), Grid.centred((4, 4), np.eye(2) * 1e-3, np.zeros(2)))
    more = replace(own, images={"refine.pose": coarse, **own.images})
    one, other = (method.examples(c, stage, np.random.default_rng(0)) for c in (own, more))
    assert torch.equal(one["patches"], other["patches"])
