"""What a run trains and uses as one: a method and, where asked for, the alignment before and the refiner after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import nn

from anatomark.cases.case import Case
from anatomark.core.alignment import Alignment
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import resample
from anatomark.core.shape import procrustes
from anatomark.errors import InputError
from anatomark.io.confidence import plain
from anatomark.methods.base import Batch, Evidence, Facts, Method, MethodConfig, PerLandmark, Stage, Study
from anatomark.model.align.aligner import AlignConfig, Aligner, AlignFacts
from anatomark.model.config import RunConfig, checked, method_of, refined
from anatomark.model.refine.refiner import RefineConfig, Refiner, RefinerFacts
from anatomark.model.settle import SettleFacts, settled
from anatomark.model.sizes import ImageFacts, check_size
from anatomark.model.start import moved_weights

METHOD, REFINE = "method", "refine"  # the parts; what their tensors' names begin with
SETTLE = "settle"


@dataclass(frozen=True)
class Plan:
    """What a run knows of its training data: the facts of its method, and of what stands before and after it;
    ``settle``: where held-out cases said that the mean shape must help."""

    method: Facts
    align: AlignFacts | None = None
    refine: RefinerFacts | None = None
    settle: SettleFacts | None = None
    images: ImageFacts | None = None  # None: runs of earlier versions

    @property
    def names(self) -> list[str]:
        return self.method.names

    @property
    def ndim(self) -> int:
        return self.method.ndim

    def to_json(self) -> dict[str, Any]:
        """``plan.json``: the shared fields, ``images``, and under ``facts`` the method's own, ``align`` and
        ``refine``."""
        shared = self.method.model_dump(mode="json", include=set(Facts.model_fields))
        facts = self.method.own()
        if self.align is not None or self.refine is not None:
            facts["align"] = None if self.align is None else self.align.model_dump(mode="json")
        if self.refine is not None:
            facts[REFINE] = self.refine.own()
        if self.settle is not None:
            facts[SETTLE] = self.settle.model_dump(mode="json")
        images = {} if self.images is None else {"images": self.images.model_dump(mode="json")}
        return {**shared, **images, "facts": facts}

    @classmethod
    def from_json(cls, data: Any, method: type[Method], where: str) -> Plan:
        """The inverse of :meth:`to_json`, for a run of ``method``. Raises InputError that names ``where``."""
        shared = dict(data) if isinstance(data, Mapping) else {}
        own, images = shared.pop("facts", None) or {}, shared.pop("images", None)
        if not isinstance(own, dict):
            raise InputError(f"{where}: facts: expected keys and values, found {type(own).__name__}")
        own = dict(own)
        align, refine, settle = own.pop("align", None), own.pop(REFINE, None), own.pop(SETTLE, None)
        if refine is not None and not isinstance(refine, dict):
            raise InputError(f"{where}: facts.refine: expected keys and values, found {type(refine).__name__}")
        facts = checked(method.Facts, {**shared, **own}, where)
        return cls(
            facts,
            None if align is None else checked(AlignFacts, align, f"{where}: facts.align"),
            None if refine is None else checked(RefinerFacts, {**shared, **refine}, f"{where}: facts.refine"),
            None if settle is None else _settle(checked(SettleFacts, settle, f"{where}: facts.settle"), facts, where),
            None if images is None else checked(ImageFacts, images, f"{where}: images"),
        )


def _settle(settle: SettleFacts, facts: Facts, where: str) -> SettleFacts:
    """The same, if it is of these landmarks. Raises InputError."""
    try:
        facts.check_points("mean_shape", settle.mean_shape)
    except ValueError as error:
        raise InputError(f"{where}: facts.settle: {error}") from None
    return settle


@dataclass(frozen=True)
class Composition:
    """The classes and settings of what a run's config describes; ``refined``: whether the refiner follows."""

    method: type[Method]
    settings: MethodConfig
    align: AlignConfig
    refine: RefineConfig
    refined: bool

    @classmethod
    def of(cls, config: RunConfig) -> Composition:
        """Raises InputError for an unknown method, preset or setting."""
        method, settings = method_of(config)
        return cls(method, settings, config.align, config.refine, refined(method, config))

    def prepare(self, study: Study, old: Plan | None = None) -> Plan:
        """All that depends on the data. Another run's plan ``old``, whose weights are to be started from, lends its
        template and its frames. With ``refine.only`` its method stays as it is. Raises InputError."""
        align, images = None, ImageFacts.of(study.cases)
        if self.refine.only:
            assert old is not None
            align = old.align
        elif self._aligns(study):
            align = (old.align if old is not None else None) or Aligner.prepare(self.align, study)
        if align is not None:
            names = old.names if old is not None and old.align is align else list(study.names)
            study = _aligned(Aligner(self.align, align), study, names)
        if self.refine.only and old is not None:
            facts = old.method
        else:
            facts = self.method.prepare(self.settings, study)
            if not facts.descriptions:
                texts = [plain(text) for text in study.cases[0].landmarks.descriptions]
                facts = facts.model_copy(update={"descriptions": texts})
        after = None
        if self.refined:
            after = Refiner.prepare(self.refine, replace(study, names=tuple(facts.names), known=facts))
            after = after.model_copy(update={"descriptions": facts.descriptions})
        if old is not None and isinstance(old.method, self.method.Facts):
            facts = self.method.adapted(facts, old.method)
        if after is not None and old is not None and old.refine is not None:
            after = Refiner.adapted(after, old.refine)
        return Plan(facts, align, after, images=images)

    def _aligns(self, study: Study) -> bool:
        """As the config says, else where the method's author wants it and the images are 3D: projections of a head that
        nods are no transforms of each other."""
        wanted = self.align.enabled
        return (self.method.aligned and study.cases[0].landmarks.ndim == 3) if wanted is None else wanted

    def build(self, plan: Plan) -> Composed:
        return Composed(self, plan)


