"""Suspect annotations of all splits of a manifest at once."""

from __future__ import annotations

from collections.abc import Sequence

from anatomark.cases.case import Case
from anatomark.cases.look.places import out_of_place, placeholders
from anatomark.cases.look.suspects import Verdict, suspects
from anatomark.core.landmarks import Landmarks
from anatomark.progress import Reporter


def look_at(
    cases: Sequence[Case], landmarks: Sequence[Landmarks], training: int, report: Reporter | None = None
) -> Verdict:
    """The suspects of M cases, of which the first ``training`` are training cases, with their residuals.

    Training cases are judged by themselves, so that nothing learned from them hangs on other splits; the others, and
    where training cases are too few all, with all cases together. ``landmarks``: of each case, all with the same names.
    Raises InputError.
    """
    ids, grids = [c.id for c in cases], [c.grid(one.ndim) for c, one in zip(cases, landmarks, strict=True)]
    empty, asked = placeholders(cases, landmarks, grids)
    kept = [one.unannotated(gone) for one, gone in zip(landmarks, empty, strict=True)]
    verdict = suspects(ids[:training], kept[:training], grids[:training], report)
    findings, note = verdict.suspects, verdict.note
    if training < len(cases):
        together = suspects(ids, kept, grids, report)
        all_of_them = bool(note) and not together.note
        findings = [s for s in together.suspects if all_of_them or s.case in ids[training:]]
        findings = findings if all_of_them else [*verdict.suspects, *findings]
        note = note and together.note
    framed = {s.case for s in findings if s.kind == "frame"}  # which says that they lie outside
    places = [s for each in zip(cases, landmarks, grids, empty, strict=True) for s in out_of_place(*each)]
    places = [s for s in places if s.kind != "outside" or s.case not in framed]
    return Verdict([*findings, *places, *asked], verdict.residual_mm, note)
