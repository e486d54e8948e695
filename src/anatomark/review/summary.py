"""What people move, and how far: of one case, of all, and beside what earlier models had said."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from anatomark.review.record import PLACED, CaseReview, Earlier

SAME_MM = 1e-6  # nearer than this a point was not moved


@dataclass(frozen=True)
class Tally:
    """Counts of points: ``decided`` by a person; of those that a model had placed too ``measured``, ``moved``,
    ``outside`` the model's 90 % radius, and the sum of the ``moved_mm``."""

    points: int = 0
    decided: int = 0
    measured: int = 0
    moved: int = 0
    outside: int = 0
    moved_mm: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def figures(self) -> dict[str, Any]:
        mean = self.moved_mm / self.moved if self.moved else None
        return {"mean_moved_mm": mean, "outside_radius": self.outside, "moved": self.moved}


def tally(review: CaseReview) -> Tally:
    """The counts of one case."""
    apart = [(p.moved_mm, p.radius90) for p in review.points if p.state in PLACED and p.moved_mm is not None]
    moved = [(mm, radius) for mm, radius in apart if mm > SAME_MM]
    return Tally(
        len(review.points),
        sum(p.decided for p in review.points),
        len(apart),
        len(moved),
        sum(radius is not None and mm > radius for mm, radius in moved),
        sum(mm for mm, _ in moved),
    )


def summary(reviews: Iterable[CaseReview]) -> dict[str, Any]:
    """How far each model's points lay from those that people placed or confirmed; the models in the order in which
    they predicted.

    ``landmarks``: rows of ``name``, ``model``, ``model_name``, ``decided``, ``moved``, ``mean_mm``, ``max_mm`` and
    ``outside_radius`` (beyond the model's 90 %); ``models``: the same over all landmarks; ``same_points``: the same
    over the points that all models placed, so that before and after a retraining can be held against each other.
    """
    seen: dict[tuple[str, str], dict[tuple[str, str], tuple[float, bool]]] = {}
    names: dict[str, None] = {}
    for review in reviews:
        names |= dict.fromkeys(p.name for p in review.points)
        placed = {p.name: p.position for p in review.points if p.state in PLACED and p.position is not None}
        now = Earlier(
            review.model,
            review.model_name,
            {p.name: p.predicted for p in review.points if p.predicted is not None},
            {p.name: p.radius90 for p in review.points if p.radius90 is not None},
        )
        for model in (*review.earlier, now):
            rows = seen.setdefault((model.model, model.model_name), {})
            for name in placed.keys() & model.points.keys():
                mm = math.dist(placed[name], model.points[name])
                rows[review.case, name] = mm, mm > model.radius90.get(name, math.inf)
    models = {model: rows for model, rows in seen.items() if rows}
    shared = set.intersection(*(set(rows) for rows in models.values())) if models else set()
    return {
        "models": [_row(model, rows.values()) for model, rows in models.items()],
        "same_points": [_row(model, [rows[key] for key in shared]) for model, rows in models.items()],
        "landmarks": [
            {"name": name, **_row(model, here)}
            for name in names
            for model, rows in models.items()
            if (here := [v for (_, n), v in rows.items() if n == name])
        ],
    }


def _row(model: tuple[str, str], points: Iterable[tuple[float, bool]]) -> dict[str, Any]:
    apart = list(points)
    mm = [d for d, _ in apart]
    return {
        "model": model[0],
        "model_name": model[1],
        "decided": len(mm),
        "moved": sum(d > SAME_MM for d in mm),
        "mean_mm": sum(mm) / len(mm) if mm else None,
        "max_mm": max(mm, default=None),
        "outside_radius": sum(outside for _, outside in apart),
    }