class Located(NamedTuple):
    """What :meth:`Composed.find` says, and where the image lies in the template's world, if there is one."""

    landmarks: Landmarks
    alignment: Alignment | None


class Composed(nn.Module):
    """An alignment (or none), a method, then the refiner (or none). Tensors are named ``method.*`` and ``refine.*``.

    Method and refiner live in the template's world, where there is one; images and landmarks go there and back.
    """

    def __init__(self, parts: Composition, plan: Plan):
        super().__init__()
        self.parts, self.align_facts, self.settle, self.images = parts, plan.align, plan.settle, plan.images
        self.method = parts.method(parts.settings, plan.method)
        self.refine = None if plan.refine is None else Refiner(parts.refine, plan.refine)
        self.aligner = None if plan.align is None else Aligner(parts.align, plan.align)
        self.refines = plan.refine is not None and len(plan.refine.levels) > 0  # whether the refiner is trained yet

    @property
    def plan(self) -> Plan:
        """As it is now: training settles some of it."""
        return Plan(
            self.method.facts,
            self.align_facts,
            None if self.refine is None else self.refine.facts,
            self.settle,
            self.images,
        )

    # ------------------------------------------------------------------ training

    def stages(self) -> list[Stage]:
        """The method's, then the refiner's; every name once."""
        first = [] if self.parts.refine.only else self.method.stages()
        out = [_of_part(s, METHOD, s.name) for s in first]
        for stage, name in zip(self.refine.stages() if self.refine else (), self._refiner_names(), strict=True):
            out.append(_of_part(stage, REFINE, name))
        return out

    def _refiner_names(self) -> list[str]:
        """Of its stages; changed where the method has a stage of such a name."""
        taken = {s.name for s in self.method.stages()}
        own = [s.name for s in self.refine.stages()] if self.refine is not None else []
        return [n if n not in taken else f"{REFINE}.{n}" for n in own]

    def begin(self, stage: Stage, evidence: Evidence) -> None:
        """While the method is trained the refiner is left out of :meth:`locate`."""
        self.refines = stage.part == REFINE
        self._part(stage).begin(stage, evidence)

    def working_images(self, image: Image) -> tuple[dict[str, Image], Alignment | None]:
        """Of both parts, as far as they are trained, in the template's world; and where the image lies in it."""
        alignment = self.alignment(image)
        image = image if alignment is None else alignment.moved(image)
        out = {}
        if not self.parts.refine.only:
            out.update(_named(METHOD, self.method.working_images(self._for_method(image, alignment))))
        if self.refine is not None:
            out.update(_named(REFINE, self.refine.working_images(image)))
        return out, alignment

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        return self._part(stage).examples(_for_part(case, stage.part), stage, rng)

    def collect(self, cases: Sequence[Case], stage: Stage, rng: np.random.Generator) -> Iterator[Batch] | None:
        return self._part(stage).collect(_ForPart(cases, stage.part), stage, rng)

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        return self._part(stage).loss(batch, stage)

    def after_step(self, stage: Stage) -> None:
        self._part(stage).after_step(stage)

    def notes(self) -> list[str]:
        return [*self.method.notes(), *(self.refine.notes() if self.refine is not None else [])]

    def start_from(self, weights: Mapping[str, torch.Tensor], old: Plan) -> dict[str, torch.Tensor]:
        """Another run's weights as this one's state can take them: landmarks at their places, what does not fit left
        out."""
        own, out = self.state_dict(), {}
        for name, part in ((METHOD, self.method), (REFINE, self.refine)):
            if part is None:
                continue
            rules: Mapping[str, int | PerLandmark | None] = part.per_landmark()
            theirs = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
            moved = moved_weights(theirs, rules, part.facts.names, old.names, part.state_dict())
            out.update({f"{name}.{k}": v for k, v in moved.items()})
        return {k: v for k, v in out.items() if k in own and own[k].shape == v.shape}

    # ------------------------------------------------------------------ use

    def locate(self, image: Image) -> Landmarks:
        """Landmarks of an image in its world, mm."""
        return self.find(image).landmarks

    def find(self, image: Image, alignment: Alignment | None = None) -> Located:
        """The method's landmarks in the aligned image, refined and brought back; ``alignment``: if it is known. Raises
        InputError for an image of an impossible size (``sizes.py``)."""
        check_size(image, self.images, self.method.facts)
        alignment = self.alignment(image) if alignment is None else alignment
        moved = image if alignment is None else alignment.moved(image)
        landmarks = self.method.locate(self._for_method(moved, alignment))
        if self.refine is not None and self.refines:
            landmarks = self.refine.locate(moved, landmarks)
        landmarks = landmarks if alignment is None else alignment.from_template(landmarks)
        return Located(landmarks if self.settle is None else settled(landmarks, self.settle, image.grid), alignment)

    def before_stages(self, image: Image) -> dict[str, Landmarks]:
        """What the stages that ask for evidence start from, by the stage's name, in the image's world."""
        if self.refine is None:
            return {}
        alignment = self.alignment(image)
        moved = image if alignment is None else alignment.moved(image)
        first = self.method.locate(self._for_method(moved, alignment))
        before = self.refine.before_stages(moved, first)
        named = {n: before[s.name] for s, n in zip(self.refine.stages(), self._refiner_names(), strict=True)}
        return named if alignment is None else {n: alignment.from_template(b) for n, b in named.items()}

    def alignment(self, image: Image) -> Alignment | None:
        """Where an image lies in the template's world; None where nothing is aligned."""
        return None if self.aligner is None else self.aligner.align(image)

    def _for_method(self, image: Image, alignment: Alignment | None) -> Image:
        """An aligned image as the method can read it: upright on the template's axes where it goes by voxels."""
        if alignment is None or not self.parts.method.axis_bound:
            return image
        return resample(image, upright(image.grid), fill=float(image.subsample().min()))

    def _part(self, stage: Stage) -> Method:
        if stage.part == METHOD:
            return self.method
        assert self.refine is not None
        return self.refine


