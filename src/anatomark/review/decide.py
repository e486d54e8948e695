"""What a person says of the points of a case, checked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.errors import InputError, nearest
from anatomark.review.record import PLACED, CaseReview, Point, Position, State, is_number, now, state_of

FARTHEST_MM = 1000.0  # outside the image: a slip of units or frames
LONGEST_NAME = 200


def check_person(person: Any) -> str:
    """A person's name. Raises InputError."""
    name = person.strip() if isinstance(person, str) else None
    if name is None or len(name) > LONGEST_NAME or not (name.isprintable() or not name):
        raise InputError(f"person {str(person)[:40]!r}: is no name (a line of at most {LONGEST_NAME} characters)")
    return name


def image_box(case: Case, review: CaseReview, ndim: int) -> Array:
    """(2, D) least and greatest world mm of the image's corners; where its header cannot be read, of the points."""
    try:
        grid = case.grid(ndim)
        corners = itertools.product(*((-0.5, n - 0.5) for n in grid.shape))
        places = grid.to_world(np.array(list(corners)))
    except InputError:
        known = [at for p in review.points for at in (p.position, p.predicted) if at is not None]
        places = np.array(known) if known else np.zeros((1, ndim))
    return np.stack([places.min(0), places.max(0)])


def changed(review: CaseReview, points: Sequence[Mapping[str, Any]], person: str, box: Array) -> CaseReview:
    """The case with the named ``points`` in their new states; the others stay.

    Each: ``name``, ``state``, ``position`` ((D,) world mm or None). ``moved`` needs a position, ``confirmed`` takes the
    one that there is where none is given, ``predicted`` is the model's own again; ``absent`` and ``missing`` have none.
    ``box``: (2, D) least and greatest world mm of the image. Raises InputError, and then nothing is changed.
    """
    known = {p.name: p for p in review.points}
    if not isinstance(points, Sequence) or isinstance(points, str | bytes):
        raise InputError(f"case {review.case!r}: points must be a list of names, states and positions")
    time, seen = now(), set()
    for i, given in enumerate(points):
        name = given.get("name") if isinstance(given, Mapping) else None
        if not isinstance(name, str) or name not in known:
            hint = nearest(name, list(known)) if isinstance(name, str) else ""
            raise InputError(f"case {review.case!r}: point {i + 1}: no landmark is called {str(name)[:60]!r}{hint}")
        where = f"case {review.case!r}, {name!r}"
        if name in seen:
            raise InputError(f"{where}: is named twice")
        seen.add(name)
        point = _changed(known[name], given, where, time, person, box)
        known[name] = replace(point, cleared=review.annotated and point.state is State.MISSING)
    return replace(review, points=tuple(known.values()), person=person or review.person, changed=time)


def _changed(point: Point, given: Mapping[str, Any], where: str, time: str, person: str, box: Array) -> Point:
    state = state_of(given.get("state"), where)
    position = _position(given.get("position"), where, box)
    if state in PLACED:
        position = point.position if position is None and state is State.CONFIRMED else position
        if position is None:
            raise InputError(f"{where}: is {state}, so it needs a position")
        return replace(point, state=state, position=position, time=time, person=person)
    if state is State.PREDICTED:
        if point.predicted is None:
            raise InputError(f"{where}: the model predicted no position; it is moved, confirmed, absent or missing")
        if position is not None and math.dist(position, point.predicted) > 1e-6:
            raise InputError(f"{where}: is predicted, but the position is not the model's; one that differs is moved")
        return replace(point, state=state, position=point.predicted, time=None, person="")
    if position is not None:
        raise InputError(f"{where}: is {state}, so it has no position; write null, or the state moved")
    return replace(point, state=state, position=None, time=time, person=person)


def _position(value: Any, where: str, box: Array) -> Position | None:
    ndim = box.shape[1]
    if value is None:
        return None
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != ndim:
        raise InputError(f"{where}: position {str(value)[:60]} is not {ndim} numbers")
    if not all(map(is_number, value)):
        raise InputError(f"{where}: position {str(value)[:60]} is not {ndim} finite numbers (mm)")
    position = np.array(value, dtype=np.float64)
    outside = np.maximum(np.maximum(box[0] - position, position - box[1]), 0.0)
    if np.linalg.norm(outside) > FARTHEST_MM:
        raise InputError(
            f"{where}: position {str(value)[:60]} lies {np.linalg.norm(outside):.0f} mm outside the image; "
            "positions are world mm"
        )
    return tuple(position.tolist())


def finished(review: CaseReview, person: str, confirm_all: bool) -> CaseReview:
    """The case as done; with ``confirm_all`` what the model said of points that nobody decided on is right."""
    time = now()

    def confirmed(point: Point) -> Point:
        if point.state is State.PREDICTED:
            return replace(point, state=State.CONFIRMED, time=time, person=person)
        if point.state is State.ABSENT and not point.decided:
            return replace(point, time=time, person=person)
        return point

    points = tuple(map(confirmed, review.points)) if confirm_all else review.points
    return replace(review, points=points, finished=time, skipped=False, changed=time, person=person or review.person)


def skipped(review: CaseReview, person: str) -> CaseReview:
    """The case as left for later: nothing of it is truth."""
    return replace(review, finished=None, skipped=True, changed=now(), person=person or review.person)


def reopened(review: CaseReview, person: str) -> CaseReview:
    """The case as open; its points stay as they are."""
    return replace(review, finished=None, skipped=False, changed=now(), person=person or review.person)
