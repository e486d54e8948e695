"""What is under test: a method in a composition, planned from phantoms; and what the checks of ``suite.py`` share."""

from __future__ import annotations

import builtins
import copy
import io
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import phantom
import tiny
from anatomark.cases.case import Case
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.methods.base import Batch, Evidence, Stage, Study
from anatomark.model.compose import Composed, Composition, Plan
from anatomark.model.config import make_config
from anatomark.progress import Reporter
from anatomark.training import loop
from anatomark.training.examples import weightless
from anatomark.training.fit import fit

ALIGNED = ["align.step_deg=60", "align.starts=2", "align.finalists=1", "align.template_px=16"]
REFINED = ["refine.levels=1", "refine.px=16", "refine.width=4", "refine.passes=1", "refine.scales=[1.0]"]
COMPOSITIONS = {
    "plain": ["align.enabled=false", "refine.enabled=false"],
    "aligned": ["align.enabled=true", "refine.enabled=false", *ALIGNED],
    "refined": ["align.enabled=false", "refine.enabled=true", *REFINED],
    "both": ["align.enabled=true", "refine.enabled=true", *ALIGNED, *REFINED],
}
BATCH = 2  # examples in a step
TOLERANCE_MM = 0.02


@dataclass
class Subject:
    """A method under test, with the phantoms that it is planned from.

    ``settings``: assignments as of ``--set``. ``untrained``: patterns of parameters that no stage gives a gradient;
    ``mixing``: of tensors by landmark that another landmark's loss reaches too, behind the stage's name; ``reordered``:
    whether in another order of landmarks it is the same model; ``placed``: whether unaligned it goes by the place in
    the world.
    """

    method: str
    preset: str
    ndim: int
    composition: str = "plain"
    settings: Sequence[str] = ()
    untrained: Sequence[str] = ()
    mixing: Sequence[str] = ()
    reordered: bool = True
    placed: bool = False
    config: Any = field(init=False)

    def __post_init__(self) -> None:
        assignments = [*COMPOSITIONS[self.composition], *self.settings]
        self.config = make_config(method=self.method, preset=self.preset, assignments=assignments)

    @property
    def plain(self) -> bool:
        return self.composition == "plain"

    @cached_property
    def parts(self) -> Composition:
        return Composition.of(self.config)

    @cached_property
    def study(self) -> Study:
        """Three phantoms; in the first a landmark is not annotated, in the second one is absent, in the third none."""
        (first, one), (second, two), third = (phantom.phantom(seed, self.ndim) for seed in range(3))
        absent = replace(two, status=tuple(Status.ABSENT if n == "b" else Status.DEFINED for n in two.names))
        return phantom.study([(first, phantom.without(one, "d")), (second, absent), third])

    @cached_property
    def plan(self) -> Plan:
        return self.parts.prepare(self.study)

    @cached_property
    def image(self) -> Image:
        """One that is not in the study."""
        return phantom.phantom(9, self.ndim)[0]

    @cached_property
    def untouched(self) -> Composed:
        """As it is built, with weights that all count: a zero would hide what hangs on it."""
        torch.manual_seed(1)
        made = self.parts.build(self.plan)
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.05 * torch.randn_like(p) * (p.abs().mean() + 0.05))
        return made

    @cached_property
    def made(self) -> Composed:
        """After the beginning of every stage; not to be changed."""
        made = copy.deepcopy(self.untouched)
        for stage in made.stages():
            made.begin(stage, self.evidence)
        return made.eval()

    def fresh(self) -> Composed:
        return copy.deepcopy(self.made)

    @cached_property
    def evidence(self) -> Evidence:
        """Of the third case, by two millimetres beside it."""
        truth = self.study.cases[2].landmarks
        return Evidence({"case2": truth.with_points(truth.points + 2 / np.sqrt(self.ndim))}, {"case2": truth})

    @cached_property
    def cases(self) -> list[Case]:
        """As the store gives them to the training."""
        made, out = self.fresh(), []
        for case in self.study.cases:
            images, alignment = made.working_images(case.image())
            landmarks = case.landmarks.select(self.plan.names)
            out.append(replace(case, given=landmarks, images=images, alignment=alignment, held=None))
        return out

    @cached_property
    def stages(self) -> list[Stage]:
        """Of few examples."""
        return self.stages_of(BATCH)

    def stages_of(self, batch: int) -> list[Stage]:
        """Of at most so many examples; not more than the method asks for, whose images may differ in size."""
        return [replace(s, batch=min(s.batch, batch), steps=4) for s in self.made.stages()]

    @cached_property
    def alignment(self) -> Any:
        return self.made.alignment(self.image)

    @cached_property
    def answer(self) -> Landmarks:
        return self.find(self.made)

    def find(self, made: Composed, image: Image | None = None, alignment: Any = None) -> Landmarks:
        image = self.image if image is None else image
        torch.manual_seed(int(np.random.default_rng().integers(1000)))  # whatever was drawn before
        with torch.inference_mode():
            return made.find(image, self.alignment if image is self.image else alignment).landmarks

    def batch(self, made: Composed, stage: Stage, cases: Sequence[Case] | None = None, seed: int = 0) -> Batch:
        """Of the examples of a stage, or collected."""
        cases, rng = self.cases if cases is None else cases, np.random.default_rng([seed, 5])
        collected = made.collect(cases, stage, rng)
        if collected is not None:
            return next(iter(collected))
        maker = weightless(made)
        return default_collate([maker.examples(cases[i % len(cases)], stage, rng) for i in range(stage.batch)])

    def loss(self, made: Composed, stage: Stage, batch: Batch) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return made.loss(batch, stage)


