"""Cases that a model knows: it learned from their images, or its weights were chosen by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anatomark.cases.case import Case
from anatomark.cases.content import digest_of
from anatomark.errors import counted, listed

SHOWN = 5  # cases in a line


def seen_notes(model: Any, cases: Sequence[Case]) -> list[str]:
    """A line for those of the ``cases`` that ``model`` learned from, and one for those that chose its weights; none for
    a model that does not say what it knows. Raises InputError for an image that cannot be read."""
    learned: frozenset[str] = getattr(model, "learned", frozenset())
    chosen: frozenset[str] = getattr(model, "chosen", frozenset())
    if not learned and not chosen:
        return []
    digests = {case.id: digest_of(case) for case in cases}
    taught = [case for case, digest in digests.items() if digest in learned]
    chose = [case for case, digest in digests.items() if digest in chosen and digest not in learned]
    of, notes = f"of {counted(len(cases), 'case')}", []
    if taught:
        notes.append(
            f"{len(taught)} {of} {'was' if len(taught) == 1 else 'were'} learned from by this model: "
            f"such errors say little of new images: {listed(taught, SHOWN)}."
        )
    if chose:
        notes.append(
            f"{len(chose)} {of} chose this model's weights (validation): their errors are slightly optimistic: "
            f"{listed(chose, SHOWN)}."
        )
    return notes
