"""How well two sets of landmarks of the same cases agree in what is measured: a model and the truth, two observers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.tools.measure.measured import Measured, number

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Agreement:
    """One measurement of two sides, over the cases. Differences are predicted minus truth, in ``unit``.

    ``n`` cases measured on both sides; ``missing``: the truth's value is there and the predicted one is not.
    ``mean_absolute``, ``bias`` (mean), ``sd`` of the differences; ``loa_low``, ``loa_high``: limits of agreement, bias
    +- 1.96 sd (Bland and Altman 1986). ``coverage90``: the share of the ``with_interval`` cases whose 90 % interval
    holds the true value. ``confusion``: cases by (class of the truth, class predicted).
    ``success``: the share of classified cases that get the truth's class; ``success_by_class``: the mean over the
    truth's classes of their own share (the averaged diagonal of the confusion). A missing measurement is a failure.
    None where nothing supports a figure.
    """

    measurement: str
    unit: str
    n: int
    missing: int
    mean_absolute: float | None
    bias: float | None
    sd: float | None
    loa_low: float | None
    loa_high: float | None
    with_interval: int
    coverage90: float | None
    classified: int
    success: float | None
    success_by_class: float | None
    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """All but the confusion, in the order of the table's columns."""
        return {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "confusion"}


def compare(predicted: Measured, truth: Measured) -> list[Agreement]:
    """By measurement, how two agree, measured of the same cases in the same order.
    Raises ValueError for other cases or measurements."""
    if predicted.cases != truth.cases or predicted.names != truth.names:
        raise ValueError("the two sides hold other cases or measurements")
    low, high = predicted.interval90
    classes = predicted.classes(), truth.classes()
    out = []
    for k, name in enumerate(truth.names):
        here = np.isfinite(truth.values[:, k])
        both = here & np.isfinite(predicted.values[:, k])
        with_sd = both & np.isfinite(predicted.sd[:, k])
        inside = (low[:, k] <= truth.values[:, k]) & (truth.values[:, k] <= high[:, k])
        pairs = [(t[k], f[k]) for f, t in zip(*classes, strict=True)]
        out.append(
            Agreement(
                measurement=name,
                unit=truth.definition.unit(name),
                n=int(both.sum()),
                missing=int((here & ~both).sum()),
                **_differences((predicted.values - truth.values)[both, k]),
                with_interval=int(with_sd.sum()),
                coverage90=number(inside[with_sd].mean()) if with_sd.any() else None,
                **_classified(pairs),
            )
        )
    return out


def _differences(d: Array) -> dict[str, Any]:
    bias = float(d.mean()) if len(d) else np.nan
    sd = float(d.std(ddof=1)) if len(d) > 1 else np.nan
    figures = {"mean_absolute": np.abs(d).mean() if len(d) else np.nan, "bias": bias, "sd": sd}
    figures |= {"loa_low": bias - 1.96 * sd, "loa_high": bias + 1.96 * sd}
    return {k: number(v) for k, v in figures.items()}


def _classified(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Success of (truth, predicted) classes; a truth without a class counts nowhere."""
    counts: dict[tuple[str, str], int] = {}
    for of, got in pairs:
        if of:
            key = (of, got or NOT_MEASURED)
            counts[key] = counts.get(key, 0) + 1
    total = {of: sum(n for (t, _), n in counts.items() if t == of) for of, _ in counts}
    right = {of: counts.get((of, of), 0) for of in total}
    n = sum(total.values())
    return {
        "classified": n,
        "success": number(sum(right.values()) / n) if n else None,
        "success_by_class": number(float(np.mean([right[t] / total[t] for t in total]))) if n else None,
        "confusion": dict(sorted(counts.items())),
    }
