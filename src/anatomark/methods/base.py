"""The contract of a method: all that the rest of the package calls of it, and nothing else.

A method owns its targets, its loss and its decoding. It opens no file and keeps no global state. ``docs/how-to/
add-a-method.md`` holds a complete one; ``tests/contract`` checks any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import nn

from anatomark.cases.case import Case
from anatomark.core.image import Image
from anatomark.core.intensity import check_rule
from anatomark.core.landmarks import Landmarks
from anatomark.io.confidence import plain

Batch = dict[str, torch.Tensor]


MOST = 10**9  # no setting is larger: a slip of the hand must not train for ever
Pixels = Annotated[int, Field(le=1024)]  # along the side of a block or patch
Channels = Annotated[int, Field(ge=1, le=2048)]  # of a layer
Rounds = Annotated[int, Field(le=10_000)]  # looks, passes, starts: each costs its time in every prediction
Batches = Annotated[int, Field(le=4096)]
Length = Annotated[float, Field(gt=0, le=1e6)]  # mm
Share = Annotated[float, Field(ge=0, le=1)]
Angle = Annotated[float, Field(ge=0, le=180)]  # degrees
Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]  # mm


class MethodConfig(BaseModel):
    """Base of every method's settings: units in the names, unknown keys refused, numbers finite and at most ``MOST``.
    What costs memory or time has a smaller range of its own (``Pixels``, ``Channels``, ``Rounds``, ``Batches``)."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _not_huge(cls, value: Any) -> Any:
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and abs(number) > MOST:
                raise ValueError(f"at most {MOST:,} is possible, found {number:.3g}")
        return value


