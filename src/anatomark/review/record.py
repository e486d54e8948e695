"""What is known of a case under review: its points, who decided on them, and what earlier models had said."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from anatomark.errors import InputError

Position = tuple[float, ...]  # (D,) world mm: LPS in 3D; x right, y down in 2D


class State(StrEnum):
    """What is known of a point."""

    PREDICTED = "predicted"  # the position is the model's
    MOVED = "moved"  # a person placed or moved it
    CONFIRMED = "confirmed"  # a person says that the position is right
    ABSENT = "absent"  # not in this image
    MISSING = "missing"  # not annotated; the model found none


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
MOST_MM = 1e9  # of a coordinate
PLACED = (State.MOVED, State.CONFIRMED)
ANNOTATIONS = "annotations"  # where a model would be named: the points are a manifest's own


class Conflict(Exception):
    """Somebody else changed the case since it was read; ``current`` is how it stands now."""

    def __init__(self, current: CaseReview):
        self.current = current
        super().__init__(f"case {current.case!r} was changed since it was read; look at it again")


@dataclass(frozen=True)
class Point:
    """One landmark of a case. ``position`` and ``predicted`` (the model's): (D,) world mm, None where there is none.
    ``time`` (ISO) and ``person`` of the decision; without a time the state is the model's word. ``score`` 0..1 and
    ``radius90`` mm are the model's. ``cleared``: a person took away what a manifest's own annotation said."""

    name: str
    state: State
    position: Position | None = None
    predicted: Position | None = None
    time: str | None = None
    person: str = ""
    score: float | None = None
    radius90: float | None = None
    cleared: bool = False

    @property
    def moved_mm(self) -> float | None:
        """From the model's point to the person's; None without either."""
        if self.position is None or self.predicted is None or self.state not in PLACED:
            return None
        return math.dist(self.position, self.predicted)

    @property
    def decided(self) -> bool:
        """Whether a person said where it is, that it is absent, or that its annotation counts no more: of a finished
        case, truth."""
        return self.state in PLACED or (self.state is State.ABSENT and self.time is not None) or self.cleared

    @cached_property
    def line(self) -> str:
        """Its line in ``<case>.review.json``."""
        facts = {
            "state": self.state,
            "position": self.position,
            "predicted": self.predicted,
            "moved_mm": self.moved_mm,
            "time": self.time,
            "person": self.person,
        }
        facts |= {k: v for k in ("score", "radius90") if (v := getattr(self, k)) is not None}
        facts |= {"cleared": True} if self.cleared else {}
        return f"    {_line(self.name)}: {_line(facts)}"


@dataclass(frozen=True)
class Earlier:
    """Where a model that has since been replaced had put the points of a case; ``radius90`` mm where known."""

    model: str
    model_name: str
    points: Mapping[str, Position]
    radius90: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseReview:
    """The review of one case. Times are ISO, None where it has not happened. ``model``: the hash of the model that
    predicted, blank where unknown."""

    case: str
    image: str
    points: tuple[Point, ...]
    model: str = ""
    model_name: str = ""
    person: str = ""
    opened: str | None = None
    changed: str | None = None
    finished: str | None = None
    skipped: bool = False
    earlier: tuple[Earlier, ...] = ()

    @property
    def state(self) -> str:
        """``open``, ``done`` or ``skipped``."""
        return "done" if self.finished else "skipped" if self.skipped else "open"

    @cached_property
    def text(self) -> str:
        """What ``<case>.review.json`` holds."""
        return dumps(self)

    @cached_property
    def etag(self) -> str:
        """A hash of the content, by which two who edit one case notice each other; looking at it changes nothing."""
        return hashlib.sha256(dumps(replace(self, opened=None)).encode("utf-8", "backslashreplace")).hexdigest()[:16]

    @property
    def annotated(self) -> bool:
        """Whether its points are a manifest's own annotations, not a model's."""
        return self.model_name == ANNOTATIONS and not self.model

    def point(self, name: str) -> Point:
        """Raises KeyError for an unknown name."""
        return next(p for p in self.points if p.name == name)


def prediction_of(review: CaseReview) -> Earlier:
    """Where the present model put the points."""
    points = {p.name: p.predicted for p in review.points if p.predicted is not None}
    radii = {p.name: p.radius90 for p in review.points if p.radius90 is not None and p.predicted is not None}
    return Earlier(review.model, review.model_name, points, radii)


def now() -> str:
    """The time in UTC, ISO."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dumps(review: CaseReview) -> str:
    """``<case>.review.json``: a line for each point and each earlier model."""
    from anatomark import __version__

    head = {
        "anatomark": __version__,
        "format": 1,
        "case": review.case,
        "image": review.image,
        "model": review.model,
        "model_name": review.model_name,
        "person": review.person,
        "opened": review.opened,
        "changed": review.changed,
        "finished": review.finished,
        "skipped": review.skipped,
    }
    points = [p.line for p in review.points]
    earlier = [f"    {_line(vars(e))}" for e in review.earlier]
    rows = f'"points": {_rows("{}", points)},\n  "earlier": {_rows("[]", earlier)}'
    return f"{json.dumps(head, indent=2, ensure_ascii=False)[:-2]},\n  {rows}\n}}\n"


def _line(value: Any) -> str:
    return _ENCODER.encode(value)


def _rows(brackets: str, lines: list[str]) -> str:
    return "\n".join([brackets[0], ",\n".join(lines), f"  {brackets[1]}"]) if lines else brackets


def parse(document: Any, where: str) -> CaseReview:
    """The inverse of :func:`dumps` for a document that was read from ``where``. Raises InputError."""
    if not isinstance(document, dict) or not isinstance(document.get("points"), dict):
        raise InputError(f"{where}: is no review of a case (it has no table 'points')")
    if document.get("format") != 1:
        raise InputError(f"{where}: is of format {str(document.get('format'))[:20]}; this version reads format 1")
    points = tuple(_point(name, facts, where) for name, facts in document["points"].items())
    try:
        return CaseReview(
            case=str(document["case"]),
            image=str(document.get("image") or ""),
            points=points,
            earlier=tuple(
                Earlier(
                    str(one["model"]),
                    str(one["model_name"]),
                    {name: _position(at, f"{where}: earlier, {name!r}") for name, at in one["points"].items()},
                    {name: float(r) for name, r in one.get("radius90", {}).items()},
                )
                for one in document.get("earlier") or ()
            ),
            skipped=bool(document.get("skipped")),
            model=str(document.get("model") or ""),
            model_name=str(document.get("model_name") or ""),
            person=str(document.get("person") or ""),
            opened=_text(document.get("opened")),
            changed=_text(document.get("changed")),
            finished=_text(document.get("finished")),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{where}: is no review of a case: {type(error).__name__}: {error}") from None


def _point(name: str, facts: Any, where: str) -> Point:
    where = f"{where}: point {name!r}"
    if not isinstance(facts, dict):
        raise InputError(f"{where}: expected a state and positions, found {str(facts)[:40]!r}")
    state = state_of(facts.get("state"), where)
    position, predicted = (
        None if facts.get(key) is None else _position(facts[key], where) for key in ("position", "predicted")
    )
    if (position is None) != (state in (State.ABSENT, State.MISSING)):
        raise InputError(f"{where}: is {state}, " + ("but has no position" if position is None else "with a position"))
    score, radius = (facts.get(key) for key in ("score", "radius90"))
    if not all(v is None or is_number(v) for v in (score, radius)):
        raise InputError(f"{where}: score and radius90 must be numbers")
    time, person = _text(facts.get("time")), str(facts.get("person") or "")
    cleared = state is State.MISSING and facts.get("cleared") is True
    return Point(name, state, position, predicted, time, person, score, radius, cleared)


def state_of(word: Any, where: str) -> State:
    """Raises InputError for a word that is no state."""
    try:
        return State(word)
    except ValueError:
        states = ", ".join(State)
        raise InputError(f"{where}: state {str(word)[:40]!r} is not known; it is one of {states}") from None


def _position(value: Any, where: str) -> Position:
    if not isinstance(value, list) or len(value) not in (2, 3) or not all(map(is_number, value)):
        raise InputError(f"{where}: position {str(value)[:60]} is not 2 or 3 numbers")
    return tuple(map(float, value))


def is_number(value: Any) -> bool:
    """Whether it is a number of JSON, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST_MM


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
