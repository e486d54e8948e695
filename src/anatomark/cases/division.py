"""The cases that a run learns from and is validated on: read, checked, divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.look.places import shared_images
from anatomark.cases.look.simulated import simulated_note
from anatomark.cases.manifest import BLANK
from anatomark.cases.manifests import Manifests, read_manifests
from anatomark.cases.observers import CORRECTED, combined
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, listed, nearest

HELD_OUT_FROM = 5  # training cases from which on some can be spared for validation


@dataclass(frozen=True)
class Taught:
    """What a teacher did, in words, the digests of the images that it knows (``Model.learned``, ``chosen``), and the
    training cases as they were annotated."""

    said: str
    learned: frozenset[str]
    chosen: frozenset[str]
    annotated: tuple[Case, ...]


@dataclass(frozen=True)
class Division:
    """Training and validation cases, their landmarks in the model's order; ``how`` is ``val split``, ``held out``,
    ``augmented copies`` or ``none``; ``left_out``: training cases in which no landmark is defined;
    ``unlabelled``: images for a teacher to speak of, and ``taught``: what it did (``training/teach.py``)."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    names: tuple[str, ...]
    how: str
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # of the manifest
    left_out_points: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by case: certain to be wrong
    unlabelled: tuple[Case, ...] = ()
    taught: Taught | None = None

    @property
    def independent(self) -> bool:
        """True where validation errors come from cases that no weight was fitted to."""
        return self.how in ("val split", "held out")

    def describe(self) -> str:
        """How many cases serve what, in words."""
        n, names = _count(len(self.train), "training case"), ", ".join(c.id for c in self.val)
        if self.left_out:
            n += f" ({_count(len(self.left_out), 'other')} left out, no landmark defined: {', '.join(self.left_out)})"
        if self.left_out_points:
            points = _count(sum(len(names) for names in self.left_out_points.values()), "point")
            n += f" ({points} of {_count(len(self.left_out_points), 'case')} left out as certainly wrong)"
        if self.unlabelled:
            n += f", {_count(len(self.unlabelled), 'image')} without landmarks"
        if self.how == "val split":
            return f"{n}, {_count(len(self.val), 'validation case')} (the manifest's val split)"
        if self.how == "held out":
            return f"{n}, {len(self.val)} held out for validation: {names}"
        if self.how == "augmented copies":
            return f"{n}; no independent validation: validated on augmented copies of them"
        return f"{n}; no validation"


def read_division(
    manifests: Manifests,
    *,
    names: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    unlabelled: bool = False,
) -> Division:
    """The training and validation cases of a manifest, or of several (:func:`read_manifests`); the test split is not
    read.

    ``names``: the landmarks to learn, in order; None: those of the first training case. Without a val split: from 5
    training cases on a seeded share of ``val_fraction`` is held out; below, augmented copies of training cases are
    validated on; ``val_fraction`` 0 means no validation. A training case in which no landmark is defined is left out.
    ``unlabelled``: training cases may have a blank landmarks cell; they are apart in the division, none is held out.
    Raises InputError.
    """
    manifest = read_manifests(manifests, unlabelled=True)
    labelled = manifest.labelled()
    chosen = _names(labelled[0], names)
    blank = manifest.blank
    if blank and not unlabelled:
        where = [c.id if manifest.more else f"{c.id} (row {c.row})" for c in blank]
        raise InputError(f"{manifest.name}: {listed(where)}: {BLANK}, or give fit a `teacher`")
    train, val = (
        [_selected(c, chosen, names is not None) for c in cases]
        for cases in (labelled, [c for c in manifest.cases if c.split == "val"])
    )
    empty = tuple(c.id for c in train if not c.landmarks.defined.any())
    if len(empty) == len(train):
        raise InputError(f"{manifest.name}: no training case has a defined landmark; there is nothing to learn from")
    kept = [c for c in train if c.id not in empty]
    notes = [*manifest.notes, *(f"case {s.case!r} {s.message}" for s in shared_images([*kept, *val]))]
    if not val and (note := simulated_note(kept)):
        notes.append(note)
    made = divided(kept, val, chosen, val_fraction=val_fraction, seed=seed)
    return replace(made, left_out=empty, notes=tuple(notes), unlabelled=blank)


