"""How a user defines measurements: kinds, signs, units, classes; the content of a YAML file, checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from anatomark.errors import nearest
from anatomark.tools.points import Meanings, Point, parse_point

UNITS = {"length": {"mm": 1.0, "cm": 0.1}, "angle": {"deg": 1.0, "rad": np.pi / 180}, "ratio": {"1": 1.0, "%": 100.0}}
DIMENSION = {"angle": "angle", "angle_between": "angle", "angle_to_plane": "angle", "ratio": "ratio"}  # else a length
KINDS = (
    "distance", "angle", "angle_between", "angle_to_plane", "ratio", "projection", "point_line", "point_plane", "sum",
    "difference",
)  # fmt: skip
SIGNED_BY = {
    "distance": "towards", "angle_between": "towards", "angle_to_plane": "side", "point_line": "side",
    "point_plane": "side",
}  # fmt: skip
WORDS = {2: "two", 3: "three"}


def _list(value: Any, count: int, one: Callable[[Any], Any], what: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) != count:
        raise ValueError(f"expected {what}, found {str(value)[:60]!r}")
    return tuple(map(one, value))


def _points(value: Any, count: int) -> tuple[dict[str, float], ...]:
    points = _list(value, count, parse_point, f"a list of {WORDS[count]} points")
    if any(p in points[:i] for i, p in enumerate(points)):
        raise ValueError(f"its {WORDS[count]} points must differ, found {str(value)[:60]}")
    return points


def _lines(value: Any) -> tuple[Any, ...]:
    return _list(value, 2, partial(_points, count=2), "two lines [[from, to], [from, to]]")


def _terms(value: Any) -> tuple[Any, ...]:
    """Each a measurement's name, or two points: their distance."""
    return _list(value, 2, lambda v: v if isinstance(v, str) else _points(v, 2), "two measurements or pairs of points")


