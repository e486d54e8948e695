"""What a run trains and uses as one: a method and, where asked for, the alignment before it and the refiner after it,
as one Method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import resample
from anatomark.core.shape import procrustes
from anatomark.methods.base import Batch, Method, MethodConfig, Plan, Stage, Study, StudyCase, TrainingCase
from anatomark.model.align.aligner import AlignConfig, Aligner, Alignment
from anatomark.model.config import RunConfig, method_of, refined
from anatomark.model.refine.refiner import RefineConfig, Refiner

REFINE = "refine"  # its stages' and working images' names begin with this
ALIGN = "align"  # its facts in a plan; null where a composed model aligns nothing
FRAME = "align.frame"  # among working images: one voxel whose grid is the alignment, template world -> image world
KNOWN = "alignment"  # in an image's meta: the same, where it is known already


class ComposedConfig(MethodConfig):
    """The method, its settings, and those of what stands before and after it."""

    model_config = {"arbitrary_types_allowed": True}
    method: type[Method]
    settings: Any
    align: AlignConfig = AlignConfig()
    refine: RefineConfig = RefineConfig()
    refined: bool = True


def assembled(config: RunConfig) -> tuple[type[Method], MethodConfig]:
    """The class and settings of what a run's config describes: the method alone, or with alignment or refiner."""
    cls, settings = method_of(config)
    after = refined(cls, config)
    before = cls.aligned if config.align.enabled is None else config.align.enabled
    if not after and not before:
        return cls, settings
    made = ComposedConfig(method=cls, settings=settings, align=config.align, refine=config.refine, refined=after)
    return Composed, made


class Composed(Method):
    """An alignment (or none), a method, then the refiner (or none). Tensors are named ``method.*`` and ``refine.*``.

    The method and the refiner live in the template's world; images and landmarks go there and back.
    """

    Config = ComposedConfig

    def __init__(self, config: ComposedConfig, plan: Plan):
        super().__init__()
        self.config, self.plan = config, plan
        self.method = config.method(config.settings, plan)
        self.refine = Refiner(config.refine, plan) if REFINE in plan.facts else None
        facts = plan.facts.get(ALIGN)
        self.aligner = Aligner(config.align, facts) if facts else None
        self.begun = self.refine is not None and len(plan.facts[REFINE]["levels"]) > 0

    @classmethod
    def prepare(cls, config: ComposedConfig, study: Study, old: Plan | None = None) -> Plan:
        """The method's plan with the facts of alignment and refiner. Another run's plan ``old``, whose weights are to
        be started from, lends its template, so that its frame is kept."""
        facts, names = None, study.names
        if _to_align(config, study):
            lent = old.facts.get(ALIGN) if old is not None else None
            names = tuple(old.names) if old is not None and lent else names
            facts = lent or Aligner.prepare_facts(config.align, study)
            study = _aligned_study(Aligner(config.align, facts), study, names)
        plan = config.method.prepare(config.settings, study)
        plan = plan.model_copy(update={"facts": {**plan.facts, ALIGN: facts}})
        return with_refiner(plan, study) if config.refined else plan

    def adapt_state(self, state: dict[str, torch.Tensor], old: Plan) -> dict[str, torch.Tensor]:
        """Weights of another run, with or without a refiner."""
        out = {}
        for name in ("method", REFINE):
            part = part_of(name, state, old) if getattr(self, name) is not None else {}
            adapt = getattr(getattr(self, name), "adapt_state", None)
            out.update({f"{name}.{k}": v for k, v in (adapt(part, old) if adapt and part else part).items()})
        return out

    def stages(self) -> list[Stage]:
        """The method's, then the refiner's."""
        first = [] if self.config.refine.only else _prefixed("method", self.method.stages())
        return [*first, *(_prefixed(REFINE, self.refine.stages()) if self.refine is not None else [])]

    def begin(self, stage: Stage, evidence: Mapping[str, Any]) -> None:
        """While the method is trained the refiner is left out of :meth:`locate`."""
        self.begun = self._part(stage) is self.refine
        self._part(stage).begin(stage, evidence)

    def working_images(self, image: Image) -> dict[str, Image]:
        """Of both, as far as they are trained, in the template's world, and the way there."""
        out = {}
        alignment = self._alignment(image)
        if alignment is not None:
            image = alignment.moved(image)
            out[FRAME] = _as_image(alignment)
        if not self.config.refine.only:
            out.update(self.method.working_images(self._for_method(image, alignment)))
        return out if self.refine is None else {**out, **self.refine.working_images(image)}

    def examples(self, case: TrainingCase, stage: Stage, rng: np.random.Generator) -> Batch:
        """Of the stage's part."""
        return self._part(stage).examples(_in_template(case), stage, rng)

    def collect(self, cases: Any, stage: Stage, rng: np.random.Generator) -> Any:
        """Of the stage's part."""
        return self._part(stage).collect(_InTemplate(cases), stage, rng)

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Of the stage's part."""
        return self._part(stage).loss(batch, stage)

    def after_step(self, stage: Stage) -> None:
        """Of the stage's part."""
        self._part(stage).after_step(stage)

    def notes(self) -> list[str]:
        """Of both."""
        return [*self.method.notes(), *(self.refine.notes() if self.refine is not None else [])]

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """The method's landmarks in the aligned image, refined and brought back. ``meta["align_seconds"]``: what the
        alignment took."""
        alignment = self._alignment(image)
        if alignment is None:
            first = self.method.locate(image, start)
            return self.refine.locate(image, first) if self.refine is not None and self.begun else first
        moved = alignment.moved(image)
        start = None if start is None else alignment.to_template(start)
        found = self.method.locate(self._for_method(moved, alignment), start)
        if self.refine is not None and self.begun:
            found = self.refine.locate(moved, found)
        found = alignment.from_template(found)
        return replace(found, meta={**found.meta, "align_seconds": alignment.seconds})

    def before_levels(self, image: Image) -> dict[str, Landmarks]:
        """What each of the refiner's stages starts from, by the stage's name: evidence to size its sub-images by."""
        if self.refine is None:
            return {}
        found = {}
        levels = self.refine.stages()
        alignment = self._alignment(image)
        if alignment is not None:
            image = alignment.moved(image)
        first = self.method.locate(self._for_method(image, alignment))
        for k, stage in enumerate(levels):
            self.refine.use_levels(k)
            there = self.refine.locate(image, first)
            found[stage.name] = there if alignment is None else alignment.from_template(there)
        self.refine.use_levels(len(levels))
        return found

    def frame(self, image: Image) -> Image | None:
        """The alignment of an image as working images hold it, to be computed once; None where nothing is aligned."""
        alignment = self._alignment(image)
        return None if alignment is None else _as_image(alignment)

    def _alignment(self, image: Image) -> Alignment | None:
        if self.aligner is None:
            return None
        known = image.meta.get(KNOWN)
        return self.aligner.align(image) if known is None else Alignment(known, float("nan"), 0.0)

    def _for_method(self, image: Image, alignment: Alignment | None) -> Image:
        """An aligned image as the method can read it: upright on the template's axes where it goes by voxels."""
        if alignment is None or not self.config.method.axis_bound:
            return image
        return resample(image, upright(image.grid), fill=float(image.subsample().min()))

    def _part(self, stage: Stage) -> Method:
        if self.refine is not None and stage.name.startswith(REFINE):
            return self.refine
        return self.method


