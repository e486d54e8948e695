"""Phantoms for tests of methods: blobs of different brightness at known millimetres, on an oblique anisotropic grid.

With them goes a short training loop by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from anatomark.cases.case import Case
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.intensity import guess_modality, intensity_rule
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import Pose, random_rotation, rotation_from_vector
from anatomark.errors import InputError
from anatomark.methods.base import Batch, Evidence, Method, Stage, Study
from anatomark.methods.pin.recommended import PIN, Level, PINConfig
from anatomark.training.optimise import make_optimizer, rate_factor, set_modes

M = TypeVar("M", bound=Method)
NAMES = ("a", "b", "c", "d", "e")
BRIGHTNESS = (260.0, 200.0, 150.0, 110.0, 75.0)
_BASE = np.array([[-16.0, -12, 6], [15, -13, -8], [17, 12, 9], [-9, 17, -11], [1, -2, 19]])
_CENTRE = np.array([31.0, -12.0, 7.0])


LEVELS = [
    Level(px=16, width=8, spacing=1 / 13, update="shape", rotation_deg=6, shift=0.04, log_scale=0.05, reach=0.06),
    Level(px=16, width=8, spacing=1 / 24, rotation_deg=4, shift=0.01, log_scale=0.03, reach=0.08),
]
SMALL: dict[str, Any] = {
    "context_px": 16, "levels": LEVELS, "starts": 3, "warped_copies": 20, "warp_share": 0.3, "intensity": 0.5,
    "steps_context": 80, "steps_level": 100, "context_batch": 16, "batch": 8,
}  # fmt: skip


def oblique(ndim: int, degrees: float = 12.0) -> Grid:
    """A grid about the phantoms' centre with another spacing along each axis, turned by ``degrees``."""
    turn = rotation_from_vector(np.radians([degrees] if ndim == 2 else np.array([0.6, -0.5, 0.62]) * degrees))
    steps = [1.7, 1.2] if ndim == 2 else [2.4, 1.9, 1.6]
    shape = (44, 56) if ndim == 2 else (30, 36, 40)
    return Grid.centred(shape, turn[:, ::-1] * steps, _CENTRE[:ndim])


def phantom(seed: int, ndim: int, most_degrees: float = 8.0) -> tuple[Image, Landmarks]:
    """An image with one blob for each landmark (standard deviation 3.5 mm), moved, turned and bent at random."""
    rng = np.random.default_rng([seed, ndim])
    pose = Pose(random_rotation(rng, ndim, most_degrees), _CENTRE[:ndim] + rng.uniform(-3, 3, ndim))
    points = pose.apply(_BASE[:, :ndim] + rng.normal(0, 0.6, (5, ndim)))
    grid = oblique(ndim)
    world = grid.points()
    array = 10 + rng.normal(0, 1, grid.shape)
    for point, bright in zip(points, BRIGHTNESS, strict=True):
        array += bright * np.exp(-((world - point) ** 2).sum(-1) / (2 * 3.5**2))
    return Image(array[None].astype(np.float32), grid), Landmarks(NAMES, points)


def study(cases: Sequence[tuple[Image, Landmarks]]) -> Study:
    """What the engine would hand to ``prepare``."""
    images = [image for image, _ in cases]
    modality = guess_modality(images)
    own = [Case(f"case{i}", given=marks, held=image) for i, (image, marks) in enumerate(cases)]
    return Study(own, NAMES, modality, intensity_rule(modality, images))


def without(marks: Landmarks, *names: str) -> Landmarks:
    """``marks`` where these names are not annotated."""
    return marks.select([n for n in marks.names if n not in names]).select(marks.names)


def partly_known(marks: Landmarks) -> Landmarks:
    """``marks`` where the second is absent, and the third not annotated."""
    points = marks.points.copy()
    points[[1, 2]] = np.nan
    states = ["defined", "absent", "unannotated", *["defined"] * (len(marks) - 3)]
    return Landmarks(marks.names, points, tuple(Status(s) for s in states))


