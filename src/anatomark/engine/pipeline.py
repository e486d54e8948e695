"""What a run trains and uses as one: a method and, where asked for, the refiner after it, as one Method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.engine.config import RunConfig, method_of, refined
from anatomark.methods.base import Batch, Method, MethodConfig, Plan, Stage, Study, TrainingCase
from anatomark.methods.refine import RefineConfig, Refiner

REFINE = "refine"  # its stages' and working images' names begin with this


class ComposedConfig(MethodConfig):
    """The method, its settings, and the refiner's."""

    model_config = {"arbitrary_types_allowed": True}
    method: type[Method]
    settings: Any
    refine: RefineConfig


def assembled(config: RunConfig) -> tuple[type[Method], MethodConfig]:
    """The class and settings of what a run's config describes: the method alone, or with the refiner."""
    cls, settings = method_of(config)
    if not refined(cls, config):
        return cls, settings
    return Composed, ComposedConfig(method=cls, settings=settings, refine=config.refine)


class Composed(Method):
    """A method, then the refiner. Tensors are named ``method.*`` and ``refine.*``."""

    Config = ComposedConfig

    def __init__(self, config: ComposedConfig, plan: Plan):
        super().__init__()
        self.config, self.plan = config, plan
        self.method = config.method(config.settings, plan)
        self.refine = Refiner(config.refine, plan)
        self.begun = len(plan.facts[REFINE]["levels"]) > 0

    @classmethod
    def prepare(cls, config: ComposedConfig, study: Study) -> Plan:
        """The method's plan with the refiner's facts."""
        return with_refiner(config.method.prepare(config.settings, study), study)

    def adapt_state(self, state: dict[str, torch.Tensor], old: Plan) -> dict[str, torch.Tensor]:
        """Weights of another run, with or without a refiner."""
        out = {}
        for name in ("method", REFINE):
            part = part_of(name, state, old)
            adapt = getattr(getattr(self, name), "adapt_state", None)
            out.update({f"{name}.{k}": v for k, v in (adapt(part, old) if adapt and part else part).items()})
        return out

    def stages(self) -> list[Stage]:
        """The method's, then the refiner's."""
        first = [] if self.config.refine.only else _prefixed("method", self.method.stages())
        return [*first, *_prefixed(REFINE, self.refine.stages())]

    def begin(self, stage: Stage, evidence: Mapping[str, Any]) -> None:
        """While the method is trained the refiner is left out of :meth:`locate`."""
        self.begun = self._part(stage) is self.refine
        self._part(stage).begin(stage, evidence)

    def working_images(self, image: Image) -> dict[str, Image]:
        """Of both, as far as they are trained."""
        own = {} if self.config.refine.only else self.method.working_images(image)
        return {**own, **self.refine.working_images(image)}

    def examples(self, case: TrainingCase, stage: Stage, rng: np.random.Generator) -> Batch:
        """Of the stage's part."""
        return self._part(stage).examples(case, stage, rng)

    def collect(self, cases: Any, stage: Stage, rng: np.random.Generator) -> Any:
        """Of the stage's part."""
        return self._part(stage).collect(cases, stage, rng)

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Of the stage's part."""
        return self._part(stage).loss(batch, stage)

    def after_step(self, stage: Stage) -> None:
        """Of the stage's part."""
        self._part(stage).after_step(stage)

    def notes(self) -> list[str]:
        """Of both."""
        return [*self.method.notes(), *self.refine.notes()]

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """The method's landmarks, refined."""
        first = self.method.locate(image, start)
        return self.refine.locate(image, first) if self.begun else first

    def before_levels(self, image: Image) -> dict[str, Landmarks]:
        """What each of the refiner's stages starts from, by the stage's name: evidence to size its sub-images by."""
        first = self.method.locate(image)
        found = {}
        for k, stage in enumerate(self.refine.stages()):
            self.refine.use_levels(k)
            found[stage.name] = self.refine.locate(image, first)
        self.refine.use_levels(len(found))
        return found

    def _part(self, stage: Stage) -> Method:
        return self.refine if stage.name.startswith(REFINE) else self.method


def with_refiner(plan: Plan, study: Study, old: Plan | None = None) -> Plan:
    """``plan`` with what the refiner keeps of the training data, in the frame of the refiner of ``old``, if any."""
    facts = Refiner.prepare_facts(study, plan.facts)
    plan = plan.model_copy(update={"facts": {**plan.facts, REFINE: facts}})
    return plan if old is None else _refiner_adapted(plan, old)


def adapted_plan(cls: type[Method], settings: MethodConfig, plan: Plan, old: Plan) -> Plan:
    """``plan`` in the frames of another run's, whose weights it is to start from; see ``Method.adapt_plan``."""
    own = settings.method if isinstance(settings, ComposedConfig) else cls
    adapt = getattr(own, "adapt_plan", None)
    return _refiner_adapted(adapt(plan, old) if adapt else plan, old)


def _refiner_adapted(plan: Plan, old: Plan) -> Plan:
    """``plan`` with its refiner, if it has one, in the frame of the other plan's refiner."""
    if REFINE not in plan.facts:
        return plan
    facts = Refiner.adapt_facts(plan.facts[REFINE], plan.names, old)
    return plan.model_copy(update={"facts": {**plan.facts, REFINE: facts}})


def part_of(name: str, state: Mapping[str, torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
    """The tensors of the ``method`` or of the refiner (``refine``) in a run's state, named as these name them."""
    if REFINE not in plan.facts:  # it has no refiner: all are the method's
        return dict(state) if name == "method" else {}
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}


def cache_facts(config: RunConfig, plan: Plan) -> list[Any]:
    """What working images depend on, plain. The refiner's levels, sized as the training goes on, are no part of it."""
    plain = plan.model_dump(mode="json")
    if REFINE in plain["facts"]:
        plain["facts"][REFINE].pop("levels")
    return [config.method.model_dump(mode="json"), config.refine.only, plain]


def _prefixed(name: str, stages: list[Stage]) -> list[Stage]:
    return [replace(s, modules=tuple(f"{name}.{m}" for m in s.modules) or (name,)) for s in stages]
