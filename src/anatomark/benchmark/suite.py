"""The suite: which data sets, methods and seeds; read from YAML and turned into cells, each checked before any work."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anatomark.benchmark.sets import SETS, VARIABLE, contents, data_folder
from anatomark.cases.manifest import Manifest, read_manifest
from anatomark.errors import InputError, nearest
from anatomark.model.config import RunConfig, checked, completed, make_config, read_yaml
from anatomark.progress import Reporter

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
Places = str | dict[str, str]  # a path with {data} and {seed}, or one for each data set


class DataEntry(BaseModel):
    """A data set: its manifest, or ``make`` for one that the project knows, and what of it is measured how."""

    model_config = ConfigDict(extra="forbid")
    manifest: str | None = None
    make: Literal["cephalogram", "mouse_skull", "brain"] | None = None
    split: Literal["train", "val", "test"] | None = None  # None: test, else val
    truth: str | None = None
    thresholds: list[float] = Field(default=[2.0, 2.5, 3.0, 4.0], min_length=1)  # mm, of the SDR
    set: dict[str, Any] = Field(default_factory=dict)  # settings of every method here

    @model_validator(mode="after")
    def _one_source(self) -> DataEntry:
        if (self.manifest is None) == (self.make is None):
            raise ValueError("give manifest (a path) or make (a data set that is known), one of them")
        if not all(0 < t < float("inf") for t in self.thresholds):
            raise ValueError("thresholds are positive distances in mm")
        return self


class MethodEntry(BaseModel):
    """A method to train; or an ``ensemble`` of the suite's methods, their runs of all seeds averaged; or a ``run``,
    ``predictions`` or ``evaluation`` that is there already."""

    model_config = ConfigDict(extra="forbid")
    method: str | None = None
    preset: str | None = None
    config: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    minutes: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    folds: int = Field(default=0, ge=0)
    init: Places | None = None
    run: Places | None = None
    predictions: Places | None = None
    evaluation: Places | None = None
    ensemble: list[str] | None = Field(default=None, min_length=1)
    tta: int = Field(default=1, ge=1)  # views of each image that are averaged
    data: list[str] | None = None  # None: on all data sets

    @property
    def given(self) -> bool:
        """Whether nothing is trained."""
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

    model_config = ConfigDict(extra="forbid")
    data: dict[str, DataEntry] = Field(min_length=1)
    methods: dict[str, MethodEntry] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    minutes: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
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
            raise ValueError(f"baseline {self.baseline!r} is no method here{_near(self.baseline, self.methods)}")
        trained = [n for n, m in self.methods.items() if not m.given]
        for name, entry in self.methods.items():
            if wrong := [m for m in entry.ensemble or () if m not in trained]:
                raise ValueError(f"methods.{name}.ensemble: {wrong[0]!r} is not trained here{_near(wrong[0], trained)}")
            if strange := [d for d in entry.data or () if d not in self.data]:
                raise ValueError(
                    f"methods.{name}.data: {strange[0]!r} is no data set here{_near(strange[0], self.data)}"
                )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: each once, 0 or more")
        return self


def _near(word: str, known: Any) -> str:
    return nearest(word, list(known)) or f"; known: {', '.join(known)}"


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one seed. ``config`` None: nothing is trained. ``key``: what the result depends
    on, as plain data; a stored result of another key is not mixed with this one. ``inputs``: further such data,
    compared where a stored result has them. ``members``: the runs of an ensemble.
    """

    data: str
    method: str
    seed: int
    folder: Path
    manifest: Path
    split: str
    truth: str | None
    config: RunConfig | None
    folds: int
    init: str | None
    run: Path
    evaluation: Path
    predictions: Path | None
    members: tuple[Path, ...]
    tta: int
    threads: int | None
    device: str | None
    key: dict[str, Any]
    inputs: dict[str, Any]

    @property
    def name(self) -> str:
        """``data/method/seed0``, as the folder is called."""
        return f"{self.data}/{self.method}/seed{self.seed}"

    @property
    def model(self) -> str:
        """What is evaluated."""
        return "+".join(map(str, self.members)) or str(self.predictions or self.run)

    @property
    def runs(self) -> tuple[Path, ...]:
        """The run folders of the models that it uses."""
        return self.members or (() if self.predictions is not None else (self.run,))


