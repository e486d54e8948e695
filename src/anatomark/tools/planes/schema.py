"""How a user defines scan planes: points, directions, size; the content of a YAML file, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from anatomark.errors import InputError, nearest
from anatomark.tools.points import Meanings, Point

AXES = {
    "left": (1, 0, 0), "right": (-1, 0, 0), "posterior": (0, 1, 0), "anterior": (0, -1, 0), "superior": (0, 0, 1),
    "inferior": (0, 0, -1),
}  # fmt: skip

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]*")


def _above(value: float) -> float:
    if not value > 0:
        raise ValueError(f"has to be above 0, found {value:g}")
    return value


Above = Annotated[float, AfterValidator(_above)]


class Direction(BaseModel):
    """A direction in space: ``axis`` (left, right, anterior, posterior, superior, inferior: of the scanner), or from
    the point ``start`` to the point ``end``, or ``normal_of`` a plane that stands above in the file."""

    model_config = ConfigDict(extra="forbid")
    axis: Literal["left", "right", "anterior", "posterior", "superior", "inferior"] | None = None
    start: Point | None = None
    end: Point | None = None
    normal_of: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _word(cls, data: Any) -> Any:
        return {"axis": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_way(self) -> Direction:
        ways = [self.axis is not None, self.start is not None or self.end is not None, self.normal_of is not None]
        if sum(ways) != 1 or (self.start is None) != (self.end is None):
            raise ValueError(f"a direction is one of {', '.join(AXES)}, or start and end (two points), or normal_of")
        return self


class PlaneDefinition(BaseModel):
    """One plane. ``through``: points in it, ``weights`` theirs in the least-squares fit; ``at_least``: how many of them
    suffice where others are absent (default: all are needed).

    Three points or more define a plane; two with ``along``, a direction in it; one with ``normal``, the direction at
    right angles to it (of several points the mean then lies in the plane). ``up``: the direction shown upwards
    (default superior; anterior in planes that are nearly axial). ``facing``: the side it is seen from (default: of
    left, anterior and inferior the nearest). ``centre``: a point whose projection is the middle (default the mean of
    ``through``). ``size_mm``: width and height; ``spacing_mm`` default the image's finest; ``slab_mm``: thickness
    over which the ``mean`` or ``max`` (``mode``) is taken, 0 for a slice.
    """

    model_config = ConfigDict(extra="forbid")
    description: str = ""
    through: list[Point] = Field(min_length=1)
    weights: list[Above] | None = None
    at_least: int | None = None
    along: Direction | None = None
    normal: Direction | None = None
    up: Direction | None = None
    facing: Direction | None = None
    centre: Point | None = None
    size_mm: tuple[Above, Above]
    spacing_mm: Above | None = None
    slab_mm: float = Field(default=0.0, ge=0)
    mode: Literal["mean", "max"] = "mean"

    @field_validator("size_mm", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _enough(self) -> PlaneDefinition:
        given = len(self.through)
        if self.along is not None and self.normal is not None:
            raise ValueError("along and normal are both given; give one of them")
        if given < self.fewest:
            raise ValueError(f"through: {given} points; without normal it takes 3, with along 2, with normal 1")
        if self.weights is not None and len(self.weights) != given:
            raise ValueError(f"weights: {len(self.weights)} for {given} points")
        if self.at_least is not None and not self.fewest <= self.at_least <= given:
            raise ValueError(f"at_least: {self.at_least} is not between {self.fewest} and {given}")
        return self

    @property
    def fewest(self) -> int:
        """Points without which there is no such plane."""
        return 1 if self.normal is not None else 2 if self.along is not None else 3

    def directions(self) -> dict[str, Direction]:
        own = {"along": self.along, "normal": self.normal, "up": self.up, "facing": self.facing}
        return {k: d for k, d in own.items() if d is not None}

    def labels(self) -> list[str]:
        points = [*self.through, self.centre or {}]
        points += [p for d in self.directions().values() for p in (d.start or {}, d.end or {})]
        return list(dict.fromkeys(label for p in points for label in p))


class PlaneSet(BaseModel):
    """The planes of a definition file by name; the file may hold measurements as well, which are not looked at."""

    model_config = ConfigDict(extra="forbid")
    description: str = ""
    stands_for: Meanings = {}  # what a label means, where files may use it for something else
    planes: dict[str, PlaneDefinition] = Field(min_length=1)
    measurements: Any = None

    @field_validator("planes", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        names = [one.get("name") if isinstance(one, Mapping) else None for one in value]
        if None in names:
            raise ValueError("every plane of a list needs its name")
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"two planes are called {twice!r}")
        return {str(n): {k: v for k, v in p.items() if k != "name"} for n, p in zip(names, value, strict=True)}

    @field_validator("planes")
    @classmethod
    def _makes_files(cls, value: dict[str, PlaneDefinition]) -> dict[str, PlaneDefinition]:
        if odd := next((n for n in value if not NAME.fullmatch(n)), None):
            raise ValueError(f"{odd!r} names files: use letters A-Z, digits, - and _, the first no sign")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> PlaneSet:
        above: list[str] = []
        for name, plane in self.planes.items():
            for key, way in plane.directions().items():
                if way.normal_of is not None and way.normal_of not in above:
                    hint = nearest(way.normal_of, above) or f"; above: {', '.join(above) or 'none'}"
                    raise ValueError(f"planes.{name}.{key}: no plane {way.normal_of!r} stands above this one{hint}")
            above.append(name)
        return self

    def check_labels(self, known: Sequence[str], where: str) -> None:
        """Raises InputError for a landmark that none of the cases names: a slip rather than an absence."""
        for name, plane in self.planes.items():
            for label in plane.labels():
                if label not in known:
                    raise InputError(f"{where}: planes.{name}: no case has a landmark {label!r}{nearest(label, known)}")
