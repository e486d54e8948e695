"""All that an evaluation found, as one value, and the tables that are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.evaluation.metrics import THRESHOLDS_MM, Errors, Outcome, Statistics, statistics
from anatomark.model.confidence.radius import area_under_roc


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Errors of one model, or of a folder of predictions, on one split of a manifest, and what to hold them against.

    ``model``, ``manifest``, ``split``, ``truth`` (which observer): names, shown in every table. ``baselines``: errors
    of the training mean on the same cases. ``observers``: distances between observers, by pair. ``against``: this model
    measured against the other observers and their mean. ``seconds`` per case, without reading the file;
    ``align_seconds``: the part of them that the alignment took, of cases that were aligned. ``peak_gb``: largest
    resident memory of the process, None where it was not measured. ``flags``: reasons given by case; ``suspicion``: how
    unusual each was found, where the model says so. ``notes``: lines that a reader must see, such as labels that were
    not scored. ``tables``: further ones by title, rows of one shape.
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
    seconds: Mapping[str, float] = field(default_factory=dict)
    align_seconds: Mapping[str, float] = field(default_factory=dict)
    peak_gb: float | None = None
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    suspicion: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @cached_property
    def overall(self) -> Statistics:
        return statistics(self.errors, thresholds=self.thresholds)

    @cached_property
    def per_landmark(self) -> dict[str, Statistics]:
        return {n: statistics(self.errors, [n], thresholds=self.thresholds) for n in self.errors.names}

    @property
    def seconds_per_case(self) -> float | None:
        """Median over the cases; None where nothing was timed."""
        return float(np.median(list(self.seconds.values()))) if self.seconds else None

    @property
    def align_seconds_per_case(self) -> float | None:
        """Median over the cases that were aligned; None where none was."""
        return float(np.median(list(self.align_seconds.values()))) if self.align_seconds else None

    def comparisons(self) -> dict[str, Statistics]:
        """Figures of the model and of everything beside it, by name of the row."""
        own = f"{self.model} (truth: {self.truth})" if self.against else self.model
        rows = {own: self.overall}
        for kind, group in (("", self.baselines), ("observers: ", self.observers)):
            rows |= {kind + name: statistics(e, thresholds=self.thresholds) for name, e in group.items()}
        rows |= {
            f"{self.model} (truth: {name})": statistics(e, thresholds=self.thresholds)
            for name, e in self.against.items()
        }
        return rows

    def error_rows(self) -> list[dict[str, Any]]:
        """``errors.csv``: one row per case and landmark, the prediction minus the truth along each axis."""
        rows = self.errors.rows()
        return [{"case": r["case"], "label": r["label"], "truth": self.truth, **r} for r in rows]

    def landmark_rows(self) -> list[dict[str, Any]]:
        """``per_landmark.csv``: one row per landmark."""
        mean = next(iter(self.baselines.values()), None)
        between = next(iter(self.observers.values()), None)
        rows = []
        for n, (name, s) in enumerate(self.per_landmark.items()):
            low, high = s.mre_ci95 or (None, None)
            rows.append(
                {
                    "label": name,
                    "description": self.descriptions.get(name, ""),
                    "truth": self.truth,
                    "pairs": s.pairs,
                    "failures": s.failures,
                    "absent": s.absent,
                    "false_presences": s.false_presences,
                    "false_absences": s.false_absences,
                    "absence_recall": s.absence_recall,
                    "absence_precision": s.absence_precision,
                    "mre_mm": s.mre,
                    "ci_low_mm": low,
                    "ci_high_mm": high,
                    "sd_mm": s.sd,
                    "median_mm": s.median,
                    "p95_mm": s.p95,
                    "max_mm": s.largest,
                    **{f"sdr_{t:g}": s.sdr.get(t) for t in map(float, self.thresholds)},
                    "radius90_mm": _mean(self.errors.radius90[:, n]),
                    "covered90": s.covered90,
                    "score": _mean(self.errors.score[:, n]),
                    "mean_position_mm": None if mean is None else _mean(mean.error[:, n]),
                    "observers_mm": None if between is None else _mean(between.error[:, n]),
                }
            )
        return rows

    def case_rows(self) -> list[dict[str, Any]]:
        """``per_case.csv``: one row per case."""
        error, means, count = self.errors.error, self.errors.case_error, self.errors.count
        rows = []
        for m, case in enumerate(self.errors.cases):
            located = error[m][np.isfinite(error[m])]
            rows.append(
                {
                    "case": case,
                    "truth": self.truth,
                    "annotated": int(self.errors.annotated[m].sum()),
                    "failures": self.errors.failures(m),
                    "absent": count(Outcome.ABSENT, case=m) + count(Outcome.FALSE_PRESENCE, case=m),
                    "false_presences": count(Outcome.FALSE_PRESENCE, case=m),
                    "false_absences": count(Outcome.FALSE_ABSENCE, case=m),
                    "error_mm": _mean(means[m : m + 1]),
                    "median_mm": float(np.median(located)) if located.size else None,
                    "max_mm": float(located.max()) if located.size else None,
                    "worst": self.errors.names[int(np.nanargmax(error[m]))] if located.size else "",
                    "radius90_mm": _mean(self.errors.radius90[m]),
                    "seconds": self.seconds.get(case),
                    "suspicion": _finite(self.suspicion.get(case)),
                    "flags": "; ".join(self.flags.get(case, ())),
                }
            )
        return rows

    def review(self) -> dict[str, Any]:
        """How many cases are flagged, and how well suspicion ranks the tenth with the largest errors above the others
        (area under the ROC curve; None for fewer than 20 cases or without suspicions)."""
        out: dict[str, Any] = {"flagged": sum(bool(self.flags.get(c)) for c in self.errors.cases)}
        error = self.errors.case_error
        known = np.array([c in self.suspicion for c in self.errors.cases], dtype=bool) & np.isfinite(error)
        area = float("nan")
        if known.sum() >= 20:
            said = np.array([self.suspicion.get(c, np.nan) for c in self.errors.cases])[known]
            area = area_under_roc(said, error[known] >= np.quantile(error[known], 0.9))
        return {**out, "auroc_worst_decile": _finite(area)}

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
        rows = iter(self.comparisons().items())
        next(rows)  # the model itself stands at the top level
        return {
            "schema": 1,
            "model": self.model,
            "manifest": self.manifest,
            "split": self.split,
            "truth": self.truth,
            "cases": len(self.errors.cases),
            "landmarks": len(self.errors.names),
            **self.overall.to_json(),
            "seconds_per_case": self.seconds_per_case,
            "align_seconds_per_case": self.align_seconds_per_case,
            "peak_memory_gb": self.peak_gb,
            "comparisons": {name: s.to_json() for name, s in rows},
            "notes": list(self.notes),
            "review": self.review(),
            "tables": {title: [dict(row) for row in rows] for title, rows in self.tables.items()},
            "per_landmark": self.landmark_rows(),
            "per_case": self.case_rows(),
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _mean(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
