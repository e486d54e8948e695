"""Several manifests as one: a case that more than one names is merged landmark by landmark, the later counts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.look.places import same_image
from anatomark.cases.manifest import Manifest, read_manifest
from anatomark.cases.names import other_names
from anatomark.core.landmarks import Landmarks, Status, common_names
from anatomark.errors import InputError, ManyInputErrors, listed
from anatomark.io.atomic import Where
from anatomark.io.frames import CLEARED
from anatomark.io.names import folded

Manifests = Where | Sequence[Where]
HELD_OUT = ("test", "val", "train", "")  # which of two splits counts: what one manifest holds out is not trained on


def paths_of(manifests: Manifests) -> list[Path]:
    """One path or several as a list. Raises InputError where there is none, or one twice."""
    paths = [Path(p) for p in ([manifests] if isinstance(manifests, str | os.PathLike) else manifests)]
    if not paths:
        raise InputError("no manifest was given")
    real = [os.path.realpath(p) for p in paths]
    if twice := next((p for i, p in enumerate(paths) if real[i] in real[:i]), None):
        raise InputError(f"{twice}: is given twice")
    return paths


def read_manifests(manifests: Manifests, **reading: Any) -> Manifest:
    """One manifest, or several as one; ``reading`` as of :func:`read_manifest`.

    A case that several name must have one image. For each of its landmarks the later manifest counts where it says
    anything, a position, that it is absent or cleared, the earlier elsewhere. Its split is the first of test, val,
    train that one of them has, so that nothing held out is trained on; of a row with a blank split nothing is used.
    Raises ManyInputErrors as :func:`read_manifest`, and where one case has two images or spacings, one image two cases,
    or one landmark two names.
    """
    paths = paths_of(manifests)
    if len(paths) == 1:
        return read_manifest(paths[0], **reading)
    read, problems = [], []
    for path in paths:
        try:
            read.append(read_manifest(path, **reading))
        except ManyInputErrors as error:
            problems += error.problems
    if problems:
        raise ManyInputErrors(problems)
    merged = read[0]
    for one in read[1:]:
        merged = _with(merged, one, problems)
    if not problems:
        used = [c for c in merged.cases if c.split and c.has_landmarks]
        names = {c.id: c.landmarks.names for c in used}
        problems = [f"{merged.name}: {line}" for line in other_names(used, names)]
    if problems:
        raise ManyInputErrors(problems)
    return merged


def _with(first: Manifest, later: Manifest, problems: list[str]) -> Manifest:
    """The cases of both; what is wrong goes to ``problems``."""
    cases = {case.id: replace(case, apart=True) for case in first.cases}
    images = {os.path.realpath(c.path): c for c in first.cases if c.path is not None and c.split}
    replaced = kept = both = 0
    held: list[str] = []
    for case in later.cases:
        where = f"{later.path}: row {case.row}: case {case.id!r}"
        old = cases.get(case.id)
        twin = images.get(os.path.realpath(case.path)) if case.path is not None and case.split else None
        if old is None and twin is not None:
            problems.append(
                f"{where} has the image of case {twin.id!r}{_row(twin)} of {first.name}: one image needs one name"
            )
        if old is None or not case.split or not old.split:
            cases[case.id] = replace(case if old is None or case.split else old, apart=True)
            continue
        wrong = list(_differences(old, case, first.name))
        if wrong:
            problems += [f"{where}{line}" for line in wrong]
            continue
        split = min(old.split, case.split, key=HELD_OUT.index)
        if old.split != case.split:
            held.append(f"{case.id} ({split})")
        both += 1
        if not old.has_landmarks:
            old = replace(old, source=case.source, reading=case.reading)
        marks = old.landmarks if old.has_landmarks else None
        if marks is not None:
            marks = merged_landmarks(marks, case.landmarks) if case.has_landmarks else marks
            says = _says(case.landmarks.select(marks.names)) if case.has_landmarks else np.zeros(len(marks), bool)
            replaced, kept = replaced + int(says.sum()), kept + int((_says(marks) & ~says).sum())
        form, spacing = old.form or case.form, old.spacing or case.spacing
        cases[case.id] = replace(old, given=marks, split=split, form=form, spacing=spacing, apart=True)
    notes = [*first.notes, *later.notes]
    if both:
        notes.append(
            f"{later.path}: {both} of its cases {'is' if both == 1 else 'are'} in {first.name} too: {replaced} of "
            f"their points are as it says, {kept} as {first.name} says"
        )
    if held:
        notes.append(f"{later.path}: the splits differ; what one manifest holds out is not trained on: {listed(held)}")
    return Manifest(first.path, tuple(cases.values()), tuple(dict.fromkeys(notes)), (*first.more, later.path))


def merged_landmarks(first: Landmarks, later: Landmarks) -> Landmarks:
    """Landmark by landmark ``later`` where it is defined, absent or cleared, ``first`` elsewhere; the names of both."""
    names = common_names((first, later))
    a, b = first.select(names), later.select(names)
    says = _says(b)
    status = tuple(t if s else u for s, t, u in zip(says, b.status, a.status, strict=True))
    gone = {*a.meta.get(CLEARED, ()), *b.meta.get(CLEARED, ())}
    cleared = tuple(n for n, s in zip(names, status, strict=True) if n in gone and s is Status.UNANNOTATED)
    return Landmarks(
        names,
        np.where(says[:, None], b.points, a.points),
        status,
        descriptions=tuple(x or y for x, y in zip(a.descriptions, b.descriptions, strict=True)),
        meta={**first.meta, CLEARED: cleared},
    )


def _says(landmarks: Landmarks) -> Any:
    """(N,) True where a position or an absence is known, or somebody cleared what others say."""
    cleared = landmarks.meta.get(CLEARED, ())
    pairs = zip(landmarks.names, landmarks.status, strict=True)
    return np.array([s is not Status.UNANNOTATED or n in cleared for n, s in pairs], dtype=bool)


def _differences(old: Case, new: Case, first: str) -> Iterator[str]:
    """What two rows of one case contradict each other in."""
    assert old.path is not None and new.path is not None
    same = os.path.realpath(old.path) == os.path.realpath(new.path)
    with suppress(OSError):
        same = same or same_image(old.path, new.path)
    if not same:
        yield f" has image {new.path}, but {old.path} in {first}{_row(old)}: one case is one image"
        return
    for what in ("spacing", "form"):
        a, b = getattr(old, what), getattr(new, what)
        if a is not None and b is not None and a != b:
            yield f" has {what} {_shown(b)}, but {_shown(a)} in {first}{_row(old)}"
            return
    if not (old.has_landmarks and new.has_landmarks):
        return
    try:
        a, b = old.landmarks, new.landmarks
    except InputError as error:
        yield f": {error}"
        return
    if a.ndim != b.ndim:
        yield f" has {b.ndim}D landmarks, but {a.ndim}D ones in {first}{_row(old)}"
        return
    known = {folded(n): n for n in a.names}
    for name in b.names:
        other = known.get(folded(name), name)
        if other != name and name not in a.names and other not in b.names:
            yield f" has {name!r}; did you mean {other!r}, as {first}{_row(old)} has? One landmark needs one name"


def _row(case: Case) -> str:
    return f" (row {case.row})" if case.row is not None else ""


def _shown(value: Any) -> str:
    return ";".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
