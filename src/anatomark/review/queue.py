"""What the page is told: a row of the queue for each case, the points of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from anatomark.cases.case import Case
from anatomark.errors import InputError, nearest
from anatomark.review.record import CaseReview
from anatomark.review.summary import Tally

ORDERS, STATES = ("suspicion", "name"), ("done", "open", "skipped")


@dataclass(frozen=True)
class Row:
    """What the queue says of a case; its points are read when they are asked for."""

    case: Case
    flags: tuple[str, ...]
    suspicion: float | None
    state: str
    tally: Tally
    saved: bool
    reason: str = ""  # why its image cannot be shown

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "id": self.case.id,
            "state": self.state,
            "flags": list(self.flags),
            "suspicion": self.suspicion if self.suspicion is not None and math.isfinite(self.suspicion) else None,
            "flagged": bool(self.flags),
            "decided": self.tally.decided,
            "points": self.tally.points,
            "reason": self.reason,
        }

    @property
    def listed(self) -> bool:
        """Whether it stands in ``cases.csv``: finished, with a point that somebody decided on."""
        return self.state == "done" and self.tally.decided > 0

    @property
    def order(self) -> tuple[bool, float]:
        """Flagged cases first, then by how unusual they are; what no measure is known of, last."""
        return not self.flags, math.inf if self.suspicion is None else -self.suspicion


def in_order(rows: Iterable[Row], order: str, state: str | None) -> list[Row]:
    """The rows of a state (None: all) in an order. Raises InputError for an unknown one."""
    for what, word, known in (("order", order, ORDERS), ("state", state or "open", STATES)):
        if word not in known:
            text = str(word)[:40]
            raise InputError(f"{what} {text!r} is not known{nearest(text, known)}; it is one of {', '.join(known)}")
    chosen = [row for row in rows if state in (None, row.state)]
    return sorted(chosen, key=lambda r: r.order if order == "suspicion" else r.case.id)


def document_of(review: CaseReview, row: Row, ndim: int, definitions: Mapping[str, str]) -> dict[str, Any]:
    """A case with its points as plain data."""
    points = [
        {
            "name": p.name,
            "state": str(p.state),
            "position": None if p.position is None else list(p.position),
            "predicted": None if p.predicted is None else list(p.predicted),
            "moved_mm": p.moved_mm,
            "score": p.score,
            "radius90": p.radius90,
            "definition": definitions.get(p.name, ""),
        }
        for p in review.points
    ]
    facts = row.facts()
    return {
        "case": review.case,
        "frame": "LPS" if ndim == 3 else "image",
        "unit": "mm",
        "state": review.state,
        "person": review.person,
        "points": points,
        "flags": facts["flags"],
        "suspicion": facts["suspicion"],
    }