Line = Annotated[tuple[Point, Point], PlainValidator(partial(_points, count=2))]
Three = Annotated[tuple[Point, Point, Point], PlainValidator(partial(_points, count=3))]
Lines = Annotated[tuple[Line, Line], PlainValidator(_lines)]
Terms = Annotated[tuple[Any, Any], PlainValidator(_terms)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Class(_Model):
    """A named range of a measurement: ``at_least <= value < below``; an end that is not given is open."""

    name: str
    at_least: float = -np.inf
    below: float = np.inf

    @model_validator(mode="after")
    def _ascends(self) -> Class:
        if not self.at_least < self.below:
            raise ValueError(f"class {self.name!r}: at_least {self.at_least:g} is not less than below {self.below:g}")
        return self


class LineToPlane(_Model):
    """A directed line and a plane through three points."""

    line: Line
    plane: Three


class Projection(_Model):
    """The way of ``line`` along the direction of ``along``."""

    line: Line
    along: Line


class PointLine(_Model):
    """A point and a line."""

    point: Point
    line: Line


class PointPlane(_Model):
    """A point and a plane through three points."""

    point: Point
    plane: Three


class Measurement(_Model):
    """One measurement: exactly one of the kinds, and what is said of it.

    ``distance`` of two points. ``angle`` [a, vertex, b], 0..180 deg. ``angle_between`` two directed lines, 0..180 deg.
    ``angle_to_plane``, 0..90 deg. ``projection``: signed. ``point_line`` (perpendicular), ``point_plane``: mm.
    ``ratio`` of two measurements or pairs of points. ``sum`` and ``difference`` of other measurements, by name.

    Signs: ``towards`` [c, d] makes a ``distance`` negative where it points against c->d, and an ``angle_between``
    positive where the second line is turned from the first to the side that c->d points to (-180..180 deg; in 3D seen
    in the plane of the first line and c->d). ``side``: the side of the line or plane with this point is positive.
    ``hidden``: for use by others alone. ``unit``: mm, cm, deg, rad, 1 or %; ``classes`` are in it.
    """

    description: str = ""
    distance: Line | None = None
    angle: Three | None = None
    angle_between: Lines | None = None
    angle_to_plane: LineToPlane | None = None
    ratio: Terms | None = None
    projection: Projection | None = None
    point_line: PointLine | None = None
    point_plane: PointPlane | None = None
    sum: list[str] | None = Field(default=None, min_length=2)
    difference: list[str] | None = Field(default=None, min_length=2, max_length=2)
    towards: Line | None = None
    side: Point | None = None
    unit: Literal["mm", "cm", "deg", "rad", "1", "%"] | None = None
    classes: list[Class] = Field(default_factory=list)
    hidden: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Measurement:
        given = [k for k in KINDS if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"holds {' and '.join(given) or 'no kind'}; expected one of {', '.join(KINDS)}")
        for key in ("towards", "side"):
            if getattr(self, key) is not None and SIGNED_BY.get(given[0]) != key:
                fitting = ", ".join(k for k, v in SIGNED_BY.items() if v == key)
                raise ValueError(f"{key} gives no sign to {given[0]}; it does to {fitting}")
        for before, after in zip(self.classes, self.classes[1:], strict=False):
            if before.below > after.at_least:
                raise ValueError(f"class {after.name!r} begins before class {before.name!r} ends; list them ascending")
        names = [c.name for c in self.classes]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"two classes are called {twice!r}")
        return self

    @property
    def kind(self) -> str:
        return next(k for k in KINDS if getattr(self, k) is not None)

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of measurements that it is made of."""
        own = self.sum or self.difference or self.ratio or ()
        return tuple(t for t in own if isinstance(t, str))

    @property
    def labels(self) -> tuple[str, ...]:
        fields = self.model_dump(include={*KINDS, "towards", "side"} - {"sum", "difference"}, exclude_none=True)
        return tuple(dict.fromkeys(_labels_in(fields)))

    def class_of(self, value: float) -> str:
        """The class of a value; empty where it lies in none, or is NaN."""
        return next((c.name for c in self.classes if c.at_least <= value < c.below), "")


def _labels_in(value: Any) -> list[str]:
    """Labels at the leaves: a point is a mapping of labels to numbers."""
    if isinstance(value, dict):
        own = [k for k, v in value.items() if isinstance(v, float)]
        return own + [label for v in value.values() for label in _labels_in(v)]
    return [label for v in value for label in _labels_in(v)] if isinstance(value, list | tuple) else []


class Measurements(_Model):
    """A definition: measurements by name; the file may hold planes as well, which are not looked at."""

    description: str = ""
    stands_for: Meanings = {}  # what a label means, where files may use it for something else
    planes: Any = None
    measurements: dict[str, Measurement] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> Measurements:
        for name, one in self.measurements.items():
            for term in one.terms:
                if term not in self.measurements:
                    hint = nearest(term, list(self.measurements))
                    raise ValueError(f"measurement {name!r}: no measurement is called {term!r}{hint}")
        self.order()
        for name, one in self.measurements.items():
            kinds = {t: self.dimension(t) for t in one.terms}
            if len(one.terms) < len(one.ratio or ()):
                kinds["a distance"] = "length"
            if len(set(kinds.values())) > 1:
                raise ValueError(f"measurement {name!r}: {' and '.join(f'{k} ({v})' for k, v in kinds.items())} differ")
            if one.unit and one.unit not in UNITS[self.dimension(name)]:
                known = " or ".join(UNITS[self.dimension(name)])
                raise ValueError(f"measurement {name!r}: is of kind {one.kind}, whose unit is {known}, not {one.unit}")
        if all(one.hidden for one in self.measurements.values()):
            raise ValueError("every measurement is hidden; nothing is left to measure")
        return self

    def order(self) -> list[str]:
        """The names, each after those that it is made of. Raises ValueError where they go round in a circle."""
        done: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                circle = " -> ".join((*path[path.index(name) :], name))
                raise ValueError(f"measurement {name!r} is made of itself: {circle}")
            if name not in done:
                for term in self.measurements[name].terms:
                    visit(term, (*path, name))
                done.append(name)

        for name in self.measurements:
            visit(name, ())
        return done

    def dimension(self, name: str) -> str:
        """``length``, ``angle`` or ``ratio``."""
        one = self.measurements[name]
        if one.kind in ("sum", "difference"):
            return self.dimension(one.terms[0])
        return DIMENSION.get(one.kind, "length")

    def unit(self, name: str) -> str:
        """The unit that is written: as given, else mm, deg or 1."""
        return self.measurements[name].unit or next(iter(UNITS[self.dimension(name)]))

    def labels(self, name: str) -> tuple[str, ...]:
        """The landmarks that a measurement depends on, those of its terms too."""
        one = self.measurements[name]
        return tuple(dict.fromkeys([*one.labels, *(k for t in one.terms for k in self.labels(t))]))

    @property
    def shown(self) -> tuple[str, ...]:
        return tuple(n for n, one in self.measurements.items() if not one.hidden)

    @property
    def solid(self) -> bool:
        """Whether a plane is used, which 2D landmarks do not have."""
        return any(m.angle_to_plane is not None or m.point_plane is not None for m in self.measurements.values())
