"""The cells of a suite, one method on one data set with one seed each, planned and checked before any work."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anatomark.benchmark.suite import Places, Suite, near
from anatomark.cases.manifest import Manifest, read_manifest
from anatomark.errors import InputError, listed
from anatomark.io.landmarks import split_observer
from anatomark.model.config import RunConfig, completed, make_config


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
    thresholds: Sequence[float]
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
        return "+".join(map(str, self.members)) or str(self.predictions or self.run)

    @property
    def runs(self) -> tuple[Path, ...]:
        return self.members or (() if self.predictions is not None else (self.run,))


@dataclass(frozen=True)
class _Plan:
    """A suite, its file and the folder of its results; the cells of one data set after the other."""

    suite: Suite
    path: Path
    out: Path

    def cells(self, data: str) -> list[Cell]:
        """Seed by seed and method by method; ensembles last. Raises InputError."""
        entry = self.suite.data[data]
        table = read_manifest(self.expanded(entry.manifest, f"data.{data}.manifest"))
        split = entry.split or ("test" if table.has_split("test") else "val")
        table.split(split)  # refuses an empty one
        inputs = contents(table)
        methods = {m: how for m, how in self.suite.methods.items() if how.data is None or data in how.data}
        single = [m for m, how in methods.items() if how.ensemble is None]
        names = [(data, method, seed) for seed in self.suite.seeds for method in single]
        cells = [cell for name in names for cell in self.cell(name, table, split, inputs)]
        for method, how in methods.items():
            if how.ensemble is not None:
                members = self.members(data, method, how.ensemble, cells)
                cells += self.cell((data, method, self.suite.seeds[0]), table, split, inputs, members)
        return cells

    def members(self, data: str, method: str, names: Sequence[str], cells: Sequence[Cell]) -> list[Cell]:
        """The cells that an ensemble averages. Raises InputError where only some of its methods are trained here."""
        members = [c for c in cells if c.method in names]
        missing = [m for m in names if m not in {c.method for c in members}]
        if members and missing:
            raise InputError(
                f"{self.path}: methods.{method}.ensemble: {listed(missing, quote=True)} of it not trained on "
                f"{data!r}; train there too, or name in methods.{method}.data where all are"
            )
        return members

    def cell(
        self,
        where: tuple[str, str, int],
        table: Manifest,
        split: str,
        inputs: dict[str, Any],
        members: Sequence[Cell] = (),
    ) -> list[Cell]:
        """The cell of (data, method, seed); empty where the method gives nothing for this data set and seed."""
        (data, method, seed), suite = where, self.suite
        how, entry, folder = suite.methods[method], suite.data[data], self.out / data / method / f"seed{seed}"
        named = {k: self.place(getattr(how, k), where) for k in ("init", "run", "predictions", "evaluation")}
        if how.given and not any(named.values()) and not members:
            return []
        at = {k: None if v is None else self.expanded(v, f"methods.{method}.{k}") for k, v in named.items()}
        for what, place in at.items():
            if what != "init" and place is not None and not place.is_dir():
                raise InputError(f"{self.path}: methods.{method}.{what}: there is no folder {place}")
        init = named["init"]
        if init is not None and at["init"] is not None and (at["init"].is_dir() or os.sep in init or "$" in init):
            init = str(at["init"])  # else a zoo model's name
        config = None if how.given else self.config(where)
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
        if not how.given:
            key |= machine
        elif how.predictions is None and how.evaluation is None:  # what is there is measured here
            inputs = inputs | machine
        return [
            Cell(
                *where, folder=folder, manifest=table.path, split=split, truth=entry.truth, thresholds=entry.thresholds,
                config=config, folds=how.folds, init=init, run=at["run"] or folder / "run",
                evaluation=at["evaluation"] or folder / "evaluation", predictions=at["predictions"],
                members=tuple(c.run for c in members), tta=how.tta, threads=suite.threads, device=suite.device,
                key=key, inputs=inputs,
            )
        ]  # fmt: skip

    def place(self, places: Places | None, where: tuple[str, str, int]) -> str | None:
        """The path for a data set and seed; one without ``{seed}`` belongs to the first seed alone."""
        data, method, seed = where
        text = places.get(data) if isinstance(places, dict) else places
        first_only = text is not None and "{seed}" not in text and self.suite.methods[method].given
        if text is None or (first_only and seed != self.suite.seeds[0]):
            return None
        return text.replace("{data}", data).replace("{seed}", str(seed))

    def expanded(self, text: str, key: str) -> Path:
        """The path with its environment variables, relative to the suite's folder. Raises InputError for an unset
        one."""
        unset = [v for v in re.findall(r"\$\{(\w+)\}", text) if v not in os.environ]
        if unset:
            raise InputError(f"{self.path}: {key}: the environment variable {unset[0]} is not set")
        full = re.sub(r"\$\{(\w+)\}", lambda m: os.environ[m.group(1)], text)
        return Path(os.path.abspath(self.path.parent / Path(full).expanduser()))

    def config(self, where: tuple[str, str, int]) -> RunConfig:
        """The settings of a training: those of the suite, the data set and the method, the latter count most."""
        (data, method, seed), suite = where, self.suite
        how = suite.methods[method]
        budget: dict[str, Any] = {"minutes": how.minutes, "steps": how.steps}
        if not any(budget.values()):
            budget = {"minutes": suite.minutes, "steps": suite.steps}
        settings = {**suite.set, **suite.data[data].set, **how.set}
        base = None if how.config is None else self.expanded(how.config, f"methods.{method}.config")
        try:
            config = make_config(
                base, [_assignment(k, v) for k, v in settings.items()], method=how.method, preset=how.preset,
                seed=seed, threads=suite.threads, device=suite.device, **budget,
            )  # fmt: skip
            completed(config)  # refuses what the method does not know
            return config
        except InputError as error:
            raise InputError(f"{self.path}: methods.{method}: {error}") from None


def plan_cells(suite: Suite, path: Path, out: Path) -> list[Cell]:
    """The cells of the suite read from ``path`` in the order of the work: data set, seed, method; ensembles last.
    Raises InputError."""
    plan = _Plan(suite, path, out)
    cells = [cell for data in suite.data for cell in plan.cells(data)]
    if not cells:
        raise InputError(f"{path}: none of its methods is given for any of its data sets")
    return cells


def contents(table: Manifest) -> dict[str, dict[str, str]]:
    """What the results on a manifest depend on beside its rows: by case a hash of the ``landmarks`` file and, where the
    manifest gives them, ``spacing`` and ``form``. Of the cases with a split. Raises InputError where a file cannot be
    read."""
    used = [c for c in table.cases if c.split]
    files = {c.id: split_observer(c.source)[0] for c in used if c.source is not None}
    try:
        hashes = {f: hashlib.sha256(Path(f).read_bytes()).hexdigest()[:12] for f in dict.fromkeys(files.values())}
    except OSError as error:
        raise InputError(f"{table.path}: {error.filename}: cannot be read: {error.strerror or error}") from error
    forms = {c.id: c.form for c in used if c.form}
    return {
        "landmarks": {case: hashes[file] for case, file in files.items()},
        "spacing": {c.id: " ".join(map(repr, c.spacing)) for c in used if c.spacing is not None},
        **({"form": forms} if forms else {}),
    }


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
    """What a key's content is recognised by: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def chosen(suite: Suite, cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of the data sets and methods named in ``only``; all without a name. Raises InputError for an unknown
    one, and where nothing is left."""
    for name in only:
        if name not in suite.data and name not in suite.methods:
            raise InputError(f"`only` {name}: no data set or method{near(name, [*suite.data, *suite.methods])}")
    data = [n for n in only if n in suite.data] or list(suite.data)
    methods = [n for n in only if n in suite.methods] or list(suite.methods)
    kept = [c for c in cells if c.data in data and c.method in methods]
    if not kept:
        raise InputError(f"`only` {' `only` '.join(only)}: no cell of the suite is left")
    return kept
