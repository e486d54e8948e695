"""The suite bites: each check fails for a method that breaks its promise, and none for the page's, which keeps all."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anatomark import methods
from anatomark.core.landmarks import Landmarks
from anatomark.methods.base import PerLandmark, Stage
from contract import page
from contract.subject import Subject
from contract.suite import CHECKS

SMALL = ("method.side=6", "method.width=8")
SEEN = (AssertionError, pytest.fail.Exception, RuntimeError, ValueError)  # no slips of the suite's own
BAD: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {}  # by what it does: the check that sees it, and how


def bad(check: str) -> Callable[[Callable[[Any], dict[str, Any]]], Callable[[Any], dict[str, Any]]]:
    """A function from the page's class to what a worse one does instead."""

    def kept(change: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        BAD[change.__name__] = check, change
        return change

    return kept


def answer(change: Callable[[Any, Any, Landmarks], Landmarks]) -> Callable[[Any], dict[str, Any]]:
    """``locate`` with something else done to the page's answer: (method, image, landmarks) to landmarks."""

    def changed(glance: Any) -> dict[str, Any]:
        return {"locate": lambda self, image, start=None: change(self, image, glance.locate(self, image))}

    return changed


def example(change: Callable[[Any, Any, Any], dict[str, torch.Tensor]]) -> Callable[[Any], dict[str, Any]]:
    """``examples`` with more in them: (method, case, stage) to further tensors."""

    def changed(glance: Any) -> dict[str, Any]:
        return {
            "examples": lambda self, case, stage, rng: {
                **glance.examples(self, case, stage, rng),
                **change(self, case, stage),
            }
        }

    return changed


# ---------------------------------------------------------------------- settings, facts, stages


@bad("settings")
def takes_any_setting(glance: Any) -> dict[str, Any]:
    class Loose(glance.Config):
        model_config = {"extra": "allow"}

    return {"Config": Loose}


@bad("facts")
def facts_are_no_json(glance: Any) -> dict[str, Any]:
    class Odd(glance.Facts):
        odd: Any

    def prepare(cls: Any, config: Any, study: Any) -> Any:
        return Odd(**glance.prepare(config, study).model_dump(), odd=float("nan"))

    return {"Facts": Odd, "prepare": classmethod(prepare)}


@bad("facts")
def prepares_at_random(glance: Any) -> dict[str, Any]:
    def prepare(cls: Any, config: Any, study: Any) -> Any:
        return glance.prepare(config, study).model_copy(update={"extent_mm": 100 + float(np.random.rand())})

    return {"prepare": classmethod(prepare)}


def stage(index: int = 0, **other: Any) -> Stage:
    return replace(Stage("glance", 10, 2, modules=("body", "head")), index=index, **other)


@bad("stages")
def names_stages_alike(glance: Any) -> dict[str, Any]:
    return {"stages": lambda self: [stage(), stage(1)]}


@bad("stages")
def counts_no_stages(glance: Any) -> dict[str, Any]:
    return {"stages": lambda self: [stage(), stage(name="again")]}


@bad("stages_by_value")
def goes_by_a_stages_name(glance: Any) -> dict[str, Any]:
    def loss(self: Any, batch: Any, stage: Any) -> Any:
        return {"loss": glance.loss(self, batch, stage)["loss"] * (2 if stage.name.startswith("refine") else 1)}

    return {"loss": loss}


@bad("begin")
def changes_facts_in_place(glance: Any) -> dict[str, Any]:
    def begin(self: Any, stage: Any, evidence: Any) -> None:
        self.facts.__dict__["extent_mm"] = 77.0

    return {"begin": begin}


@bad("begin")
def begins_anew(glance: Any) -> dict[str, Any]:
    def begin(self: Any, stage: Any, evidence: Any) -> None:
        self.facts = self.facts.model_copy(update={"extent_mm": self.facts.extent_mm + 1})

    return {"begin": begin}


# ---------------------------------------------------------------------- training


def _register(check: str, name: str, change: Callable[[Any], dict[str, Any]]) -> None:
    change.__name__ = name
    bad(check)(change)


_register(
    "examples", "looks_at_its_weights", example(lambda m, c, s: {"more": torch.tensor(m.head.weight[0, 0].item())})
)
_register("examples", "draws_from_anywhere", example(lambda m, c, s: {"more": torch.tensor(np.random.rand())}))
_register("examples", "shows_nan", example(lambda m, c, s: {"target": torch.from_numpy(c.landmarks.points).float()}))
_register("examples", "reads_a_file", example(lambda m, c, s: {"more": torch.tensor(len(Path(__file__).read_text()))}))
_register(
    "examples",
    "ignores_the_generator",
    lambda glance: {
        "examples": lambda self, case, stage, rng: glance.examples(self, case, stage, np.random.default_rng(0))
    },
)


@bad("examples")
def remembers(glance: Any) -> dict[str, Any]:
    def examples(self: Any, case: Any, stage: Any, rng: Any) -> Any:
        self.seen = getattr(self, "seen", 0) + 1
        return {**glance.examples(self, case, stage, rng), "more": torch.tensor(self.seen)}

    return {"examples": examples}


@bad("collect")
def collects_nothing(glance: Any) -> dict[str, Any]:
    return {"collect": lambda self, cases, stage, rng: iter(())}


@bad("collect")
def collects_at_random(glance: Any) -> dict[str, Any]:
    def collect(self: Any, cases: Any, stage: Any, rng: Any) -> Iterator[Any]:
        while True:
            made = glance.examples(self, cases[0], stage, np.random.default_rng())
            yield {k: v[None] for k, v in made.items()}

    return {"collect": collect}


@bad("training")
def loses_nan(glance: Any) -> dict[str, Any]:
    return {"loss": lambda self, batch, stage: {"loss": glance.loss(self, batch, stage)["loss"] * float("nan")}}


@bad("training")
def trains_what_is_not_used(glance: Any) -> dict[str, Any]:
    def __init__(self: Any, config: Any, facts: Any) -> None:
        glance.__init__(self, config, facts)
        self.spare = torch.nn.Linear(2, 2)

    return {"__init__": __init__, "stages": lambda self: [stage(modules=("body", "head", "spare"))]}


@bad("training")
def changes_what_is_frozen(glance: Any) -> dict[str, Any]:
    def loss(self: Any, batch: Any, stage: Any) -> Any:
        with torch.no_grad():
            self.body[0].bias.add_(1)
        return glance.loss(self, batch, stage)

    return {"stages": lambda self: [stage(modules=("head",)), stage(1, name="all")], "loss": loss}


@bad("unannotated")
def learns_what_nobody_said(glance: Any) -> dict[str, Any]:
    def loss(self: Any, batch: Any, stage: Any) -> Any:
        return glance.loss(self, {**batch, "defined": torch.ones_like(batch["defined"])}, stage)

    return {"loss": loss}


# ---------------------------------------------------------------------- use


def opened(method: Any, image: Any, landmarks: Landmarks) -> Landmarks:
    builtins.open(__file__).close()
    return landmarks


def settled(method: Any, image: Any, landmarks: Landmarks) -> Landmarks:
    method.facts = method.facts.model_copy(update={"extent_mm": method.facts.extent_mm + 1})
    return landmarks


def drawn(method: Any, image: Any, landmarks: Landmarks) -> Landmarks:
    torch.rand(1)
    return landmarks


def brightened(method: Any, image: Any, landmarks: Landmarks) -> Landmarks:
    image.array[:] += 1
    return landmarks


def voxels(method: Any, image: Any, landmarks: Landmarks) -> Landmarks:
    return landmarks.with_points(image.grid.to_index(landmarks.points))


def sure(score: float) -> Callable[[Any, Any, Landmarks], Landmarks]:
    return lambda method, image, landmarks: replace(landmarks, score=np.full(len(landmarks), score))


def spread(matrix: Any) -> Callable[[Any, Any, Landmarks], Landmarks]:
    return lambda method, image, landmarks: replace(landmarks, covariance=np.tile(matrix, (len(landmarks), 1, 1)))


for name, change in {
    "opens_a_file": opened,
    "settles_facts_when_located": settled,
    "draws_global_numbers": drawn,
    "changes_the_image": brightened,
    "is_surer_than_sure": sure(1.5),
    "spreads_unevenly": spread(np.array([[1.0, 0.5], [0, 1]])),
    "spreads_less_than_nothing": spread(-np.eye(2)),
    "turns_the_names_round": lambda method, image, landmarks: landmarks.select(landmarks.names[::-1]),
    "loses_a_landmark": lambda method, image, landmarks: landmarks.select(landmarks.names[1:]),
    "answers_by_chance": lambda method, image, landmarks: landmarks.with_points(landmarks.points + np.random.rand()),
}.items():
    _register("locate", name, answer(change))
_register("world", "answers_in_voxels", answer(voxels))
_register("weights_count", "says_the_mean", answer(lambda method, image, landmarks: landmarks.with_points(
    np.tile(image.grid.centre, (len(landmarks), 1)))))  # fmt: skip


@bad("first_guess")
def repeats_the_first_guess(glance: Any) -> dict[str, Any]:
    return {"locate": lambda self, image, start=None: start or glance.locate(self, image)}


@bad("chunks")
def counts_the_chunks(glance: Any) -> dict[str, Any]:
    class Chunked(glance.Config):
        chunk: int = 9

    def locate(self: Any, image: Any, start: Any = None) -> Landmarks:
        found = glance.locate(self, image)
        return found.with_points(found.points + self.config.chunk)

    return {"Config": Chunked, "locate": locate}


# ---------------------------------------------------------------------- a model is its config, facts and weights


@bad("rebuilt")
def keeps_something_beside_its_weights(glance: Any) -> dict[str, Any]:
    def begin(self: Any, stage: Any, evidence: Any) -> None:
        self.more = 1.0

    def locate(self: Any, image: Any, start: Any = None) -> Landmarks:
        found = glance.locate(self, image)
        return found.with_points(found.points + getattr(self, "more", 0.0))

    return {"begin": begin, "locate": locate}


@bad("copies")
def does_not_pickle(glance: Any) -> dict[str, Any]:
    def __init__(self: Any, config: Any, facts: Any) -> None:
        glance.__init__(self, config, facts)
        self.twice = lambda x: 2 * x

    return {"__init__": __init__}


@bad("adapted")
def grows_when_adapted(glance: Any) -> dict[str, Any]:
    def adapted(cls: Any, facts: Any, old: Any) -> Any:
        return facts.model_copy(update={"extent_mm": 1.1 * old.extent_mm})

    return {"adapted": classmethod(adapted)}


@bad("reordered")
def moves_coordinates_for_landmarks(glance: Any) -> dict[str, Any]:
    return {"per_landmark": lambda self: {"head.*": PerLandmark(order="inner")}}


@bad("reordered")
def does_not_say_what_is_a_landmarks(glance: Any) -> dict[str, Any]:
    return {"per_landmark": lambda self: {}}


@bad("other_landmarks")
def says_the_wrong_axis(glance: Any) -> dict[str, Any]:
    return {"per_landmark": lambda self: {"head.weight": 1, "head.bias": 0}}


# ---------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def glance(tmp_path_factory: pytest.TempPathFactory) -> Any:
    module = page.load(page.install(tmp_path_factory.mktemp("page")))
    sys.modules["glance_of_the_page"] = module
    return module.Glance


@pytest.fixture
def subject(glance: Any, request: pytest.FixtureRequest) -> Iterator[Subject]:
    """The page's method, or one that differs from it as ``request.param`` says."""
    change = request.param
    torch.manual_seed(0)
    made = glance if change is None else type("Glance", (glance,), {**change(glance), "__module__": __name__})
    if change is not None:
        globals()["Glance"] = made
        made.__qualname__ = "Glance"
    methods.add("bitten", made)
    yield Subject("bitten", "recommended", 2, "plain", SMALL)
    del methods.TABLE["bitten"]


@pytest.mark.parametrize(
    ("subject", "check"), [pytest.param(c, k, id=n) for n, (k, c) in BAD.items()], indirect=["subject"]
)
def test_a_broken_promise_is_seen(subject: Subject, check: str) -> None:
    with pytest.raises((Exception, pytest.fail.Exception)) as error:  # what breaks a promise may not go far
        CHECKS[check](subject)
    assert isinstance(error.value, SEEN) or "pickle" in str(error.value), error.value


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("subject", [None], ids=["page"], indirect=True)
def test_the_page_keeps_every_promise(subject: Subject, check: str) -> None:
    CHECKS[check](subject)


def test_every_check_is_shown_to_bite() -> None:
    assert {check for check, _ in BAD.values()} == set(CHECKS)
