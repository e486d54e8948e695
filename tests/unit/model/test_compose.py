"""Alignment in the composed model: what goes into the template's world comes back from it, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import phantom
from anatomark import methods
from anatomark.cases.case import Case
from anatomark.core.alignment import Alignment
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import resample
from anatomark.core.shape import Pose, rotation_angle, rotation_from_vector
from anatomark.errors import InputError
from anatomark.methods.base import Batch, Evidence, Facts, Method, MethodConfig, Stage, Study
from anatomark.model.align.aligner import Aligner
from anatomark.model.compose import Composed, Composition, Plan, upright
from anatomark.model.config import make_config

QUICK = ["align.step_deg=25", "align.starts=4", "align.finalists=2"]
ON = [*QUICK, "align.enabled=true"]
SMALL_REFINER = ["refine.enabled=true", "refine.levels=1", "refine.px=16", "refine.width=4", "refine.steps=1"]


class FixedConfig(MethodConfig):
    """No settings."""


class FixedFacts(Facts):
    mean: list[list[float]]
    spread: float
    corners: list[list[float]]


class Fixed(Method):
    """Says that every landmark lies where its mean over the training cases does, whatever the image shows."""

    Config: ClassVar[type[MethodConfig]] = FixedConfig
    Facts: ClassVar[type[Facts]] = FixedFacts
    presets = {"recommended": {}}

    def __init__(self, config: FixedConfig, facts: FixedFacts):
        super().__init__()
        self.config, self.facts = config, facts
        self.mean = np.array(facts.mean)
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.seen: list[Image] = []

    @classmethod
    def prepare(cls, config: Any, study: Study) -> FixedFacts:
        points = [c.landmarks.select(study.names).points for c in study.cases]
        corners = [c.image().grid.to_world(np.zeros(c.landmarks.ndim)).tolist() for c in study.cases]
        return FixedFacts(
            **study.facts(), mean=np.mean(points, 0).tolist(), spread=float(np.std(points, 0).max()), corners=corners
        )

    def stages(self) -> list[Stage]:
        return [Stage("fixed", 2, 2)]

    def working_images(self, image: Image) -> dict[str, Image]:
        return {"image": image}

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        corner = case.images["image"].grid.to_world(np.zeros(case.landmarks.ndim))
        return {"target": torch.from_numpy(case.landmarks.points), "corner": torch.from_numpy(corner)}

    def collect(self, cases: Any, stage: Stage, rng: np.random.Generator) -> Iterator[Batch]:
        return iter([self.examples(cases[i], stage, rng) for i in range(len(cases))])

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        self.seen.append(image)
        n, d = self.mean.shape
        return Landmarks(
            tuple(self.facts.names), self.mean, np.full(n, "defined"), covariance=np.tile(np.eye(d), (n, 1, 1))
        )


class Wanting(Fixed):
    """Its author wants 3D images aligned."""

    aligned: ClassVar[bool] = True


class Bound(Wanting):
    """Reads voxels along the image's axes."""

    axis_bound: ClassVar[bool] = True


@pytest.fixture(autouse=True, scope="module")
def table() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for cls in (Fixed, Wanting, Bound):
        methods.add(cls.__name__.lower(), cls)
    yield
    for cls in (Fixed, Wanting, Bound):
        del methods.TABLE[cls.__name__.lower()]
    torch.set_num_threads(threads)


def study(ndim: int) -> Study:
    """Four phantoms."""
    return phantom.study([phantom.phantom(seed, ndim) for seed in range(4)])


def composed(
    name: str, ndim: int, *assignments: str, change: Callable[[Study], Study] | None = None, old: Plan | None = None
) -> Composed:
    """A model of four phantoms, as ``fit`` makes it."""
    parts = Composition.of(make_config(method=name, assignments=list(assignments)))
    cases = study(ndim)
    return parts.build(parts.prepare(change(cases) if change else cases, old))


def facts(model: Composed) -> FixedFacts:
    assert isinstance(model.method.facts, FixedFacts)
    return model.method.facts


def case_of(model: Composed, image: Image, truth: Landmarks) -> Case:
    """As the store gives it to the training."""
    images, alignment = model.working_images(image)
    return Case("case", given=truth, images=images, alignment=alignment)