def plain_plan(made: Composed) -> dict[str, Any]:
    return copy.deepcopy(made.plan.to_json())


def assert_same(one: Any, other: Any, where: str) -> None:
    """Landmarks or tensors by name, equal to the bit."""
    if isinstance(one, Landmarks):
        one, other = vars(one), vars(other)
    assert one.keys() == other.keys(), where
    for key, value in one.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other[key], err_msg=f"{where}: {key}")
        elif isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True, msg=f"{where}: {key} differs")
        else:
            assert value == other[key], f"{where}: {key}"


@contextmanager
def no_files() -> Iterator[None]:
    """Whoever opens a file inside fails, also where the error is caught."""
    opened: list[Any] = []

    def refused(*arguments: Any, **named: Any) -> Any:
        opened.append(arguments[0])
        raise AssertionError(f"opens a file: {arguments[0]}")

    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io, os):
            patch.setattr(module, "open", refused)
        yield
    assert not opened, f"opens files: {opened}"


@contextmanager
def alone(made: Composed) -> Iterator[None]:
    """No file is opened inside; random numbers, facts and weights stay as they are."""
    plan, state = plain_plan(made), {k: v.clone() for k, v in made.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with no_files():
        yield
    assert torch.equal(before[0], torch.get_rng_state()), "draws from torch's global random numbers"
    assert np.array_equal(before[1], np.random.get_state()[1]), "draws from numpy's global random numbers"
    assert before[2] == random.getstate(), "draws from Python's global random numbers"
    assert made.plan.to_json() == plan, "changes its facts"
    assert_same(made.state_dict(), state, "changes its weights")


# ---------------------------------------------------------------------- a whole run, in ``folder``


class Stopped(BaseException):
    """What a run is stopped by, as hard as a person would."""


@contextmanager
def stopping(at: int) -> Iterator[None]:
    """Training inside ends with :class:`Stopped` after so many steps; a checkpoint is written where one may be."""
    done, real = [0], loop.optimiser_step

    def step(state: Any, batch: Batch) -> Any:
        if done[0] == at:
            raise Stopped
        done[0] += 1
        return real(state, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "optimiser_step", step)
        patch.setattr(loop, "SAVE_EVERY_S", -1.0)
        yield


def resumed_as_uninterrupted(s: Subject, folder: Path, steps: int, stops: Sequence[int]) -> None:
    """A run that was stopped after each of ``stops`` of its ``steps`` and resumed ends as one that was not, to the
    bit."""
    quiet, cases = Reporter(quiet=True), tiny.write_study(folder / "study", 5, s.ndim, size=20)
    config = s.config.model_copy(update={"steps": steps})
    whole = fit(cases, folder / "whole", config, report=quiet)
    for at in stops:
        cut = folder / f"cut{at}"
        with pytest.raises(Stopped), stopping(at):
            fit(cases, cut, config, report=quiet)
        fit(cases, cut, config, resume=True, report=quiet)
        for name in ("weights.safetensors", "plan.json"):
            assert (cut / name).read_bytes() == (whole.run / name).read_bytes(), f"stopped at step {at}: {name} differs"
