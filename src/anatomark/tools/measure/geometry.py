"""The geometry of measurements: distances, angles and signs, for many cases at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anatomark.core.grid import Array
from anatomark.tools.measure.schema import UNITS, Measurement, Measurements

TINY = 1e-9  # mm; a shorter line has no direction


def evaluate(definition: Measurements, labels: Sequence[str], points: Array) -> Array:
    """(..., K) values of the K shown measurements, in their units, for ``points`` (..., N, D) mm of N ``labels``.

    NaN where a point is NaN or the geometry leaves it open: a direction of two points in one place, a plane through
    three on a line, a ratio to 0. D is 2 or 3.
    """
    space = _Space({label: i for i, label in enumerate(labels)}, np.asarray(points, dtype=np.float64))
    values: dict[str, Array] = {}
    for name in definition.order():
        values[name] = space.measure(definition.measurements[name], values)
    scale = [UNITS[definition.dimension(n)][definition.unit(n)] for n in definition.shown]
    return np.stack([values[n] * s for n, s in zip(definition.shown, scale, strict=True)], axis=-1)


class _Space:
    """Points by label; lengths in mm, angles in degrees."""

    def __init__(self, rows: dict[str, int], points: Array):
        self.rows, self.points = rows, points

    def at(self, point: dict[str, float]) -> Array:
        return sum((w * self.points[..., self.rows[k], :] for k, w in point.items()), np.zeros(()))

    def way(self, line: Sequence[dict[str, float]]) -> Array:
        return self.at(line[1]) - self.at(line[0])

    def normal(self, plane: Sequence[dict[str, float]]) -> Array:
        first, second = _unit(self.way(plane[:2])), _unit(self.way((plane[0], plane[2])))
        return _unit(np.cross(first, second))

    def measure(self, m: Measurement, values: dict[str, Array]) -> Array:
        """One measurement; ``values`` holds those that it is made of."""
        if m.sum:
            return sum((values[t] for t in m.sum), np.zeros(()))
        if m.difference:
            return values[m.difference[0]] - values[m.difference[1]]
        if m.ratio:
            over, under = (values[t] if isinstance(t, str) else _length(self.way(t)) for t in m.ratio)
            return over / np.where(np.abs(under) > TINY, under, np.nan)
        if m.distance:
            way = self.way(m.distance)
            return _length(way) if m.towards is None else _length(way) * _sign(_dot(way, _unit(self.way(m.towards))))
        if m.angle:
            a, vertex, b = m.angle
            return _angle(self.way((vertex, a)), self.way((vertex, b)))
        if m.angle_between:
            first, second = (self.way(line) for line in m.angle_between)
            return _angle(first, second) if m.towards is None else _turn(first, second, self.way(m.towards))
        if m.projection:
            return _dot(self.way(m.projection.line), _unit(self.way(m.projection.along)))
        if m.point_line:
            along, start = _unit(self.way(m.point_line.line)), self.at(m.point_line.line[0])
            off = _across(self.at(m.point_line.point) - start, along)
            return _length(off) * (
                1.0 if m.side is None else _sign(_dot(off, _unit(_across(self.at(m.side) - start, along))))
            )
        return self._to_plane(m)

    def _to_plane(self, m: Measurement) -> Array:
        plane = m.point_plane.plane if m.point_plane else m.angle_to_plane.plane  # type: ignore[union-attr]
        normal, start = self.normal(plane), self.at(plane[0])
        if m.point_plane:
            value = _dot(self.at(m.point_plane.point) - start, normal)
        else:
            along = _unit(self.way(m.angle_to_plane.line))  # type: ignore[union-attr]
            value = np.degrees(np.arctan2(_dot(along, normal), _length(_across(along, normal))))
        if m.side is None:
            return np.abs(value)
        height = _dot(self.at(m.side) - start, normal)
        return value * np.where(np.abs(height) > TINY, _sign(height), np.nan)


def _dot(a: Array, b: Array) -> Array:
    return np.asarray((a * b).sum(-1))


def _length(v: Array) -> Array:
    return np.asarray(np.linalg.norm(v, axis=-1))


def _unit(v: Array) -> Array:
    """Directions; NaN for a vector without length."""
    size = _length(v)[..., None]
    return v / np.where(size > TINY, size, np.nan)


def _across(v: Array, along: Array) -> Array:
    """The part of v that is perpendicular to a unit vector."""
    return v - _dot(v, along)[..., None] * along


def _sign(x: Array) -> Array:
    """-1, or 1 from 0 on; NaN stays."""
    return np.where(np.isnan(x), np.nan, np.where(x < 0, -1.0, 1.0))


def _angle(u: Array, v: Array) -> Array:
    """Degrees 0..180, exact near both ends too (Kahan 2006)."""
    u, v = _unit(u), _unit(v)
    return np.degrees(2 * np.arctan2(_length(u - v), _length(u + v)))


def _turn(u: Array, v: Array, towards: Array) -> Array:
    """Degrees -180..180 from u to v, positive to the side of ``towards``, in the plane that u and it span."""
    u, v = _unit(u), _unit(v)
    across = _dot(v, _unit(_across(_unit(towards), u)))
    ahead = _dot(v, u)
    return np.where(np.hypot(across, ahead) > TINY, np.degrees(np.arctan2(across, ahead)), np.nan)