def divided(
    train: Sequence[Case], val: Sequence[Case], names: tuple[str, ...], *, val_fraction: float, seed: int
) -> Division:
    """The rule of :func:`read_division` for cases that are already read."""
    kept, spared, how = tuple(train), tuple(val), "val split"
    if not val and val_fraction == 0:
        how = "none"
    elif not val and len(train) < HELD_OUT_FROM:
        how = "augmented copies"
    elif not val:
        count = max(1, round(val_fraction * len(train)))
        out = set(np.random.default_rng([seed, 20]).permutation(len(train))[:count].tolist())
        kept = tuple(c for i, c in enumerate(train) if i not in out)
        spared, how = tuple(c for i, c in enumerate(train) if i in out), "held out"
    for k, name in enumerate(names):
        if not any(c.landmarks.defined[k] for c in kept):
            raise InputError(f"landmark {name!r} is defined in none of the {len(kept)} training cases; leave it out")
    return Division(kept, spared, names, how)


def combined_truth(division: Division) -> Division:
    """The same with training landmarks that average all observers, in the convention of the one that the manifest
    names (``observers.py``); validation cases keep theirs, and so do points that a later manifest corrects. Raises
    InputError where no observer is named."""
    named: list[Landmarks] = []
    others: list[dict[str, Landmarks]] = []
    for case in division.train:
        marked = case.observers()
        if case.observer == CORRECTED:
            named.append(case.landmarks)
            others.append({})
            continue
        if case.observer not in marked or len(marked) < 2:
            there = ", ".join(o for o in marked if o) or "none"
            raise InputError(
                f"case {case.id!r}, {case.source}: observers=combined needs two or more observers, one of "
                f"them named as table.csv#name; found: {there}"
            )
        named.append(marked[case.observer].select(division.names))
        others.append({o: m for o, m in marked.items() if o != case.observer})
    made = combined([c.landmarks for c in division.train], others)
    truth = []
    for mean, case, own in zip(made, division.train, named, strict=True):
        given = case.landmarks
        corrected = given.defined & (given.points != own.points).any(1)
        truth.append(mean.with_points(np.where(corrected[:, None], given.points, mean.points)))
    return replace(division, train=tuple(c.with_landmarks(t) for c, t in zip(division.train, truth, strict=True)))


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` numbers, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())) if count else []


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _names(first: Case, wanted: Sequence[str] | None) -> tuple[str, ...]:
    there = first.landmarks.names
    if wanted is None:
        return there
    twice = [n for n in wanted if list(wanted).count(n) > 1]
    if not wanted or twice:
        raise InputError(f"landmarks: {twice[0]!r} is listed twice" if twice else "landmarks: the list is empty")
    for name in wanted:
        if name not in there:
            hint = nearest(name, there)
            raise InputError(f"landmarks: {name!r} is not among those of the first training case {first.id!r}{hint}")
    return tuple(wanted)


def _selected(case: Case, names: tuple[str, ...], subset: bool) -> Case:
    """The case with the landmarks ``names``; with ``subset`` it may have others too."""
    landmarks = case.landmarks
    strange = [n for n in landmarks.names if n not in names]
    if not subset and strange:
        raise InputError(
            f"case {case.id!r}, {case.source}: landmark {strange[0]!r} is not in the first training case"
            f"{nearest(strange[0], names)}; all cases must use one set of names"
        )
    if not set(names) & set(landmarks.names):
        raise InputError(f"case {case.id!r}, {case.source}: has none of the landmarks {', '.join(names[:5])} ...")
    annotated = replace(landmarks.select(names), covariance=None)  # which a model's file may have
    return case.with_landmarks(annotated)
