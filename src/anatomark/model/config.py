"""The settings of a run: YAML checked by pydantic, complete and re-runnable as ``config.yaml``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from anatomark import methods
from anatomark.errors import InputError, nearest
from anatomark.io.atomic import read_text, write_text
from anatomark.io.plainyaml import MOST_YAML_BYTES, parse_yaml
from anatomark.methods.base import MOST, Method, MethodConfig
from anatomark.model.align.aligner import AlignConfig
from anatomark.model.device import MOST_THREADS
from anatomark.model.refine.refiner import RefineConfig

M = TypeVar("M", bound=BaseModel)


MOST_SEED = 2**63 - 1
MOST_MINUTES = 1_000_000  # two years
AUTO = "auto"  # the method that ``training/auto.py`` replaces by one that suits the data
FIRST = "pin"  # the method of presets and settings that name none


class MethodChoice(BaseModel):
    """Which method, from which preset, with which settings of its own (checked by the method's ``Config``). A preset or
    settings without a name are of ``pin``; nothing at all is ``auto``."""

    model_config = ConfigDict(extra="forbid")
    name: str = AUTO
    preset: str = "recommended"
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        # ``method.patch_mm: 50`` is short for ``method.settings.patch_mm: 50``
        if not isinstance(data, Mapping):
            return data
        own = {k: v for k, v in data.items() if k in cls.model_fields}
        loose = {k: v for k, v in data.items() if k not in cls.model_fields}
        if loose and isinstance(own.get("settings") or {}, Mapping):
            own["settings"] = {**(own.get("settings") or {}), **loose}
        return own if "name" in own or not own else {"name": FIRST, **own}

    @field_validator("settings")
    @classmethod
    def _finite(cls, settings: dict[str, Any]) -> dict[str, Any]:
        # as JSON they would become null, which means the default
        for key, value in settings.items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{key} is {number}; give a finite number")
        return settings

    @model_validator(mode="after")
    def _alone(self) -> MethodChoice:
        if self.name == AUTO and (self.settings or self.preset != "recommended"):
            raise ValueError("auto chooses preset and settings itself; name a method to give them")
        return self


class RunConfig(BaseModel):
    """Everything that ``fit`` needs beside the manifest.

    The training time is ``steps`` (in all, dealt over the stages), else ``minutes``, else each stage's own number of
    steps; ``stage_steps`` and ``validate_every`` hold what came of it, per stage, and count first.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    method: MethodChoice = Field(default_factory=MethodChoice)
    align: AlignConfig = Field(default_factory=AlignConfig)
    refine: RefineConfig = Field(default_factory=RefineConfig)
    steps: int | None = Field(default=None, ge=1, le=MOST)
    minutes: float | None = Field(default=None, gt=0, le=MOST_MINUTES)
    stage_steps: dict[str, Annotated[int, Field(ge=1, le=MOST)]] = Field(default_factory=dict)
    validate_every: dict[str, Annotated[int, Field(ge=1, le=MOST)]] = Field(default_factory=dict)
    learning_rate_factor: float | None = Field(default=None, gt=0, le=1e6)  # None: 1; with `init` 0.2, not to unlearn
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    workers: int | None = Field(default=None, ge=0, le=256)
    cache_mb: int = Field(default=2048, ge=1, le=MOST)
    cache: str | None = None
    val_fraction: float = Field(default=0.2, ge=0, lt=1)
    validation_cases: int = Field(default=24, ge=1, le=MOST)
    landmarks: list[str] | None = None
    observers: Literal["named", "combined"] = "named"  # combined: the others', freed from their habits, are averaged in
    taught_by: str | None = None  # hash of the teacher, set by fit
    teacher_weight: float = Field(default=0.5, ge=0, le=1)  # of its answers against annotations
    teacher_spread: float = Field(default=0.0, ge=0, le=2)  # of its standard deviations, with which points are drawn
    distrust: bool = True  # annotations that are certain to be wrong are left out
    modality: str | None = None
    weights: Literal["float32", "half"] = "float32"
    license: str = "not stated"
    reasons: list[str] = Field(default_factory=list)  # why the method auto chose this; for the reader alone

    @model_validator(mode="after")
    def _one_budget(self) -> RunConfig:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("steps and minutes are both given; give one of them")
        return self


def checked(model: type[M], data: Any, where: str) -> M:
    """``model`` from plain data. Raises InputError of one line with ``where``, the key, and the nearest known key."""
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected keys and values, found {type(data).__name__}")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        # a key that nobody knows explains one that is missing
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(str(k)[:60] for k in first["loc"])
        if first["type"] == "extra_forbidden":
            known = list(_fields(model, first["loc"][:-1]))
            hint = nearest(str(first["loc"][-1])[:60], known) or f"; known: {', '.join(known)}"
            raise InputError(f"{where}: unknown key {key!r}{hint}") from None
        found = "" if first["type"] in ("missing", "value_error") else f", found {str(first['input'])[:60]!r}"
        message = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {key + ': ' if key else ''}{message}{found}") from None


def _fields(model: type[BaseModel], path: Sequence[Any]) -> Mapping[str, Any]:
    """The fields of the (nested) model at ``path``; list positions and union tags are passed over."""
    for key in path:
        if key not in model.model_fields:
            continue
        inner = _model_in(model.model_fields[key].annotation)
        model = inner or model
    return model.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _model_in(a))), None)