def untrained(ndim: int, cases: list[tuple[Image, Landmarks]] | None = None, **settings: Any) -> PIN:
    """A small recommended PIN, planned from ``cases`` (one phantom where none are given), with its first weights."""
    config = PINConfig(**{**SMALL, **settings})
    torch.manual_seed(1)
    return PIN(config, PIN.prepare(config, study(cases or [phantom(0, ndim)])))


def training_cases(method: Method, cases: Sequence[tuple[Image, Landmarks]]) -> list[Case]:
    """What the engine would hand to ``examples``."""
    return [
        Case(f"case{i}", given=marks.select(method.facts.names), images=method.working_images(image))
        for i, (image, marks) in enumerate(cases)
    ]


def stacked(method: Method, cases: Sequence[Case], stage: Stage, rng: np.random.Generator) -> Batch:
    """A batch of examples of cases drawn at random."""
    drawn = [method.examples(cases[rng.integers(len(cases))], stage, rng) for _ in range(stage.batch)]
    return {key: torch.stack([d[key] for d in drawn]) for key in drawn[0]}


def train(method: Method, cases: Sequence[tuple[Image, Landmarks]], pool: int = 160) -> dict[str, list[float]]:
    """All stages in order, as the engine goes through them, but over ``pool`` examples again and again, for speed. The
    loss of every step by stage."""
    torch.manual_seed(0)
    known = training_cases(method, cases)
    losses: dict[str, list[float]] = {}
    for number, stage in enumerate(method.stages()):
        rng = np.random.default_rng(number)
        method.begin(stage, Evidence())
        set_modes(method, stage)
        optimizer = make_optimizer(method, stage)
        examples = default_collate([method.examples(known[i % len(known)], stage, rng) for i in range(pool)])
        losses[stage.name] = []
        for step in range(stage.steps):
            chosen = torch.from_numpy(rng.choice(pool, stage.batch, replace=False))
            optimizer.param_groups[0]["lr"] = 3 * stage.lr * rate_factor(stage, step)
            loss = method.loss({k: v[chosen] for k, v in examples.items()}, stage)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            losses[stage.name].append(float(loss.detach()))
    return losses


class Trained(NamedTuple, Generic[M]):
    """A trained method, the phantoms that it learned from, and the loss of every step by stage."""

    method: M
    cases: list[tuple[Image, Landmarks]]
    losses: dict[str, list[float]]


def trained(make: Callable[[int, list[tuple[Image, Landmarks]]], M], ndim: int, pool: int = 160) -> Trained[M]:
    """A model of four phantoms; one landmark is not annotated in one of them, another in another."""
    cases = [phantom(i, ndim) for i in range(4)]
    known = [(image, without(marks, *"dbxx"[i])) for i, (image, marks) in enumerate(cases)]
    method = make(ndim, known)
    return Trained(method, cases, train(method, known, pool))


def moved(image: Image, motion: Pose) -> Image:
    """The same voxels with another header: the image's world moved rigidly by ``motion``."""
    axes, origin = motion.rotation @ image.grid.axes, motion.apply(image.grid.origin)
    return Image(image.array, Grid.from_axes(image.grid.shape, axes, origin), image.meta)


def errors(method: Method, cases: Sequence[tuple[Image, Landmarks]]) -> Array:
    """(cases, N) mm between what ``locate`` says and the truth."""
    return np.stack([method.locate(image).errors_to(truth) for image, truth in cases])


def check_first_guess(method: Method, image: Image, truth: Landmarks) -> None:
    """A first guess finds an image turned at will as well as it is found upright, and must name a landmark."""
    turn = random_rotation(np.random.default_rng(0), image.ndim)
    middle = truth.points.mean(0)
    motion = Pose(turn, middle - turn @ middle)
    there, goal = moved(image, motion), truth.with_points(motion.apply(truth.points))
    near = goal.with_points(goal.points + np.random.default_rng(0).normal(0, 1.5, goal.points.shape))
    found = method.locate(there, without(near, "a"))
    here = method.locate(image, truth).errors_to(truth).mean()
    assert found.errors_to(goal).mean() < here + 1.0
    with pytest.raises(InputError, match="none of the model's landmarks: a, b, c"):
        method.locate(image, Landmarks(("elsewhere",), truth.points[:1]))
