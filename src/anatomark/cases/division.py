"""The cases that a run learns from and is validated on: read, checked, divided."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.manifest import Case, read_manifest
from anatomark.cases.observers import combined
from anatomark.core.image import Image
from anatomark.core.intensity import MODALITIES, guess_modality, intensity_rule
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, nearest
from anatomark.io.images import squeeze_to_2d
from anatomark.io.landmarks import split_observer
from anatomark.methods.base import Study, StudyCase
from anatomark.model.config import RunConfig

HELD_OUT_FROM = 5  # training cases from which on some can be spared for validation
INTENSITY_CASES = 8  # images that the modality and the intensity rule are taken from


@dataclass(frozen=True)
class Source:
    """One case: its row of the manifest and its landmarks in the model's order."""

    case: Case
    landmarks: Landmarks

    @property
    def id(self) -> str:
        """The case's name."""
        return str(self.case.id)

    def image(self) -> Image:
        """The image, read anew, of the landmarks' dimension. Raises InputError where that does not fit."""
        return fitting_image(self.case, self.landmarks.ndim)


@dataclass(frozen=True)
class Division:
    """Training and validation cases; ``how`` is ``val split``, ``held out``, ``augmented copies`` or ``none``."""

    train: tuple[Source, ...]
    val: tuple[Source, ...]
    names: tuple[str, ...]
    how: str
    left_out: tuple[str, ...] = ()  # training cases in which no landmark is defined

    @property
    def independent(self) -> bool:
        """True where validation errors come from cases that no weight was fitted to."""
        return self.how in ("val split", "held out")

    def describe(self) -> str:
        """One line for the console and the card."""
        n, names = _count(len(self.train), "training case"), ", ".join(s.id for s in self.val)
        if self.left_out:
            n += f" ({_count(len(self.left_out), 'other')} left out, no landmark defined: {', '.join(self.left_out)})"
        if self.how == "val split":
            return f"{n}, {_count(len(self.val), 'validation case')} (the manifest's val split)"
        if self.how == "held out":
            return f"{n}, {len(self.val)} held out for validation: {names}"
        if self.how == "augmented copies":
            return f"{n}; no independent validation: validated on augmented copies of them"
        return f"{n}; no validation"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def fitting_image(case: Case, ndim: int) -> Image:
    """The case's image with ``ndim`` dimensions: a third axis of length 1 is dropped where the landmarks are 2D.

    Raises InputError where image and landmarks have different dimensions.
    """
    image = case.read_image()
    if image.ndim == 3 and ndim == 2 and image.grid.shape[0] == 1:
        return squeeze_to_2d(image)
    if image.ndim != ndim:
        raise InputError(
            f"case {case.id!r}: its landmarks are {ndim}D but {case.image} is {image.ndim}D; "
            "give landmarks of the image's dimension"
        )
    return image


def read_division(manifest_path: str | os.PathLike[str], config: RunConfig) -> Division:
    """The training and validation cases of a manifest; its test split is not read.

    Without a val split: from 5 training cases on a seeded share of ``val_fraction`` is held out; below, augmented
    copies of training cases are validated on; ``val_fraction`` 0 means no validation. A training case in which no
    landmark is defined is left out, and said so. Raises InputError.
    """
    manifest = read_manifest(manifest_path)
    train, val = manifest.split("train"), [c for c in manifest.cases if c.split == "val"]
    names = _names([(c, c.read_landmarks()) for c in train[:1]], config.landmarks)
    sources = [_source(c, names, config.landmarks is not None) for c in train]
    empty = tuple(s.id for s in sources if not s.landmarks.defined.any())
    if len(empty) == len(sources):
        raise InputError(f"{manifest_path}: no training case has a defined landmark; there is nothing to learn from")
    spared = [_source(c, names, config.landmarks is not None) for c in val]
    return replace(divided([s for s in sources if s.id not in empty], spared, names, config), left_out=empty)


