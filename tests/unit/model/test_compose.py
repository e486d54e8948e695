"""Alignment in the composed model: what goes into the template's frame comes back from it, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import phantom
from anatomark import methods
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import resample
from anatomark.core.shape import Pose, rotation_angle, rotation_from_vector
from anatomark.methods.base import Batch, Method, MethodConfig, Plan, Stage, Study, TrainingCase
from anatomark.model.align.aligner import Aligner, Alignment
from anatomark.model.compose import (
    ALIGN,
    FRAME,
    KNOWN,
    REFINE,
    Composed,
    assembled,
    framed,
    part_of,
    upright,
    with_frame,
)
from anatomark.model.config import RunConfig, make_config

QUICK = ["align.step_deg=25", "align.starts=4", "align.finalists=2"]
ON = [*QUICK, "align.enabled=true"]


class FixedConfig(MethodConfig):
    """No settings."""


class Fixed(Method):
    """Says that every landmark lies where its mean over the training cases does, whatever the image shows."""

    Config: ClassVar[type[MethodConfig]] = FixedConfig
    presets = {"recommended": {}}

    def __init__(self, config: FixedConfig, plan: Plan):
        super().__init__()
        self.config, self.plan = config, plan
        self.mean = np.array(plan.facts["mean"])
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.seen: list[Image] = []
        self.starts: list[Landmarks | None] = []

    @classmethod
    def prepare(cls, config: Any, study: Study) -> Plan:
        points = [c.landmarks.select(study.names).points for c in study.cases]
        corners = [c.image().grid.to_world(np.zeros(c.landmarks.ndim)).tolist() for c in study.cases]
        return Plan(
            names=list(study.names), ndim=points[0].shape[1], modality=study.modality, intensity=dict(study.intensity),
            facts={"mean": np.mean(points, 0).tolist(), "spread": float(np.std(points, 0).max()), "corners": corners},
        )  # fmt: skip

    def stages(self) -> list[Stage]:
        return [Stage("fixed", 2, 2)]

    def working_images(self, image: Image) -> dict[str, Image]:
        return {"image": image}

    def examples(self, case: TrainingCase, stage: Stage, rng: np.random.Generator) -> Batch:
        return {"target": torch.from_numpy(case.landmarks.points), "corner": torch.from_numpy(
            case.images["image"].grid.to_world(np.zeros(case.landmarks.ndim)))}  # fmt: skip

    def collect(self, cases: Any, stage: Stage, rng: np.random.Generator) -> Iterator[Batch]:
        return iter([self.examples(cases[i], stage, rng) for i in range(len(cases))])

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        self.seen.append(image)
        self.starts.append(start)
        n, d = self.mean.shape
        return Landmarks(
            tuple(self.plan.names), self.mean, np.full(n, "defined"), covariance=np.tile(np.eye(d), (n, 1, 1))
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


def config(name: str, *assignments: str) -> RunConfig:
    return make_config(method=name, assignments=list(assignments))


def composed(
    name: str, ndim: int, *assignments: str, change: Callable[[Study], Study] | None = None, old: Plan | None = None
) -> Method:
    """A model of four phantoms, as ``fit`` makes it."""
    cls, settings = assembled(config(name, *assignments))
    study = phantom.study([phantom.phantom(seed, ndim) for seed in range(4)])
    study = change(study) if change else study
    more = {"old": old} if issubclass(cls, Composed) else {}
    return cls(settings, cls.prepare(settings, study, **more))


def motion_of(ndim: int, degrees: float = 35.0) -> Pose:
    turn = rotation_from_vector(np.radians([degrees] if ndim == 2 else np.array([0.48, -0.6, 0.64]) * degrees))
    return Pose(turn, np.array([9.0, -14, 20])[:ndim])


def aligner_of(method: Method) -> Aligner:
    assert isinstance(method, Composed) and method.aligner is not None
    return method.aligner


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
    method = composed(name, ndim, *assignments)
    image, _ = phantom.phantom(7, ndim)
    assert bool(method.plan.facts.get(ALIGN)) == aligns
    assert (FRAME in method.working_images(image)) == aligns
    assert ("align_seconds" in method.locate(image).meta) == aligns
    assert (FRAME in with_frame(method, image)) == aligns


def test_a_method_alone_is_not_composed() -> None:
    assert type(composed("fixed", 3)) is Fixed
    without = composed("wanting", 2)
    assert isinstance(without, Composed) and without.aligner is None
    image, _ = phantom.phantom(7, 2)
    np.testing.assert_array_equal(without.locate(image).points, without.method.mean)
    assert without.method.seen[0] is image


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_turned_image_gives_the_turned_points(ndim: int) -> None:
    method = composed("fixed", ndim, *ON)
    image, truth = phantom.phantom(11, ndim)
    motion = motion_of(ndim)
    here, there = method.locate(image), method.locate(phantom.moved(image, motion))
    assert here.errors_to(truth).mean() < 2.5  # the mean shape, laid over what is seen
    assert np.linalg.norm(there.points - motion.apply(here.points), axis=1).max() < 2
    assert there.errors_to(truth.with_points(motion.apply(truth.points))).mean() < 2.5
    assert there.meta["align_seconds"] > 0
    np.testing.assert_allclose(np.linalg.det(there.covariance), np.linalg.det(here.covariance), rtol=0.2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_preparation_sees_all_cases_in_one_frame(ndim: int) -> None:
    """However they lie in their own worlds; so the mean of turned cases is no blur."""

    def turn(study: Study) -> Study:
        cases = []
        for i, case in enumerate(study.cases):
            m, image = motion_of(ndim, 25.0 * i), case.image()
            marks = case.landmarks.with_points(m.apply(case.landmarks.points))
            cases.append(replace(case, landmarks=marks, image=lambda image=image, m=m: phantom.moved(image, m)))
        return replace(study, cases=cases)

    plain, turned = composed("fixed", ndim, *ON), composed("fixed", ndim, *ON, change=turn)
    assert turned.plan.facts["spread"] < 2
    shift = np.linalg.norm(np.ptp(plain.plan.facts["corners"], axis=0))
    assert np.linalg.norm(np.ptp(turned.plan.facts["corners"], axis=0)) < shift + 5  # the images came along
    away = [np.linalg.norm(np.subtract(a, b)) for m in (plain, turned)
            for a, b in [(m.plan.facts["mean"][0], m.plan.facts["mean"][1])]]  # fmt: skip
    assert abs(away[0] - away[1]) < 1


@pytest.mark.parametrize("name", ["fixed", "bound"])
def test_training_is_in_the_frame_in_which_points_are_located(name: str) -> None:
    method = composed(name, 3, *ON)
    image, truth = phantom.phantom(11, 3)
    case = TrainingCase("case", method.working_images(image), truth)
    batch = method.examples(case, method.stages()[0], np.random.default_rng(0))
    alignment = aligner_of(method).align(image)
    np.testing.assert_allclose(batch["target"], alignment.to_template(truth).points)
    method.locate(image)
    seen = method.method.seen[0].grid.to_world(np.zeros(3))
    np.testing.assert_allclose(batch["corner"], seen)
    (other,) = method.collect([case], method.stages()[0], np.random.default_rng(0))
    np.testing.assert_array_equal(other["target"], batch["target"])
    back = alignment.from_template(Landmarks(truth.names, batch["target"].numpy()))
    np.testing.assert_allclose(back.points, truth.points, atol=1e-9)


def test_a_first_guess_goes_there_too() -> None:
    method = composed("fixed", 3, *ON)
    image, truth = phantom.phantom(11, 3)
    method.locate(image, truth)
    expected = aligner_of(method).align(image).to_template(truth)
    np.testing.assert_allclose(method.method.starts[-1].points, expected.points)


# ---------------------------------------------------------------------- known alignments


def test_a_known_alignment_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    method = composed("fixed", 3, *ON)
    image, _ = phantom.phantom(11, 3)
    kept = with_frame(method, image)
    first = method.locate(image)

    def searched(self: Aligner, image: Image) -> Alignment:
        raise AssertionError("searched")

    monkeypatch.setattr(Aligner, "align", searched)
    known = framed(kept)
    np.testing.assert_allclose(method.locate(known).points, first.points)
    np.testing.assert_array_equal(known.array, image.array)
    other = np.eye(4)
    other[:3, 3] = 5, 6, 7
    moved = method.locate(replace(image, meta={KNOWN: other}))
    np.testing.assert_allclose(moved.points, method.method.mean + [5, 6, 7])
    assert moved.meta["align_seconds"] == 0
    with pytest.raises(AssertionError, match="searched"):
        method.locate(image)


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
    landmark = bound.method.mean[0]  # the brightest: it shines in both
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


def test_a_model_is_its_plan_and_its_weights() -> None:
    method = composed("wanting", 3, *QUICK)
    assert all(k.startswith("method.") for k in method.state_dict())
    plan = Plan.model_validate_json(method.plan.model_dump_json())
    again = Composed(method.config, plan)
    again.load_state_dict(method.state_dict())
    image, _ = phantom.phantom(11, 3)
    np.testing.assert_array_equal(again.locate(image).points, method.locate(image).points)


def test_tensors_are_found_with_and_without_a_composition() -> None:
    state = {"method.weight": torch.ones(2)}
    plain = composed("fixed", 3)
    aligned = composed("fixed", 3, *ON)
    none = composed("wanting", 2)  # composed, as its author wanted, and still nothing to align
    assert none.plan.facts[ALIGN] is None
    for method in (aligned, none):
        assert list(part_of("method", state, method.plan)) == ["weight"]
    assert list(part_of("method", {"weight": torch.ones(2)}, plain.plan)) == ["weight"]
    assert part_of(REFINE, {"weight": torch.ones(2)}, plain.plan) == {}
    start = aligned.adapt_state({"weight": torch.full((2,), 3.0)}, plain.plan)  # fit --init of a model made before
    aligned.load_state_dict(start)
    assert aligned.method.weight.tolist() == [3, 3]


def test_the_template_of_the_other_run_is_kept() -> None:
    first = composed("fixed", 3, *ON)
    fewer = composed("fixed", 3, *ON, change=lambda s: replace(s, cases=s.cases[2:]))
    started = composed("fixed", 3, *ON, change=lambda s: replace(s, cases=s.cases[2:]), old=first.plan)
    assert started.plan.facts[ALIGN] == first.plan.facts[ALIGN] != fewer.plan.facts[ALIGN]
    assert started.plan.facts["spread"] < 2


def test_the_refiner_lives_in_the_template_too() -> None:
    """Alone after an aligned model as well: its training sees the frame that its use sees."""
    small = ["refine.enabled=true", "refine.levels=1", "refine.px=16", "refine.width=4", "refine.steps=1"]
    for more in ([], ["refine.only=true"]):
        method = composed("fixed", 3, *ON, *small, *more)
        assert isinstance(method, Composed) and method.refine is not None
        stages = [s.name for s in method.stages()]
        assert stages == (["refine1"] if more else ["fixed", "refine1"])
        image, truth = phantom.phantom(11, 3)
        motion = motion_of(3)
        image, truth = phantom.moved(image, motion), truth.with_points(motion.apply(truth.points))
        working = method.working_images(image)
        assert ("image" in working) != bool(more)
        frame = working[FRAME].grid.affine
        refined = [v for k, v in working.items() if k.startswith(REFINE)]
        corner = np.linalg.inv(frame) @ np.append(image.grid.to_world(-0.5 * np.ones(3)), 1)
        assert refined
        for one in refined:
            np.testing.assert_allclose(one.grid.to_world(-0.5 * np.ones(3)), corner[:3], atol=1e-6)
        method.begin(method.stages()[-1], {})
        found = method.locate(image)
        assert found.errors_to(truth).mean() < 6  # barely trained, but in the image's world
        before = method.before_levels(image)["refine1"]
        np.testing.assert_allclose(before.points, Alignment(frame, 1.0, 0.0).from_template(
            Landmarks(truth.names, method.method.mean)).points, atol=1e-6)  # fmt: skip


def test_an_image_of_another_size_is_found_at_its_own_scale() -> None:
    method = composed("fixed", 3, *ON)
    image, truth = phantom.phantom(11, 3)
    larger = Grid.from_axes(image.grid.shape, 1.2 * image.grid.axes, 1.2 * image.grid.origin)
    points: Array = 1.2 * truth.points
    found = method.locate(Image(image.array, larger))
    assert found.errors_to(truth.with_points(points)).mean() < 3
    turn = aligner_of(method).align(Image(image.array, larger)).affine[:3, :3]
    assert np.cbrt(np.linalg.det(turn)) > 1.1
    assert rotation_angle(turn / np.cbrt(np.linalg.det(turn))) < 20
