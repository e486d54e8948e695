"""The contract between the engine and a method. The engine knows only this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks


class MethodConfig(BaseModel):
    """Base of every method's settings: units in the names, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Plan(BaseModel):
    """What a method needs to know of its training data to be rebuilt; written to ``plan.json``.

    ``names`` in the model's order; ``ndim`` 2 or 3; ``modality`` and ``intensity`` say how values are normalised
    (``data/intensity.py``); ``facts`` is the method's own (shape models, spacings ...), plain JSON.
    """

    model_config = ConfigDict(extra="forbid")
    names: list[str]
    ndim: int
    descriptions: list[str] = []
    modality: str
    intensity: dict[str, Any]
    facts: dict[str, Any] = {}


@dataclass(frozen=True)
class StudyCase:
    """One training case as ``prepare`` sees it: landmarks now, the image on demand (it is read anew at each call)."""

    id: str
    landmarks: Landmarks
    image: Any  # () -> Image


@dataclass(frozen=True)
class Study:
    """The training cases and what the engine already established of them. ``aligned``: they lie in a template's world,
    as every image will that is to be located."""

    cases: Sequence[StudyCase]
    names: tuple[str, ...]
    modality: str
    intensity: Mapping[str, Any]
    aligned: bool = False


@dataclass(frozen=True)
class TrainingCase:
    """One case as ``examples`` sees it: working images (float32, normalised; memory-mapped) and landmarks in the
    model's order, world mm, NaN where not defined."""

    id: str
    images: Mapping[str, Image]
    landmarks: Landmarks


@dataclass(frozen=True)
class Stage:
    """One training stage. ``share`` is its part of a time budget given as ``--minutes``; ``schedule`` is ``constant``,
    ``cosine``, or ``restarts`` (cosine with warm restarts: ``options["cycles"]`` periods that double fill the steps),
    each after ``warmup`` steps; ``modules`` names the sub-modules that are trained, all others are frozen; ``rates``,
    where given, says for each of them by what factor its learning rate differs from ``lr``."""

    name: str
    steps: int
    batch: int
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 50
    weight_decay: float = 0.0
    amsgrad: bool = False
    share: float = 1.0
    modules: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    clip_norm: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


Batch = dict[str, torch.Tensor]


class Method(nn.Module):
    """A landmark method. Subclasses own targets, loss and decoding together.

    ``Config`` is its settings' class, ``presets`` maps a preset's name to keyword settings. A module is rebuilt from
    ``(config, plan)`` alone and then loads its weights.
    """

    Config: ClassVar[type[MethodConfig]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    refined: ClassVar[bool] = False  # whether the refiner follows where the user does not say
    aligned: ClassVar[bool] = False  # whether 3D images are aligned to a template before where the user does not say
    axis_bound: ClassVar[bool] = False  # whether it reads voxels along the image's axes, which must then be upright
    config: Any
    plan: Plan

    @classmethod
    def prepare(cls, config: Any, study: Study) -> Plan:
        """All that depends on the data, serialisable."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """The training stages in order."""
        raise NotImplementedError

    def begin(self, stage: Stage, evidence: Mapping[str, Any]) -> None:
        """Called before a stage; ``evidence`` holds predictions and truth of the stages before. Optional."""

    def working_images(self, image: Image) -> dict[str, Image]:
        """The arrays that ``examples`` and ``locate`` read, normalised float32; the engine caches them on disk."""
        raise NotImplementedError

    def examples(self, case: TrainingCase, stage: Stage, rng: np.random.Generator) -> Batch:
        """One training example as tensors without a batch axis. Runs in data workers; uses no weights."""
        raise NotImplementedError

    def collect(self, cases: Sequence[TrainingCase], stage: Stage, rng: np.random.Generator) -> Iterator[Batch] | None:
        """Examples made in the main process with the current weights. None: use :meth:`examples`. Optional."""
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
        """Landmarks of an image as read from a file: world mm, with score and covariance (mm^2).

        ``start`` is a first guess. No file access, no globals; the same image gives the same answer.
        """
        raise NotImplementedError