def read_config(path: str | os.PathLike[str]) -> RunConfig:
    """A config file. Raises InputError where it is missing, no YAML, or holds an unknown key or an impossible value."""
    return checked(RunConfig, read_yaml(path), str(path))


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file as :func:`parse_yaml` has it; an empty file is ``{}``. Raises InputError."""
    return parse_yaml(read_text(path, MOST_YAML_BYTES), f"{path}: is not plain YAML") or {}


def write_config(path: str | os.PathLike[str], config: RunConfig) -> None:
    """Write a config atomically, every key with its value. Raises InputError where the disk refuses."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    write_text(Path(path), text)


def make_config(
    base: RunConfig | str | os.PathLike[str] | None = None, assignments: Sequence[str] = (), **given: Any
) -> RunConfig:
    """A config from another one, or a file of it (or the defaults), ``key.path=value`` assignments, and values
    ``given`` by name.

    ``given``: top-level keys, and ``method`` / ``preset``; None means not given. Raises InputError.
    """
    path = None if isinstance(base, RunConfig) else base
    data = base.model_dump(mode="json", exclude_unset=True) if isinstance(base, RunConfig) else {}
    data = read_yaml(path) if path is not None else data
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected keys and values, found {type(data).__name__}")
    where = str(path) if path is not None else "options"
    method = data.get("method") or {}
    if not isinstance(method, dict):
        method = {"name": method}
    chosen = {k: given.pop(g) for k, g in (("name", "method"), ("preset", "preset")) if given.get(g) is not None}
    if any(method.get(k, v) != v for k, v in chosen.items()):
        method = {}  # the file's settings belong to another method or preset
        data = {k: v for k, v in data.items() if k != "reasons"}
    data = {k: v for k, v in data.items() if k != "method"}
    if method or chosen:
        data["method"] = {**method, **chosen}
    wanted = {k: v for k, v in given.items() if v is not None and k not in ("method", "preset")}
    if wanted.keys() & {"steps", "minutes"}:
        data = {k: v for k, v in data.items() if k not in ("steps", "minutes", "stage_steps", "validate_every")}
    data.update(wanted)
    for text in assignments:
        _assign(data, text)
        where = f"`set` {text}" if path is None else where
    return checked(RunConfig, data, where)


def _assign(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"`set` {text}: expected key=value, such as method.patch_mm=50")
    parsed = parse_yaml(value, f"`set` {text[:60]}: {value[:60]!r} is not a plain YAML value")
    *path, last = key.strip().split(".")
    place: Any = data
    for step in path:
        if isinstance(place, list) and step.isdigit() and int(step) < len(place):
            place = place[int(step)]
        elif isinstance(place, dict):
            place[step] = {} if place.get(step) is None else place[step]
            place = place[step]
        else:
            raise InputError(f"`set` {text}: {step!r} is not a key here")
    if not isinstance(place, dict):
        raise InputError(f"`set` {text}: {'.'.join(path)} holds a value, not keys")
    place[last] = parsed


def method_of(config: RunConfig) -> tuple[type[Method], MethodConfig]:
    """The method's class and its checked settings: those of the preset, changed by ``config.method.settings``.

    Raises InputError for an unknown method, preset or setting.
    """
    choice = config.method
    cls = methods.find(choice.name, choice.preset)
    settings = merged(dict(cls.presets.get(choice.preset, {})), choice.settings)
    return cls, checked(cls.Config, settings, f"method {choice.name}, preset {choice.preset}")


def completed(config: RunConfig) -> RunConfig:
    """The same config with every setting of the method written out; with the method ``auto`` unchanged."""
    if config.method.name == AUTO:
        return config
    cls, settings = method_of(config)
    choice = config.method.model_copy(update={"settings": settings.model_dump(mode="json")})
    refine = config.refine.model_copy(update={"enabled": refined(cls, config)})
    return config.model_copy(update={"method": choice, "refine": refine}, deep=True)


def refined(cls: type[Method], config: RunConfig) -> bool:
    """Whether the refiner follows the method: as the config says, else as the method's author chose."""
    if config.refine.enabled is None:
        return config.refine.only or cls.refined
    return config.refine.enabled


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, key by key at every depth."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(dict(out[key]), value) if both else value
    return out
