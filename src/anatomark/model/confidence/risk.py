"""What errors go with: a case's error as its measures foretell it, learned from cases that no weight was fitted to.

A case that looks odd need not be wrong, and a wrong one need not look odd. Which measures go with errors differs
between methods and data, so their weights are learned: least squares of the logarithm of a case's mean error on its
measures, none of which may speak for a smaller error (Lawson and Hanson 1974), drawn towards zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anatomark.core.grid import Array

FEWEST = 20  # cases: fewer teach no weights
RIDGE = 4.0  # cases' worth of doubt that a measure says anything
CLIP = 6.0  # robust standard deviations: what lies farther off says no more
WORST = 0.9  # quantile of the errors from which on a case is one that should be found
FALSE = 0.05  # share of the others that may be flagged
SWEEPS = 200


@dataclass(frozen=True)
class Risk:
    """``weights`` of the measures, in logarithms of the error to a robust standard deviation, from ``offset`` on;
    ``limit``: above it a case is flagged."""

    weights: dict[str, float]
    offset: float
    limit: float

    @classmethod
    def learned(cls, unusual: Sequence[Mapping[str, float]], errors: Array) -> Risk | None:
        """From measures of M cases in robust standard deviations and their mean errors (M,) mm; None where they are too
        few or say nothing of each other."""
        known = np.isfinite(errors) & (errors > 0)
        if known.sum() < FEWEST:
            return None
        measures = sorted({name for case in unusual for name in case})
        x = np.array([[_clipped(case, name) for name in measures] for case in unusual])[known]
        y = np.log(errors[known])
        weights = _fitted(x - x.mean(0), y - y.mean())
        if not weights.any():
            return None
        offset = float(y.mean() - x.mean(0) @ weights)
        good = errors[known] <= np.quantile(errors[known], WORST)
        limit = float(np.quantile((offset + x @ weights)[good], 1 - FALSE, method="higher"))
        return cls({n: float(w) for n, w in zip(measures, weights, strict=True) if w > 0}, offset, limit)

    def of(self, unusual: Mapping[str, float]) -> float:
        """The logarithm of the error, mm, that a case's measures foretell."""
        return self.offset + sum(w * _clipped(unusual, name) for name, w in self.weights.items())

    def leading(self, unusual: Mapping[str, float]) -> list[str]:
        """The measures that raise it, the most first."""
        parts = {name: w * _clipped(unusual, name) for name, w in self.weights.items()}
        return sorted((n for n, p in parts.items() if p > 0), key=lambda n: -parts[n])


def _clipped(unusual: Mapping[str, float], name: str) -> float:
    value = unusual.get(name, 0.0)
    return float(np.clip(value, -CLIP, CLIP)) if np.isfinite(value) else 0.0


def _fitted(x: Array, y: Array) -> Array:
    """(K,) weights, none below zero, of centred measures (M, K) for centred targets (M,): coordinate descent."""
    weights = np.zeros(x.shape[1])
    power, rest = (x**2).sum(0) + RIDGE, y.copy()
    for _ in range(SWEEPS):
        for k in range(len(weights)):
            new = max(0.0, (x[:, k] @ rest + weights[k] * (power[k] - RIDGE)) / power[k])
            rest += x[:, k] * (weights[k] - new)
            weights[k] = new
    return weights