class Stored(BaseModel):
    """Base of what a run folder's JSON holds: exact types, finite numbers, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Facts(Stored):
    """What a method needs to know of its training data to be rebuilt, plain JSON; a method adds fields of its own.

    ``names`` in the model's order; ``ndim`` 2 or 3; ``modality`` and ``intensity`` say how values are normalised
    (``core/intensity.py``). Never changed in place: what training settles replaces ``Method.facts``.
    """

    names: list[str] = Field(min_length=1)
    ndim: Literal[2, 3]
    descriptions: list[str] = []
    modality: str
    intensity: dict[str, Any]

    @field_validator("descriptions")
    @classmethod
    def _without_scores(cls, texts: list[str]) -> list[str]:
        """Of points that a model found, whatever file they came in."""
        return [plain(text) for text in texts]

    @model_validator(mode="after")
    def _agreeing(self) -> Facts:
        check_rule(self.intensity)
        if not all(self.names) or len(set(self.names)) < len(self.names):
            raise ValueError("names: each landmark has one name of its own")
        if self.descriptions and len(self.descriptions) != len(self.names):
            raise ValueError(f"descriptions: {len(self.descriptions)} for {len(self.names)} landmarks")
        return self

    def check_points(self, field: str, points: Sequence[Sequence[Any]]) -> None:
        """Raises ValueError unless ``points`` (of a field) are one for each landmark, of ``ndim`` coordinates."""
        if len(points) != len(self.names) or any(len(p) != self.ndim for p in points):
            raise ValueError(f"{field}: is not {len(self.names)} points of {self.ndim} coordinates")

    def own(self) -> dict[str, Any]:
        """The fields that the method added, as plain JSON, without those that are None because nobody gave them."""
        plain = self.model_dump(mode="json", exclude=set(Facts.model_fields))
        return {k: v for k, v in plain.items() if v is not None or k in self.model_fields_set}


@dataclass(frozen=True)
class Study:
    """The training cases and what is already established of them. ``aligned``: they lie in a template's world, as every
    image will that is to be located; ``known``: the facts of the method before this one, for the refiner."""

    cases: Sequence[Case]
    names: tuple[str, ...]
    modality: str
    intensity: Mapping[str, Any]
    aligned: bool = False
    known: Facts | None = None

    def facts(self, ndim: int | None = None) -> dict[str, Any]:
        """The fields that all :class:`Facts` have."""
        shared = {"names": list(self.names), "modality": self.modality, "intensity": dict(self.intensity)}
        return {**shared, "ndim": self.cases[0].landmarks.ndim if ndim is None else ndim}


@dataclass(frozen=True)
class Task:
    """What ``auto`` knows when it asks the methods: the data, and what will be done with them.

    ``cases`` to learn from, those held out among them; ``turned_deg``: the most turned case against the mean shape;
    ``radius_mm`` of the mean shape; ``voxel_mm``: the finest spacing, median over cases; ``observed``: whether a named
    observer and at least one other marked every case; ``time``: of training, in words; ``refined``: whether a refiner
    follows; ``align``: what the user said of the alignment, if anything.
    """

    ndim: int
    landmarks: int
    cases: int
    turned_deg: float
    radius_mm: float
    voxel_mm: float
    observed: bool = False
    time: str = ""
    refined: bool = False
    align: bool | None = None


@dataclass(frozen=True)
class Stage:
    """One training stage. ``index``: which of its method's stages, from 0; ``part``: of a composition (set there).
    ``share``: of a time budget; ``schedule``: ``constant``, ``cosine``, or ``restarts`` (cosine with warm restarts:
    ``cycles`` periods that double fill the steps), each after ``warmup`` steps; ``modules`` names the sub-modules that
    are trained, all others are frozen; ``rates``, where given, by what factor the learning rate of each differs from
    ``lr``; ``ema``: decay of averaged weights, which then count; None: the last weights do."""

    name: str
    steps: int
    batch: int
    lr: float = 1e-3
    schedule: Literal["constant", "cosine", "restarts"] = "cosine"
    warmup: int = 50
    weight_decay: float = 0.0
    amsgrad: bool = False
    share: float = 1.0
    modules: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    clip_norm: float | None = None
    cycles: int = 1
    ema: float | None = None
    index: int = 0
    part: str = ""


@dataclass(frozen=True)
class Evidence:
    """What the stages before say of cases: predictions and truth by case. ``source``: ``validation``, ``augmented
    copies`` (of training cases, which are found more easily than new ones) or ``out-of-fold``."""

    predictions: Mapping[str, Landmarks] = field(default_factory=dict)
    truth: Mapping[str, Landmarks] = field(default_factory=dict)
    source: str = "validation"


@dataclass(frozen=True)
class PerLandmark:
    """How a tensor of a method's state runs over its N landmarks along ``axis``: as N blocks (``order`` ``outer``: all
    of the first landmark, then all of the second ...) or with the landmark's number running fastest (``inner``).
    ``new``: what a landmark gets that another model does not know: the ``mean`` of those it knows, ``zero``, or its
    ``own`` first weights."""

    axis: int = 0
    order: Literal["outer", "inner"] = "outer"
    new: Literal["mean", "zero", "own"] = "mean"


AnyFacts = Facts  # within a method the name is that of its own class


class Method(nn.Module):
    """A landmark method. A module is rebuilt from ``(config, facts)`` alone and then loads its weights."""

    Config: ClassVar[type[MethodConfig]]
    Facts: ClassVar[type[AnyFacts]] = Facts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # settings to start from, by the preset's name
    refined: ClassVar[bool] = False  # whether the refiner follows where the user does not say
    aligned: ClassVar[bool] = False  # whether 3D images are aligned to a template before where the user does not say
    axis_bound: ClassVar[bool] = False  # whether it reads voxels along the image's axes, which must then be upright
    config: Any
    facts: Any

    @classmethod
    def suits(cls, task: Task) -> str | None:
        """Why ``auto`` should take this method for a task, one clause; None: it should not. Methods of other
        packages are asked first, then ours in the order of the table. Optional."""
        return None

    @classmethod
    def prepare(cls, config: Any, study: Study) -> AnyFacts:
        """All that depends on the data, serialisable. Raises InputError where the data do not allow it."""
        raise NotImplementedError

    @classmethod
    def adapted(cls, facts: Any, old: Any) -> AnyFacts:
        """``facts`` in the frames and units of another model of this class with the facts ``old``, so that its weights
        mean the same to this one. Optional."""
        return facts

    def stages(self) -> list[Stage]:
        """The training stages in order."""
        raise NotImplementedError

    def begin(self, stage: Stage, evidence: Evidence) -> None:
        """Called before a stage; :meth:`locate` then leaves out what is trained after it. May replace ``self.facts``.
        Optional."""

    def working_images(self, image: Image) -> dict[str, Image]:
        """The images that ``examples`` reads as ``case.images``, normalised; they are cached on disk."""
        raise NotImplementedError

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """One training example as tensors without a batch axis. Runs in data workers; uses no weights; depends on the
        case and ``rng`` alone."""
        raise NotImplementedError

    def collect(self, cases: Sequence[Case], stage: Stage, rng: np.random.Generator) -> Iterator[Batch] | None:
        """Batches made in the main process with the current weights. None: use :meth:`examples`. Optional."""
        return None

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """``{"loss": scalar, ...}`` for a batch of stacked examples; further entries are logged."""
        raise NotImplementedError

    def after_step(self, stage: Stage) -> None:
        """Called after each optimiser step. Optional."""

    def notes(self) -> list[str]:
        """Sentences for the model card on what was settled in training. Optional."""
        return []

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """Landmarks of an image as read from a file: world mm, with score (0..1) and covariance (mm^2).

        ``start`` is a first guess. No file access, no globals; the same image gives the same answer.
        """
        raise NotImplementedError

    def before_stages(self, image: Image, start: Landmarks | None = None) -> dict[str, Landmarks]:
        """What stages that ask for evidence start from in an image, by the stage's name. Optional."""
        return {}

    def per_landmark(self) -> Mapping[str, int | PerLandmark | None]:
        """Which tensors of the state run over landmarks, and along which axis, by patterns of their names
        (``net.head.*``; the first that fits counts); None: another model's is not taken over. ``{landmark}`` in a
        pattern stands for the landmark's number: each landmark has tensors of its own. By this another model's weights
        are moved to this one's landmarks (``model/start.py``). Optional."""
        return {}
