"""Where the names of landmarks go in a picture: beside their marks, where they cover neither each other nor a mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RISES = (0.0, 0.8, -0.8, 1.6, -1.6, 2.4, -2.4)  # heights of type up and down from the mark


@dataclass(frozen=True)
class Label:
    """``text`` of the mark at ``x``, ``y``, written from ``near``, to the right where ``right``, its middle at height
    ``level``; ``far``: so much above or below its mark that a line should join them."""

    text: str
    x: float
    y: float
    near: float
    level: float
    right: bool
    far: bool


def place_labels(
    points: Sequence[tuple[str, float, float]], point: float, size: float, edges: tuple[float, float]
) -> list[Label]:
    """A place for each of ``points`` (text, x, y): ``point`` is the length of a typographic point in the picture's
    unit, ``size`` that of the type in points, ``edges`` the picture's left and right border; y may run up or down."""
    taken = [(x - 3 * point, y - 3 * point, x + 3 * point, y + 3 * point) for _, x, y in points]
    out = []
    for text, x, y in sorted(points, key=lambda p: -p[2]):
        long, tall = 0.61 * size * len(text) * point, 1.15 * size * point
        boxes = [
            (x + side * 7 * point - (long if side < 0 else 0), y + rise * tall - tall / 2)
            for rise in RISES
            for side in (1, -1)
        ]
        left, low = min(boxes, key=lambda b: _covered((*b, b[0] + long, b[1] + tall), taken, edges))
        taken.append((left, low, left + long, low + tall))
        level = low + tall / 2
        out.append(Label(text, x, y, left if left > x else left + long, level, left > x, abs(level - y) > tall))
    return out


def _covered(box: Sequence[float], taken: Sequence[Sequence[float]], edges: tuple[float, float]) -> float:
    """Area that a box (left, low, right, high) shares with others; what leaves the picture counts as covered."""
    over = [
        max(0.0, min(box[2], t[2]) - max(box[0], t[0])) * max(0.0, min(box[3], t[3]) - max(box[1], t[1])) for t in taken
    ]
    outside = max(0.0, box[2] - edges[1]) + max(0.0, edges[0] - box[0])
    return sum(over) + outside * (box[3] - box[1])