@dataclass(frozen=True)
class _InTemplate(Sequence[TrainingCase]):
    """Training cases with their landmarks in the template's world, where there is one."""

    cases: Sequence[TrainingCase]

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, i: int) -> TrainingCase: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[TrainingCase]: ...
    def __getitem__(self, i: int | slice) -> TrainingCase | Sequence[TrainingCase]:
        return _InTemplate(self.cases[i]) if isinstance(i, slice) else _in_template(self.cases[i])


def _as_image(alignment: Alignment) -> Image:
    """One voxel whose grid is the alignment, so that it can be kept among working images."""
    d = len(alignment.affine) - 1
    return Image(np.zeros((1,) * (d + 1), np.float32), Grid((1,) * d, alignment.affine))


def _in_template(case: TrainingCase) -> TrainingCase:
    if FRAME not in case.images:
        return case
    alignment = Alignment(case.images[FRAME].grid.affine, float("nan"), 0.0)
    return replace(case, landmarks=alignment.to_template(case.landmarks))


def _to_align(config: ComposedConfig, study: Study) -> bool:
    """As the config says, else where the method's author wants it and the images are 3D: projections of a head that
    nods are no transforms of each other."""
    wanted = config.align.enabled
    return (config.method.aligned and study.cases[0].landmarks.ndim == 3) if wanted is None else wanted


def _aligned_study(aligner: Aligner, study: Study, names: Sequence[str]) -> Study:
    """The cases in the template's world, as their landmarks say where it lies; by the image where these do not.
    ``names``: of the landmarks of the template's mean shape."""

    def moved(case: StudyCase) -> StudyCase:
        own = case.landmarks.select(names).points
        mean = aligner.mean_shape
        shared = (np.isfinite(own) & np.isfinite(mean)).all(1) if len(mean) == len(own) else np.zeros(len(own), bool)
        if shared.sum() < own.shape[1]:
            alignment = aligner.align(case.image())
        else:
            pose = procrustes(mean, own, scale=aligner.config.kind != "rigid")
            affine = np.eye(own.shape[1] + 1)
            affine[:-1, :-1], affine[:-1, -1] = pose.rotation * pose.scale, pose.translation
            alignment = Alignment(affine, float("nan"), 0.0)
        return StudyCase(case.id, alignment.to_template(case.landmarks), lambda: alignment.moved(case.image()))

    return replace(study, cases=[moved(c) for c in study.cases], aligned=True)


def upright(grid: Grid) -> Grid:
    """A grid along the world's axes with the spacing of a turned one, over its extent."""
    d = grid.ndim
    ends = np.stack(np.meshgrid(*([-0.5, n - 0.5] for n in grid.shape), indexing="ij"), -1).reshape(-1, d)
    corners = grid.to_world(ends)
    spacing = np.full(d, grid.spacing.min())
    low, size = corners.min(0), np.ptp(corners, axis=0)
    shape = np.maximum(1, np.ceil(size / spacing - 1e-6)).astype(int)
    return Grid.from_axes(shape[::-1].tolist(), np.diag(spacing)[:, ::-1], low + spacing / 2)


def with_frame(method: Method, image: Image) -> dict[str, Image]:
    """An image to keep, and the alignment of it, if the method has one, which need then not be found again."""
    frame = method.frame(image) if isinstance(method, Composed) else None
    return {"image": image} if frame is None else {"image": image, FRAME: frame}


def framed(images: Mapping[str, Image]) -> Image:
    """The image of :func:`with_frame`, which knows its alignment."""
    image = images["image"]
    return image if FRAME not in images else replace(image, meta={**image.meta, KNOWN: images[FRAME].grid.affine})


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
    if REFINE not in plan.facts and ALIGN not in plan.facts:  # all are the method's
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
