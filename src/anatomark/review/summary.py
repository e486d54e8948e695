"""What people move, and how far: of one case, of all, and beside what earlier models had said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from anatomark.errors import counted
from anatomark.review.record import PLACED, CaseReview, State, prediction_of

Model = tuple[str, str]  # hash and name
Apart = tuple[float, bool]  # mm, and whether that is beyond the model's radius
SHOWN = 20  # landmarks in the printed table
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
    ``called_absent``: points that the last model had placed and a person called absent; ``found``: that a person placed
    where it had none.
    """
    seen: dict[Model, dict[str, dict[str, Apart]]] = {}  # by model, landmark and case
    names: dict[str, None] = {}
    absent = found = 0
    for review in reviews:
        absent += sum(p.state is State.ABSENT and p.predicted is not None for p in review.points)
        found += sum(p.state in PLACED and p.predicted is None for p in review.points)
        names |= dict.fromkeys(p.name for p in review.points)
        placed = {p.name: p.position for p in review.points if p.state in PLACED and p.position is not None}
        for model in (*review.earlier, prediction_of(review)):
            rows = seen.setdefault((model.model, model.model_name), {})
            for name in placed.keys() & model.points.keys():
                mm = math.dist(placed[name], model.points[name])
                rows.setdefault(name, {})[review.case] = mm, mm > model.radius90.get(name, math.inf)
    models = {model: rows for model, rows in seen.items() if rows}
    keys = [{(n, c) for n, cases in rows.items() for c in cases} for rows in models.values()]
    shared = set.intersection(*keys) if keys else set()
    return {
        "models": [_row(m, (v for by in rows.values() for v in by.values())) for m, rows in models.items()],
        "same_points": [_row(m, (rows[name][case] for name, case in shared)) for m, rows in models.items()],
        "landmarks": [
            {"name": name, **_row(model, rows[name].values())}
            for name in names
            for model, rows in models.items()
            if name in rows
        ],
        "called_absent": absent,
        "found": found,
    }


def lines(facts: Mapping[str, Any], begun: str = "open") -> list[str]:
    """The summary as text: cases, each model on all and on the same points, the landmarks that people move farthest.
    ``begun``: what a case is called that is neither done nor skipped."""
    out = [f"{counted(facts['done'], 'case')} done, {facts['open']} {begun}, {facts['skipped']} skipped"]
    if facts["called_absent"] or facts["found"]:
        absent, found = (counted(facts[key], "point") for key in ("called_absent", "found"))
        out.append(f"{absent} of the model called absent, {found} placed where it had none")
    if not facts["models"]:
        return [*out, "no point of a model was moved or confirmed yet"]
    out.append("mm from a model's point to the person's:  points   moved    mean     max   outside r90")
    out += [_line(row, row["model_name"] or row["model"] or "predictions") for row in facts["models"]]
    if len(facts["models"]) > 1 and facts["same_points"][0]["decided"]:
        out.append("on the points that all of them placed (confirmed ones count 0 for the model that put them there):")
        out += [_line(row, row["model_name"] or row["model"] or "predictions") for row in facts["same_points"]]
    last = facts["models"][-1]["model"]
    rows = sorted((r for r in facts["landmarks"] if r["model"] == last), key=lambda r: -(r["mean_mm"] or 0.0))
    out.append("landmarks, farthest first:")
    out += [_line(row, row["name"]) for row in rows[:SHOWN]]
    return out + ([f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else [])


def _line(row: Mapping[str, Any], name: str) -> str:
    mean, most = (f"{row[k]:7.2f}" if row[k] is not None else "      -" for k in ("mean_mm", "max_mm"))
    return f"  {name[:38]:<38} {row['decided']:>8} {row['moved']:>7} {mean} {most} {row['outside_radius']:>8}"


def _row(model: Model, points: Iterable[Apart]) -> dict[str, Any]:
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