def read_suite(path: str | os.PathLike[str], minutes: float | None = None) -> Suite:
    """A suite file; ``minutes`` replaces its budgets. Raises InputError with the key, and the nearest known one."""
    suite: Suite = checked(Suite, read_yaml(path), str(path))
    if minutes is None:
        return suite
    if minutes <= 0:
        raise InputError(f"--minutes {minutes:g}: give a positive number")
    methods = {n: m.model_copy(update={"minutes": None, "steps": None}) for n, m in suite.methods.items()}
    return suite.model_copy(update={"methods": methods, "minutes": minutes, "steps": None})


def plan_cells(suite: Suite, path: Path, out: Path, manifests: Path, report: Reporter) -> list[Cell]:
    """The suite's cells in the order of the work: data set, seed, method; ensembles last.

    Writes the manifests that are to be made into ``manifests``; a known data set whose folder is absent is skipped with
    a line. Raises InputError.
    """
    cells = []
    for name, entry in suite.data.items():
        table = _manifest(name, entry, path, manifests, report)
        if table is None:
            continue
        split = entry.split or ("test" if table.has_split("test") else "val")
        table.split(split)  # refuses an empty one
        source = _Source(table, split, contents(table))
        for seed in suite.seeds:
            for method, how in suite.methods.items():
                if (how.data is None or name in how.data) and how.ensemble is None:
                    cells += _cell(suite, path, out, (name, method, seed), source)
        for method, how in suite.methods.items():
            if (how.data is None or name in how.data) and how.ensemble is not None:
                members = [c for c in cells if c.data == name and c.method in how.ensemble]
                left = [m for m in how.ensemble if m not in {c.method for c in members}]
                if members and left:
                    raise InputError(
                        f"{path}: methods.{method}.ensemble: {', '.join(map(repr, left))} of it not trained on "
                        f"{name!r}; train there too, or name in methods.{method}.data where all are"
                    )
                cells += _cell(suite, path, out, (name, method, suite.seeds[0]), source, members)
    if not cells:
        raise InputError(f"{path}: no data set of it is there; set {VARIABLE} to the folder that holds them")
    return cells


@dataclass(frozen=True)
class _Source:
    """A data set's manifest, the split that is measured, and what results depend on beside (:func:`contents`)."""

    table: Manifest
    split: str
    contents: dict[str, dict[str, str]]


def _manifest(name: str, entry: DataEntry, suite: Path, out: Path, report: Reporter) -> Manifest | None:
    if entry.make is None:
        assert entry.manifest is not None
        return read_manifest(_expanded(entry.manifest, suite, f"data.{name}.manifest"))
    source = data_folder() / entry.make
    if not source.is_dir():
        report.say(f"skipped {name}: there is no folder {source} (set {VARIABLE})")
        return None
    return read_manifest(SETS[entry.make](source, out))


def _expanded(text: str, suite: Path, key: str) -> Path:
    """The path with its environment variables, relative to the suite's folder. Raises InputError for an unset one."""
    known = {**os.environ, VARIABLE: str(data_folder())}
    unset = [v for v in re.findall(r"\$\{(\w+)\}", text) if v not in known]
    if unset:
        raise InputError(f"{suite}: {key}: the environment variable {unset[0]} is not set")
    full = re.sub(r"\$\{(\w+)\}", lambda m: known[m.group(1)], text)
    return Path(os.path.abspath(suite.parent / Path(full).expanduser()))