def divided(train: Sequence[Source], val: Sequence[Source], names: tuple[str, ...], config: RunConfig) -> Division:
    """The rule of :func:`read_division` for cases that are already read."""
    kept, spared, how = tuple(train), tuple(val), "val split"
    if not val and config.val_fraction == 0:
        how = "none"
    elif not val and len(train) < HELD_OUT_FROM:
        how = "augmented copies"
    elif not val:
        count = max(1, round(config.val_fraction * len(train)))
        out = set(np.random.default_rng([config.seed, 20]).permutation(len(train))[:count].tolist())
        kept = tuple(s for i, s in enumerate(train) if i not in out)
        spared, how = tuple(s for i, s in enumerate(train) if i in out), "held out"
    for k, name in enumerate(names):
        if not any(s.landmarks.defined[k] for s in kept):
            raise InputError(f"landmark {name!r} is defined in none of the {len(kept)} training cases; leave it out")
    return Division(kept, spared, names, how)


def combined_truth(division: Division) -> Division:
    """The same with training landmarks that average all observers, in the convention of the one that the manifest
    names (``data/observers.py``); validation cases keep theirs. Raises InputError where no observer is named."""
    others = []
    for source in division.train:
        named = split_observer(source.case.landmarks or "")[1]
        marks = source.case.observers()
        if named not in marks or len(marks) < 2:
            known = ", ".join(o for o in marks if o) or "none"
            raise InputError(
                f"case {source.id!r}, {source.case.landmarks}: observers=combined needs two or more observers, one of "
                f"them named as table.csv#name; found: {known}"
            )
        others.append({o: m for o, m in marks.items() if o != named})
    truth = combined([s.landmarks for s in division.train], others)
    train = tuple(replace(s, landmarks=t) for s, t in zip(division.train, truth, strict=True))
    return replace(division, train=train)


def _names(first: Sequence[tuple[Case, Landmarks]], wanted: Sequence[str] | None) -> tuple[str, ...]:
    case, landmarks = first[0]
    if wanted is None:
        return landmarks.names
    twice = [n for n in wanted if list(wanted).count(n) > 1]
    if not wanted or twice:
        raise InputError(f"landmarks: {twice[0]!r} is listed twice" if twice else "landmarks: the list is empty")
    for name in wanted:
        if name not in landmarks.names:
            hint = nearest(name, landmarks.names)
            raise InputError(f"landmarks: {name!r} is not among those of the first training case {case.id!r}{hint}")
    return tuple(wanted)


def _source(case: Case, names: tuple[str, ...], subset: bool) -> Source:
    landmarks = case.read_landmarks()
    strange = [n for n in landmarks.names if n not in names]
    if not subset and strange:
        raise InputError(
            f"case {case.id!r}, {case.landmarks}: landmark {strange[0]!r} is not in the first training case"
            f"{nearest(strange[0], names)}; all cases must use one set of names"
        )
    if not set(names) & set(landmarks.names):
        raise InputError(f"case {case.id!r}, {case.landmarks}: has none of the landmarks {', '.join(names[:5])} ...")
    return Source(case, landmarks.select(names))


def study_of(division: Division, config: RunConfig) -> Study:
    """What a method's ``prepare`` sees. Reads up to 8 training images for modality and intensity rule.

    Raises InputError for an unknown modality, or where images and landmarks do not fit.
    """
    if config.modality is not None and config.modality not in MODALITIES:
        raise InputError(
            f"modality {config.modality!r} is unknown{nearest(config.modality, MODALITIES)}; known: "
            f"{', '.join(MODALITIES)}"
        )
    every = max(1, len(division.train) // INTENSITY_CASES)
    images = [s.image() for s in division.train[::every][:INTENSITY_CASES]]
    modality = config.modality or guess_modality(images)
    cases = tuple(StudyCase(s.id, s.landmarks, s.image) for s in division.train)
    return Study(cases, division.names, modality, intensity_rule(modality, images))


def source_path(source: Source) -> Path:
    """The file that the image comes from."""
    return Path(source.case.image)


def facts_of(division: Division) -> dict[str, Any]:
    """What the card says of the data."""
    shapes = [s.landmarks for s in division.train]
    return {
        "training cases": [s.id for s in division.train],
        "validation cases": [s.id for s in division.val],
        "validation": division.how,
        "landmarks": len(division.names),
        "annotated landmarks in training": int(sum(x.defined.sum() for x in shapes)),
    }
