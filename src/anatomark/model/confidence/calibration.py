"""What ``calibration.json`` may hold, checked when a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from anatomark.errors import InputError
from anatomark.methods.base import Share, Stored

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Size = Annotated[float, Field(ge=0, le=1e6)]  # mm, or a factor


class RadiusFacts(Stored):
    """Errors of ``n`` landmarks, and what a radius is made of (``radius.py``)."""

    n: Count = 0
    mean_mm: Size | None = None
    median_mm: Size | None = None
    radius90_mm: Size | None = None
    scale90: Size | None = None


class PresenceFacts(Stored):
    """The threshold of absence and how it was chosen (``presence_trials.py``)."""

    threshold: Share
    recall: Share | None = None
    precision: Share | None = None
    false_absences: Share | None = None
    n: Count = 0
    absent: Count = 0
    whole: Count = 0
    crops: Count = 0
    failed: Count = 0


class MeasureFacts(Stored):
    """Of one measure of the review flag: what is usual, and its robust standard deviation."""

    middle: Number
    scale: Annotated[float, Field(gt=0, le=1e9)]


Measure = Literal[
    "shape", "size", "turn", "cut off", "absent", "whole", "detail", "noise", "spread", "score", "weakest"
]


class RiskFacts(Stored):
    """What errors go with (``risk.py``)."""

    weights: dict[Measure, Annotated[float, Field(gt=0, le=1e6)]] = Field(min_length=1)
    offset: Number
    limit: Number


class TrustFacts(Stored):
    """What is usual (``review.py``)."""

    limit: Annotated[float, Field(gt=0, le=1e9)]
    cases: Count
    independent: Count
    usual: dict[Measure, MeasureFacts] = Field(min_length=1)
    risk: RiskFacts | None = None


class CalibrationFacts(Stored):
    """All of it. Earlier versions wrote no ``presence`` and no ``trust``, and what is used of a calibration made by
    hand may stand alone."""

    version: Literal[1] = 1
    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    source: str = ""
    cases: Count = 0
    pooled: RadiusFacts | None = None
    landmarks: dict[str, RadiusFacts] = {}
    presence: PresenceFacts | None = None
    trust: TrustFacts | None = None
    unproven: str = ""  # why no prediction should be believed unseen

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Raises InputError where it speaks of other landmarks than ``names``, or of some of them alone."""
        if self.landmarks and set(self.landmarks) != set(names):
            differing = sorted(set(self.landmarks) ^ set(names))[0]
            raise InputError(f"{where}: landmarks: {differing!r} stands only in one of this file and plan.json")