def _cell(
    suite: Suite,
    path: Path,
    out: Path,
    where: tuple[str, str, int],
    source: _Source,
    members: Sequence[Cell] = (),
) -> list[Cell]:
    """The cell of (data, method, seed); empty where the method gives nothing for this data set and seed."""
    (data, method, seed), table, split = where, source.table, source.split
    how, entry, folder = suite.methods[method], suite.data[data], out / data / method / f"seed{seed}"
    named = {k: _place(getattr(how, k), suite, where) for k in ("init", "run", "predictions", "evaluation")}
    if how.given and not any(named.values()) and not members:
        return []
    at = {k: None if v is None else _expanded(v, path, f"methods.{method}.{k}") for k, v in named.items()}
    for what, place in at.items():
        if what != "init" and place is not None and not place.is_dir():
            raise InputError(f"{path}: methods.{method}.{what}: there is no folder {place}")
    init = named["init"]
    if init is not None and at["init"] is not None and (at["init"].is_dir() or os.sep in init or "$" in init):
        init = str(at["init"])  # else a zoo model's name
    config = None if how.given else _config(suite, path, where)
    key: dict[str, Any] = {
        "cases": [[c.id, c.split, Path(str(c.path)).name, Path(str(c.source or "")).name] for c in table.cases],
        "split": split,
        "truth": entry.truth,
        "config": None if config is None else asked(config),
        "folds": how.folds,
        **named,
        "members": [c.key for c in members],
        "tta": how.tta,
    }
    machine = {"threads": suite.threads, "device": suite.device}
    inputs: dict[str, Any] = dict(source.contents)
    if not how.given:
        key |= machine
    elif how.predictions is None and how.evaluation is None:  # what is there is measured here
        inputs |= machine
    return [
        Cell(
            *where, folder, table.path, split, entry.truth, config, how.folds, init, at["run"] or folder / "run",
            at["evaluation"] or folder / "evaluation", at["predictions"],
            tuple(c.run for c in members), how.tta, suite.threads, suite.device, key, inputs,
        )
    ]  # fmt: skip


def _place(places: Places | None, suite: Suite, where: tuple[str, str, int]) -> str | None:
    """The path for a data set and seed; one without ``{seed}`` belongs to the first seed alone."""
    data, _, seed = where
    text = places.get(data) if isinstance(places, dict) else places
    if text is None or ("{seed}" not in text and seed != suite.seeds[0] and suite.methods[where[1]].given):
        return None
    return text.replace("{data}", data).replace("{seed}", str(seed))


def _config(suite: Suite, path: Path, where: tuple[str, str, int]) -> RunConfig:
    data, method, seed = where
    how, entry = suite.methods[method], suite.data[data]
    budget: dict[str, Any] = {"minutes": how.minutes, "steps": how.steps}
    if not any(budget.values()):
        budget = {"minutes": suite.minutes, "steps": suite.steps}
    settings = {**suite.set, **entry.set, **how.set}
    base = None if how.config is None else _expanded(how.config, path, f"methods.{method}.config")
    try:
        config = make_config(
            base, [_assignment(k, v) for k, v in settings.items()], method=how.method, preset=how.preset,
            seed=seed, threads=suite.threads, device=suite.device, **budget,
        )  # fmt: skip
        completed(config)  # refuses what the method does not know
        return config
    except InputError as error:
        raise InputError(f"{path}: methods.{method}: {error}") from None


def _assignment(key: str, value: Any) -> str:
    try:
        return f"{key}={json.dumps(value)}"
    except TypeError:  # YAML knows dates and more, settings do not
        kind = type(value).__name__
        raise InputError(f"set.{key}: {value} is a {kind}, which no setting is; put a text in quotes") from None


def asked(config: RunConfig) -> dict[str, Any]:
    """The settings that were given, as plain data; those that were not are left to the method, or to ``auto``."""
    return config.model_dump(mode="json", exclude_unset=True)


def fingerprint(key: dict[str, Any]) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def chosen(suite: Suite, cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of the data sets and methods named in ``only``; all without a name. Raises InputError for an unknown
    one, and where nothing is left."""
    for name in only:
        if name not in suite.data and name not in suite.methods:
            raise InputError(f"--only {name}: no data set or method{_near(name, [*suite.data, *suite.methods])}")
    data = [n for n in only if n in suite.data] or list(suite.data)
    methods = [n for n in only if n in suite.methods] or list(suite.methods)
    kept = [c for c in cells if c.data in data and c.method in methods]
    if not kept:
        raise InputError(f"--only {' --only '.join(only)}: no cell of the suite is left")
    return kept