def motion_of(ndim: int, degrees: float = 35.0) -> Pose:
    turn = rotation_from_vector(np.radians([degrees] if ndim == 2 else np.array([0.48, -0.6, 0.64]) * degrees))
    return Pose(turn, np.array([9.0, -14, 20])[:ndim])


def aligner_of(model: Composed) -> Aligner:
    assert model.aligner is not None
    return model.aligner


# ---------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("name", "ndim", "assignments", "aligns"),
    [
        ("fixed", 3, QUICK, False),
        ("fixed", 3, ON, True),
        ("fixed", 2, ON, True),
        ("wanting", 3, QUICK, True),
        ("wanting", 2, QUICK, False),  # projections of a head that nods are no transforms of each other
        ("wanting", 2, ON, True),
        ("wanting", 3, [*QUICK, "align.enabled=false"], False),
    ],
)
def test_who_is_aligned(name: str, ndim: int, assignments: list[str], aligns: bool) -> None:
    model = composed(name, ndim, *assignments)
    image, _ = phantom.phantom(7, ndim)
    assert (model.plan.align is not None) == aligns
    assert (model.working_images(image)[1] is not None) == aligns
    assert (model.find(image).alignment is not None) == aligns


@pytest.mark.parametrize("name", ["fixed", "wanting"])
def test_a_method_alone_gets_the_image_as_it_is(name: str) -> None:
    model = composed(name, 2)
    assert model.plan.align is None and model.plan.refine is None
    image, _ = phantom.phantom(7, 2)
    np.testing.assert_array_equal(model.locate(image).points, facts(model).mean)
    assert model.method.seen[0] is image


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_turned_image_gives_the_turned_points(ndim: int) -> None:
    model = composed("fixed", ndim, *ON)
    image, truth = phantom.phantom(11, ndim)
    motion = motion_of(ndim)
    here, (there, alignment) = model.locate(image), model.find(phantom.moved(image, motion))
    assert here.errors_to(truth).mean() < 2.5  # the mean shape, laid over what is seen
    assert np.linalg.norm(there.points - motion.apply(here.points), axis=1).max() < 2
    assert there.errors_to(truth.with_points(motion.apply(truth.points))).mean() < 2.5
    assert alignment is not None and alignment.seconds > 0
    assert here.covariance is not None and there.covariance is not None
    np.testing.assert_allclose(np.linalg.det(there.covariance), np.linalg.det(here.covariance), rtol=0.2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_preparation_sees_all_cases_in_one_world(ndim: int) -> None:
    """However they lie in their own; so the mean of turned cases is no blur."""

    def turn(study: Study) -> Study:
        cases = []
        for i, case in enumerate(study.cases):
            m = motion_of(ndim, 25.0 * i)
            points = case.landmarks.with_points(m.apply(case.landmarks.points))
            cases.append(replace(case, given=points, held=phantom.moved(case.image(), m)))
        return replace(study, cases=cases)

    plain, turned = (facts(composed("fixed", ndim, *ON, change=c)) for c in (None, turn))
    assert turned.spread < 2
    shift = np.linalg.norm(np.ptp(plain.corners, axis=0))
    assert np.linalg.norm(np.ptp(turned.corners, axis=0)) < shift + 5  # the images came along
    away = [np.linalg.norm(np.subtract(f.mean[0], f.mean[1])) for f in (plain, turned)]
    assert abs(away[0] - away[1]) < 1


@pytest.mark.parametrize("name", ["fixed", "bound"])
def test_training_is_in_the_world_in_which_points_are_located(name: str) -> None:
    model = composed(name, 3, *ON)
    image, truth = phantom.phantom(11, 3)
    case, (stage, *_), rng = case_of(model, image, truth), model.stages(), np.random.default_rng(0)
    batch = model.examples(case, stage, rng)
    alignment = aligner_of(model).align(image)
    np.testing.assert_allclose(batch["target"], alignment.to_template(truth).points)
    model.locate(image)
    seen = model.method.seen[0].grid.to_world(np.zeros(3))
    np.testing.assert_allclose(batch["corner"], seen)
    (other,) = model.collect([case], stage, rng) or ()
    np.testing.assert_array_equal(other["target"], batch["target"])
    back = alignment.from_template(Landmarks(truth.names, batch["target"].numpy()))
    np.testing.assert_allclose(back.points, truth.points, atol=1e-9)


# ---------------------------------------------------------------------- given alignments


def test_a_given_alignment_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = composed("fixed", 3, *ON)
    image, _ = phantom.phantom(11, 3)
    first, alignment = model.find(image)

    def searched(self: Aligner, image: Image) -> Alignment:
        raise AssertionError("searched")

    monkeypatch.setattr(Aligner, "align", searched)
    again = model.find(image, alignment)
    np.testing.assert_array_equal(again.landmarks.points, first.points)
    assert again.alignment is alignment
    other = np.eye(4)
    other[:3, 3] = 5, 6, 7
    moved = model.find(image, Alignment(other)).landmarks
    np.testing.assert_allclose(moved.points, np.add(facts(model).mean, [5, 6, 7]))
    with pytest.raises(AssertionError, match="searched"):
        model.locate(image)


# ---------------------------------------------------------------------- voxels


@pytest.mark.parametrize("ndim", [2, 3])
def test_only_methods_bound_to_axes_get_other_voxels(ndim: int) -> None:
    image, _ = phantom.phantom(11, ndim)
    free, bound = composed("fixed", ndim, *ON), composed("bound", ndim, *ON)
    free.locate(image), bound.locate(image)
    seen = free.method.seen[0]
    assert seen.array is image.array
    assert not np.allclose(seen.grid.affine, image.grid.affine)
    read = bound.method.seen[0]
    np.testing.assert_allclose(read.grid.axes, np.eye(ndim)[:, ::-1] * seen.grid.spacing.min())
    np.testing.assert_allclose(read.array, resample(seen, read.grid, fill=float(image.array.min())).array, atol=1)
    landmark = facts(bound).mean[0]  # the brightest: it shines in both
    for one in (seen, read):
        at = tuple(np.round(one.grid.to_index(landmark)).astype(int))
        assert one.array[0][at] > 0.4 * one.array.max()


@pytest.mark.parametrize("ndim", [2, 3])
def test_upright_covers_the_turned_grid(ndim: int) -> None:
    grid = phantom.oblique(ndim, 30)
    straight = upright(grid)
    np.testing.assert_allclose(straight.axes, np.eye(ndim)[:, ::-1] * grid.spacing.min())
    corners = grid.to_world(np.array(list(np.ndindex(*(2,) * ndim))) * (np.array(grid.shape) - 1))
    assert straight.contains(corners).all()
    assert np.prod(straight.extent_mm) < 4 * np.prod(grid.extent_mm)
    same = upright(Grid.centred((4, 6, 5)[:ndim], np.eye(ndim)[:, ::-1] * 1.5, np.zeros(ndim)))
    assert same.shape == (4, 6, 5)[:ndim]


# ---------------------------------------------------------------------- weights, plans, refiner


@pytest.mark.parametrize("more", [[], SMALL_REFINER, ["align.enabled=false"], ["align.enabled=false", *SMALL_REFINER]])
def test_a_model_is_its_plan_and_its_weights(more: list[str]) -> None:
    model = composed("wanting", 3, *QUICK, *more)
    model.begin(model.stages()[-1], Evidence())  # which sizes the refiner
    plan = Plan.from_json(json.loads(json.dumps(model.plan.to_json())), Wanting, "plan.json")
    assert plan == model.plan
    again = model.parts.build(plan)
    again.load_state_dict(model.state_dict())
    assert all(k.startswith(("method.", "refine.")) for k in model.state_dict())
    image, _ = phantom.phantom(11, 3)
    np.testing.assert_array_equal(again.locate(image).points, model.locate(image).points)


def test_a_damaged_plan_is_refused_where_it_is_damaged() -> None:
    plain = composed("fixed", 3, *ON, *SMALL_REFINER).plan.to_json()
    for change, where in (
        ({"facts": {**plain["facts"], "spread": "wide"}}, "plan.json: spread"),
        ({"facts": {**plain["facts"], "align": {}}}, r"plan.json: facts.align: \w+: is missing"),
        ({"facts": {**plain["facts"], "refine": {"radius": 3}}}, "plan.json: facts.refine: unknown key 'radius'"),
        ({"facts": {}}, "plan.json: mean: is missing"),
        ({"dimension": 3}, "plan.json: unknown key 'dimension'"),
    ):
        with pytest.raises(InputError, match=where):
            Plan.from_json({**plain, **change}, Fixed, "plan.json")
    with pytest.raises(InputError, match=r"plan.json: .* is missing"):
        Plan.from_json([], Fixed, "plan.json")


def test_weights_go_from_any_composition_into_any_other() -> None:
    compositions = ([], ON, SMALL_REFINER, [*ON, *SMALL_REFINER])
    models = [composed("fixed", 3, *more) for more in compositions]
    for old in models:
        torch.nn.init.constant_(old.method.weight, 3.0)
        for new in models:
            start = new.start_from(old.state_dict(), old.plan)
            both = new.refine is not None and old.refine is not None
            assert start["method.weight"].tolist() == [3, 3]
            assert any(k.startswith("refine.") for k in start) == both
            new.load_state_dict({**new.state_dict(), **start})


def test_stages_have_one_name_each_and_go_to_their_part_by_value() -> None:
    class Posed(Fixed):
        def stages(self) -> list[Stage]:
            return [Stage("refine1", 2, 2), Stage("refine_pose", 2, 2, index=1)]

    methods.add("posed", Posed)
    model = composed("posed", 3, *SMALL_REFINER)
    del methods.TABLE["posed"]
    assert [s.name for s in model.stages()] == ["refine1", "refine_pose", "refine.refine1"]
    assert [(s.part, s.index) for s in model.stages()] == [("method", 0), ("method", 1), ("refine", 0)]
    image, truth = phantom.phantom(11, 3)
    case, rng = case_of(model, image, truth), np.random.default_rng(0)
    keys = []
    for stage in model.stages():
        model.begin(stage, Evidence())
        keys.append(set(model.examples(case, stage, rng)))
    assert keys[0] == keys[1] == {"target", "corner"} and "patches" in keys[2]
    assert set(model.before_stages(image)) == {"refine.refine1"}


def test_the_template_of_the_other_run_is_kept() -> None:
    def later(study: Study) -> Study:
        return replace(study, cases=study.cases[2:])

    first, fewer = composed("fixed", 3, *ON), composed("fixed", 3, *ON, change=later)
    started = composed("fixed", 3, *ON, change=later, old=first.plan)
    assert started.plan.align == first.plan.align != fewer.plan.align
    assert facts(started).spread < 2


@pytest.mark.parametrize("only", [False, True])
def test_the_refiner_lives_in_the_template_too(only: bool) -> None:
    """Alone after an aligned model as well: its training sees the world that its use sees."""
    model = composed("fixed", 3, *ON, *SMALL_REFINER)
    if only:
        model = composed("fixed", 3, *ON, *SMALL_REFINER, "refine.only=true", old=model.plan)
    assert [s.name for s in model.stages()] == (["refine1"] if only else ["fixed", "refine1"])
    image, truth = phantom.phantom(11, 3)
    motion = motion_of(3)
    image, truth = phantom.moved(image, motion), truth.with_points(motion.apply(truth.points))
    working, alignment = model.working_images(image)
    assert ("method/image" in working) != only
    assert alignment is not None
    corner = alignment.to_template(Landmarks(("corner",), image.grid.to_world(-0.5 * np.ones(3))[None])).points[0]
    refined = [v for k, v in working.items() if k.startswith("refine/")]
    assert refined
    for one in refined:
        np.testing.assert_allclose(one.grid.to_world(-0.5 * np.ones(3)), corner, atol=1e-6)
    model.begin(model.stages()[-1], Evidence())
    assert model.locate(image).errors_to(truth).mean() < 6  # barely trained, but in the image's world
    before = model.before_stages(image)["refine1"]
    mean = Landmarks(truth.names, facts(model).mean)
    np.testing.assert_allclose(before.points, alignment.from_template(mean).points, atol=1e-6)


def test_an_image_of_another_size_is_found_at_its_own_scale() -> None:
    model = composed("fixed", 3, *ON)
    image, truth = phantom.phantom(11, 3)
    larger = Grid.from_axes(image.grid.shape, 1.2 * image.grid.axes, 1.2 * image.grid.origin)
    points: Array = 1.2 * truth.points
    landmarks, alignment = model.find(Image(image.array, larger))
    assert landmarks.errors_to(truth.with_points(points)).mean() < 3
    assert alignment is not None
    turn = alignment.affine[:3, :3]
    assert np.cbrt(np.linalg.det(turn)) > 1.1
    assert rotation_angle(turn / np.cbrt(np.linalg.det(turn))) < 20
