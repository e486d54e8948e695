"""The outcome of an evaluation as one value, and the tables that are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from anatomark.evaluation.metrics import (
    THRESHOLDS_MM,
    Errors,
    Outcome,
    Statistics,
    area_under_roc,
    figure_of,
    statistics,
)
from anatomark.evaluation.predictions import Predictions

# of per_landmark.csv, before and after the SDR of each threshold
LANDMARK_COLUMNS = (
    ("label", "description", "truth", "pairs", "failures", "absent", "false_presences", "false_absences",
     "absence_recall", "absence_precision", "mre_mm", "ci_low_mm", "ci_high_mm", "sd_mm", "median_mm", "p95_mm",
     "max_mm"),
    ("radius90_mm", "covered90", "score", "mean_position_mm", "observers_mm"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Errors of one model, or of a folder of predictions, on one split of a manifest, and what to hold them against.

    ``model``, ``manifest``, ``split``, ``truth`` (which observer): names, shown in every table. ``baselines``: errors
    of the training mean on the same cases. ``observers``: distances between observers, by pair. ``against``: this model
    measured against the other observers and their mean. ``predictions``: what was measured, with times, flags and
    suspicions. ``notes``: lines that a reader must see, such as labels that were not scored. ``tables``: further ones
    by title, rows of one shape.
    """

    model: str
    manifest: str
    split: str
    truth: str
    errors: Errors
    thresholds: Sequence[float] = THRESHOLDS_MM
    descriptions: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, Errors] = field(default_factory=dict)
    observers: Mapping[str, Errors] = field(default_factory=dict)
    against: Mapping[str, Errors] = field(default_factory=dict)
    predictions: Predictions = field(default_factory=Predictions)
    notes: Sequence[str] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @cached_property
    def overall(self) -> Statistics:
        return statistics(self.errors, thresholds=self.thresholds)

    @cached_property
    def per_landmark(self) -> dict[str, Statistics]:
        return {n: statistics(self.errors, [n], thresholds=self.thresholds) for n in self.errors.names}

    def median_of(self, name: str) -> float | None:
        """Of the ``seconds`` or ``align_seconds`` of the cases that have it; None where none has."""
        return figure_of(np.array(list(self.predictions.values(name).values())), np.median)

    @property
    def beside(self) -> dict[str, Errors]:
        """What the model is held against, by name: baselines, and the observers among each other."""
        return {**self.baselines, **{f"observers: {name}": errors for name, errors in self.observers.items()}}

    @cached_property
    def comparisons(self) -> dict[str, Statistics]:
        """Figures of the model and of everything beside it, by name of the row."""
        own = f"{self.model} (truth: {self.truth})" if self.against else self.model
        others = {**self.beside, **{f"{self.model} (truth: {name})": errors for name, errors in self.against.items()}}
        return {own: self.overall, **{n: statistics(e, thresholds=self.thresholds) for n, e in others.items()}}

    @property
    def error_columns(self) -> list[str]:
        """Of :meth:`error_rows`."""
        axes = [f"d{a}_mm" for a in "xyz"[: self.errors.offset.shape[2]]]
        return ["case", "label", "truth", "outcome", "error_mm", *axes, "score", "radius90_mm"]

    def error_rows(self) -> Iterator[dict[str, Any]]:
        """``errors.csv``: one row per case and landmark, the prediction minus the truth along each axis."""
        e = self.errors
        axes = {f"d{a}_mm": e.offset[..., k] for k, a in enumerate("xyz"[: e.offset.shape[2]])}
        columns = {"error_mm": e.error, **axes, "score": e.score, "radius90_mm": e.radius90}
        for m, case in enumerate(e.cases):
            for n, name in enumerate(e.names):
                row = {"case": case, "label": name, "truth": self.truth, "outcome": str(e.outcome[m, n])}
                yield {**row, **{key: _rounded(values[m, n]) for key, values in columns.items()}}

    def landmark_rows(self) -> list[dict[str, Any]]:
        """``per_landmark.csv``: one row per landmark, with the columns of ``LANDMARK_COLUMNS`` and the SDRs."""
        beside = {"mean_position_mm": self.baselines, "observers_mm": self.observers}
        first = {key: next(iter(group.values())).error for key, group in beside.items() if group}
        columns = {"radius90_mm": self.errors.radius90, "score": self.errors.score, **first}
        before, after = LANDMARK_COLUMNS
        keys = [*before, *(f"sdr_{t:g}" for t in self.thresholds), *after]
        rows = []
        for n, (name, figures) in enumerate(self.per_landmark.items()):
            row = {"label": name, "description": self.descriptions.get(name, ""), "truth": self.truth}
            row |= figures.cells() | {key: figure_of(values[:, n]) for key, values in columns.items()}
            rows.append({key: row.get(key) for key in keys})
        return rows

    def case_rows(self) -> list[dict[str, Any]]:
        """``per_case.csv``: one row per case."""
        error, means, count = self.errors.error, self.errors.case_error, self.errors.count
        seconds, suspicion = self.predictions.values("seconds"), self.predictions.values("suspicion")
        flags = self.predictions.flags
        return [
            {
                "case": case,
                "truth": self.truth,
                "annotated": int(self.errors.annotated[m].sum()),
                "failures": self.errors.failures(m),
                "absent": count(m, Outcome.ABSENT, Outcome.FALSE_PRESENCE),
                "false_presences": count(m, Outcome.FALSE_PRESENCE),
                "false_absences": count(m, Outcome.FALSE_ABSENCE),
                "error_mm": figure_of(means[m : m + 1]),
                "median_mm": figure_of(error[m], np.median),
                "max_mm": figure_of(error[m], np.max),
                "worst": self.errors.names[int(np.nanargmax(error[m]))] if np.isfinite(means[m]) else "",
                "radius90_mm": figure_of(self.errors.radius90[m]),
                "seconds": seconds.get(case),
                "suspicion": _finite(suspicion.get(case)),
                "flags": "; ".join(flags.get(case, ())),
            }
            for m, case in enumerate(self.errors.cases)
        ]

    def review(self) -> dict[str, Any]:
        """How many cases are flagged, and how well suspicion ranks the tenth with the largest errors above the others
        (area under the ROC curve; None for fewer than 20 cases or without suspicions)."""
        cases, error, area = self.errors.cases, self.errors.case_error, None
        suspicion = self.predictions.values("suspicion")
        both = [m for m, case in enumerate(cases) if case in suspicion and np.isfinite(error[m])]
        if len(both) >= 20:
            given = np.array([suspicion[cases[m]] for m in both])
            area = area_under_roc(given, error[both] >= np.quantile(error[both], 0.9))
        return {"flagged": len(self.predictions.flags.keys() & set(cases)), "auroc_worst_decile": _finite(area)}

    def worst(self, case: int, most: int) -> list[str]:
        """Names of at most ``most`` annotated landmarks of a case, the missed ones first, then by falling error."""
        error = np.where(np.isfinite(self.errors.error[case]), self.errors.error[case], np.inf)
        order = [n for n in np.argsort(-error, kind="stable") if self.errors.annotated[case, n]]
        return [self.errors.names[n] for n in order[:most]]

    def highlights(self) -> list[tuple[str, int]]:
        """Best, median and worst case as (word, index); fewer where there are fewer cases."""
        order = self.errors.ranking()
        if len(order) < 2:
            return [("Only", m) for m in order]
        picks = [("Best", order[0]), ("Median", order[(len(order) - 1) // 2]), ("Worst", order[-1])]
        return [picks[0], picks[2]] if len(order) == 2 else picks

    def summary(self) -> dict[str, Any]:
        """``summary.json``: the figures, what they were measured on, and what stands beside them."""
        _, *beside = self.comparisons.items()  # the model itself stands at the top level
        return {
            "schema": 1,
            "model": self.model,
            "manifest": self.manifest,
            "split": self.split,
            "truth": self.truth,
            "cases": len(self.errors.cases),
            "landmarks": len(self.errors.names),
            **vars(self.overall),
            "seconds_per_case": self.median_of("seconds"),
            "align_seconds_per_case": self.median_of("align_seconds"),
            "peak_memory_gb": self.predictions.peak_gb,
            "comparisons": {name: dict(vars(s)) for name, s in beside},
            "notes": list(self.notes),
            "review": self.review(),
            "tables": {title: [dict(row) for row in rows] for title, rows in self.tables.items()},
            "per_landmark": self.landmark_rows(),
            "per_case": self.case_rows(),
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
