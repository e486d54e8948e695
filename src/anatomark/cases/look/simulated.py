"""Cases that ``simulate`` made: several of one person."""

from __future__ import annotations

import re
from collections.abc import Sequence

from anatomark.cases.case import Case
from anatomark.errors import counted

RECORD = "simulate.json"  # stands beside the folder of the images
NAME = "{source}_sim{number:04d}"
_NAME = re.compile(r"(?P<source>.+)_sim\d{4,}")


def source_of(case: Case) -> str:
    """The name of the real case that a simulated one was made from; empty for a real one."""
    match = _NAME.fullmatch(case.id)
    made = match and case.path is not None and (case.path.parent.parent / RECORD).is_file()
    return match["source"] if match and made else ""


def simulated_note(cases: Sequence[Case]) -> str:
    """What is to be said of training cases among which are simulated ones; empty where none is."""
    sources = [source for case in cases if (source := source_of(case))]
    if not sources:
        return ""
    real = counted(len({*sources}), "real one")
    return (
        f"{len(sources)} of {len(cases)} training cases were simulated from {real}: how alike cases are, and errors on "
        "cases held out of them, say nothing of new people"
    )
