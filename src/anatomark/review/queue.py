"""A row of the queue: what is said of a case before its points are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from anatomark.cases.case import Case
from anatomark.review.summary import Tally


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
    def order(self) -> tuple[bool, float]:
        """Flagged cases first, then by how unusual they are; what no measure is known of, last."""
        return not self.flags, math.inf if self.suspicion is None else -self.suspicion