@dataclass(frozen=True)
class _ForPart(Sequence[Case]):
    """Training cases as a part sees them, opened when they are asked for."""

    cases: Sequence[Case]
    part: str

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, i: int) -> Case: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Case]: ...
    def __getitem__(self, i: int | slice) -> Case | Sequence[Case]:
        return _ForPart(self.cases[i], self.part) if isinstance(i, slice) else _for_part(self.cases[i], self.part)


def _for_part(case: Case, part: str) -> Case:
    """The case in the template's world, with the working images of one part, named as the part names them."""
    names = ((key, key.partition("/")) for key in case.images)
    own = {name: case.images[key] for key, (of, _, name) in names if of == part}
    return replace(case.in_template(), images=own)


def _named(part: str, images: Mapping[str, Image]) -> dict[str, Image]:
    return {f"{part}/{name}": image for name, image in images.items()}


def _of_part(stage: Stage, part: str, name: str) -> Stage:
    return replace(stage, part=part, name=name, modules=tuple(f"{part}.{m}" for m in stage.modules) or (part,))


def _aligned(aligner: Aligner, study: Study, names: Sequence[str]) -> Study:
    """The cases in the template's world, as their landmarks say where it lies; by the image where these do not.
    ``names``: of the landmarks of the template's mean shape."""

    def moved(case: Case) -> Case:
        own, mean = case.landmarks.select(names).points, aligner.mean_shape
        shared = (np.isfinite(own) & np.isfinite(mean)).all(1) if len(mean) == len(own) else np.zeros(len(own), bool)
        if shared.sum() < own.shape[1]:
            return case.in_template(aligner.align(case.image()))
        pose = procrustes(mean, own, scale=aligner.config.kind != "rigid")
        affine = np.eye(own.shape[1] + 1)
        affine[:-1, :-1], affine[:-1, -1] = pose.rotation * pose.scale, pose.translation
        return case.in_template(Alignment(affine))

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
