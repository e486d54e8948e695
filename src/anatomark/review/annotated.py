"""The annotations of a manifest as a review begins with them: in a model's place, flagged where they are suspect."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.find import sources_of
from anatomark.cases.look.splits import look_at
from anatomark.cases.look.suspects import Suspect
from anatomark.cases.names import other_names
from anatomark.core.landmarks import Landmarks, common_names
from anatomark.errors import InputError, ManyInputErrors, counted
from anatomark.io.atomic import read_json
from anatomark.io.claim import check_sources, claimed, is_passing
from anatomark.model.prediction import Prediction, write_prediction
from anatomark.progress import Reporter
from anatomark.review.files import (
    CASES,
    check_name,
    manifest_rows,
    markups_file,
    read_review,
    review_file,
    truth_file,
)
from anatomark.review.record import ANNOTATIONS

BARE = "no landmark is annotated"


def write_annotations(cases: Sequence[Case], folder: Path, out: Path, report: Reporter) -> None:
    """Write the points of a manifest's cases into ``folder`` as predictions are written, ``CASE.json``, each with what
    is suspect about it (:mod:`anatomark.cases.look`) and every landmark that one of them has, for a review in ``out``.

    Raises InputError, before anything is written, where no case has landmarks, where landmarks or images' headers
    cannot be read or do not fit together, where a file would replace one that is not of a review, and where another
    process reviews in ``out``, or somebody a model's predictions there. ``cases``: of rows that have a split.
    """
    marked = [c for split in ("train", "val", "test") for c in cases if c.split == split and c.has_landmarks]
    found = _readable(cases, marked)
    files = {case.id: folder / f"{case.id}.json" for case in cases}
    made_of = [file(out, case.id) for case in cases for file in (markups_file, truth_file, review_file)]
    with claimed(out):
        manifest_rows(out)  # a table there that is no review's would be replaced
        check_sources([out / CASES, *files.values(), *made_of], sources_of(cases, []), "review")
        begun = (read_review(file) for file in sorted(out.glob("*.review.json")) if not is_passing(file.name))
        if other := next((one for one in begun if one.model), None):
            raise InputError(
                f"{out}: holds a review of what {other.model_name or 'a model'} predicted; give that folder of "
                "predictions, or the `model`, or choose another `out` for annotations"
            )
        if strange := next((f for f in files.values() if os.path.lexists(f) and not _is_ours(f)), None):
            raise InputError(f"{strange}: exists already and is of no review; choose another `out`")
        names = common_names([case.landmarks for case in marked])
        training = sum(case.split == "train" for case in marked)
        verdict = look_at(marked, [found[c.id].select(names) for c in marked], training or len(marked), report)
        doubts: dict[str, list[Suspect]] = {}
        for one in verdict.suspects:
            doubts.setdefault(one.case, []).append(one)
        for note in filter(None, [verdict.note, *(one.message for one in doubts.pop("", []))]):
            report.say(f"note: {note}")
        folder.mkdir(parents=True, exist_ok=True)
        nothing = Landmarks(names, np.full((len(names), next(iter(found.values())).ndim), np.nan))
        for case in cases:
            suspect = doubts.get(case.id, [])
            made = Prediction(
                replace(found[case.id].select(names), meta={}) if case.id in found else nothing,
                flags=tuple(one.message for one in suspect) if case.id in found else (BARE,),
                suspicion=max(map(_oddness, suspect), default=None if case.id in found else 0.0),
                source={"case": case.id, "model_name": ANNOTATIONS},
            )
            write_prediction(made, folder, case.id, ["json"])
    report.say(f"{counted(len(marked), 'annotated case')}, {counted(len(doubts), 'case')} with suspect annotations")


def _readable(cases: Sequence[Case], marked: Sequence[Case]) -> dict[str, Landmarks]:
    """The landmarks of the annotated cases. Raises InputError with all that is wrong."""
    if not marked:
        raise InputError(
            "none of the cases has landmarks to look at; before the manifest give the folder that predict wrote, or "
            "give a `model`"
        )
    for case in cases:
        check_name(case)
    found: dict[str, Landmarks] = {}
    problems = []
    for case in marked:
        try:
            landmarks = case.landmarks
            ndim = next(iter(found.values()), landmarks).ndim
            if landmarks.ndim != ndim:
                first = next(iter(found))
                raise InputError(f"{case.source}: {landmarks.ndim}D landmarks; those of case {first!r} are {ndim}D")
            case.grid(ndim)
            found[case.id] = landmarks
        except InputError as error:
            problems.append(f"case {case.id!r}, row {case.row}: {error}")
    problems += other_names([c for c in marked if c.id in found], {id: one.names for id, one in found.items()})
    if problems:
        raise ManyInputErrors(problems)
    return found


def _is_ours(file: Path) -> bool:
    try:
        document = read_json(file)
    except InputError:
        return False
    return isinstance(document, dict) and document.get("model_name") == ANNOTATIONS


def _oddness(suspect: Suspect) -> float:
    """How many times the usual distance a point lies off; what is no point comes first."""
    if suspect.kind != "point" or suspect.found_mm is None or not suspect.typical_mm:
        return math.inf
    return suspect.found_mm / suspect.typical_mm
