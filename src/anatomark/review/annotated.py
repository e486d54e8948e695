"""The annotations of a manifest as a review begins with them: in a model's place, flagged where they are suspect."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from anatomark.cases.look.splits import look_at
from anatomark.cases.look.suspects import Suspect
from anatomark.cases.manifests import read_manifests
from anatomark.errors import InputError, counted
from anatomark.io.claim import claimed
from anatomark.model.prediction import Prediction, write_prediction
from anatomark.progress import Reporter

NAME = "annotations"  # where a model would be named


def write_annotations(manifests: Sequence[Path], folder: Path, report: Reporter) -> None:
    """Write the points of the manifests' cases into ``folder`` as predictions are written, ``CASE.json``, each with
    what is suspect about it (:mod:`anatomark.cases.look`). Raises InputError as :func:`read_manifests`, and where no
    case has landmarks."""
    manifest = read_manifests(manifests, unlabelled=True)
    cases = [c for split in ("train", "val", "test") for c in manifest.cases if c.split == split and c.has_landmarks]
    if not cases:
        raise InputError(
            f"{manifest.name}: none of its cases has landmarks to look at; before it give the folder that predict "
            "wrote, or give a `model`"
        )
    names, training = cases[0].landmarks.names, sum(c.split == "train" for c in cases)
    verdict = look_at(cases, [c.landmarks.select(names) for c in cases], training or len(cases), report)
    found: dict[str, list[Suspect]] = {}
    for one in verdict.suspects:
        found.setdefault(one.case, []).append(one)
    for note in filter(None, [verdict.note, *(one.message for one in found.pop("", []))]):
        report.say(f"note: {note}")
    state = hashlib.sha256()
    for case in cases:
        state.update(repr((case.id, case.landmarks.names, case.landmarks.status)).encode())
        state.update(case.landmarks.points.tobytes())
    source = {"model": state.hexdigest()[:16], "model_name": NAME}  # of others what was corrected is kept
    with claimed(folder):
        for case in cases:
            doubts = found.get(case.id, [])
            made = Prediction(
                case.landmarks,
                flags=tuple(one.message for one in doubts),
                suspicion=max(map(_oddness, doubts), default=None),
                source={"case": case.id, **source},
            )
            write_prediction(made, folder, case.id, ["json"])
    report.say(f"{counted(len(cases), 'annotated case')}, {counted(len(found), 'case')} with suspect annotations")


def _oddness(suspect: Suspect) -> float:
    """How many times the usual distance a point lies off; what is no point comes first."""
    if suspect.kind != "point" or suspect.found_mm is None or not suspect.typical_mm:
        return math.inf
    return suspect.found_mm / suspect.typical_mm
