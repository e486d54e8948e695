"""The suite file: which data sets, methods, seeds and budget."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from anatomark.errors import check_range, nearest
from anatomark.methods.base import MOST
from anatomark.model.config import MOST_MINUTES, MOST_SEED, checked, read_yaml
from anatomark.model.device import MOST_THREADS
from anatomark.model.views import MOST_VIEWS

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
Places = str | dict[str, str]  # a path with {data} and {seed}, or one for each data set


class DataEntry(BaseModel):
    """A data set: its manifest, and what of it is measured how."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    manifest: str
    split: Literal["train", "val", "test"] | None = None  # None: test, else val
    truth: str | None = None
    thresholds: list[float] = Field(default=[2.0, 2.5, 3.0, 4.0], min_length=1)  # mm, of the SDR
    set: dict[str, Any] = Field(default_factory=dict)  # settings of every method here

    @field_validator("thresholds")
    @classmethod
    def _sound(cls, thresholds: list[float]) -> list[float]:
        from anatomark.evaluation.metrics import check_thresholds

        check_thresholds(thresholds)
        return thresholds


class MethodEntry(BaseModel):
    """A method to train; or an ``ensemble`` of the suite's methods, their runs of all seeds averaged; or a ``run``,
    ``predictions`` or ``evaluation`` that is there already."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    method: str | None = None
    preset: str | None = None
    config: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    minutes: float | None = Field(default=None, gt=0, le=MOST_MINUTES)
    steps: int | None = Field(default=None, ge=1, le=MOST)
    folds: int = Field(default=0, ge=0, le=MOST)
    init: Places | None = None
    run: Places | None = None
    predictions: Places | None = None
    evaluation: Places | None = None
    ensemble: list[str] | None = Field(default=None, min_length=1)
    tta: int = Field(default=1, ge=1, le=MOST_VIEWS)  # views of each image that are averaged
    data: list[str] | None = None  # None: on all data sets

    @property
    def given(self) -> bool:
        return any(v is not None for v in (self.run, self.predictions, self.evaluation, self.ensemble))

    @model_validator(mode="after")
    def _one_kind(self) -> MethodEntry:
        training = {"method", "preset", "config", "set", "minutes", "steps", "folds", "init"} & self.model_fields_set
        if self.given and training:
            raise ValueError(f"{', '.join(sorted(training))}: nothing is trained where {self._sources()} is given")
        if not self.given and self.method is None and self.config is None:
            raise ValueError("give method or config, an ensemble, or a run, predictions or evaluation that is there")
        if self._sources() not in ("", "run", "evaluation", "run and evaluation", "predictions", "ensemble"):
            raise ValueError(f"{self._sources()} are given; only run and evaluation go together")
        if self.tta > 1 and (self.predictions is not None or self.evaluation is not None):
            raise ValueError(f"tta: nothing is predicted where {self._sources()} is given")
        return self

    def _sources(self) -> str:
        return " and ".join(k for k in ("run", "evaluation", "predictions", "ensemble") if getattr(self, k) is not None)


class Suite(BaseModel):
    """What a benchmark is to do. Budgets of the suite hold for methods that name none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    data: dict[str, DataEntry] = Field(min_length=1)
    methods: dict[str, MethodEntry] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    minutes: float | None = Field(default=None, gt=0, le=MOST_MINUTES)
    steps: int | None = Field(default=None, ge=1, le=MOST)
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    device: str | None = None
    baseline: str | None = None  # what the others' errors and times are divided by
    set: dict[str, Any] = Field(default_factory=dict)  # settings of every training

    @model_validator(mode="after")
    def _agreeing(self) -> Suite:
        for name in (*self.data, *self.methods):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r}: names are folders; use letters, digits and _ . + -")
        if self.minutes is not None and self.steps is not None:
            raise ValueError("minutes and steps are both given; give one of them")
        if self.baseline is not None and self.baseline not in self.methods:
            raise ValueError(f"baseline {self.baseline!r} is no method here{near(self.baseline, self.methods)}")
        trained = [n for n, m in self.methods.items() if not m.given]
        for name, entry in self.methods.items():
            if wrong := [m for m in entry.ensemble or () if m not in trained]:
                raise ValueError(f"methods.{name}.ensemble: {wrong[0]!r} is not trained here{near(wrong[0], trained)}")
            if strange := [d for d in entry.data or () if d not in self.data]:
                raise ValueError(
                    f"methods.{name}.data: {strange[0]!r} is no data set here{near(strange[0], self.data)}"
                )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0 or max(self.seeds) > MOST_SEED:
            raise ValueError(f"seeds: each once, 0 to {MOST_SEED}")
        return self


def read_suite(path: str | os.PathLike[str], minutes: float | None = None) -> Suite:
    """A suite file; ``minutes`` replaces its budgets. Raises InputError with the key, and the nearest known one."""
    suite: Suite = checked(Suite, read_yaml(path), str(path))
    if minutes is None:
        return suite
    check_range("minutes", minutes, 0, MOST_MINUTES, above=True)
    methods = {n: m.model_copy(update={"minutes": None, "steps": None}) for n, m in suite.methods.items()}
    return suite.model_copy(update={"methods": methods, "minutes": minutes, "steps": None})


def near(word: str, names: Collection[str]) -> str:
    """What a misspelt word may have meant, to be put behind it: the nearest of ``names``, else all."""
    return nearest(word, list(names)) or f"; known: {', '.join(names)}"
