"""Validation during training: a method's error in mm on cases that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anatomark.cases.store import CaseStore
from anatomark.core.landmarks import Landmarks
from anatomark.methods.base import Method
from anatomark.model.compose import framed
from anatomark.model.residuals import Residuals


@dataclass(frozen=True)
class Validation:
    """Validation cases: images as read, under the key ``image`` of a store, and their true landmarks."""

    store: CaseStore
    independent: bool

    def __len__(self) -> int:
        return len(self.store)

    def chosen(self, most: int) -> list[int]:
        """At most ``most`` cases, evenly spread."""
        n = len(self.store)
        return sorted(set(np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist())) if n else []

    def run(self, method: Method, most: int) -> Residuals:
        """Locate in at most ``most`` cases with the method as it is; leaves it in eval mode."""
        method.eval()
        which = self.chosen(most)
        predictions = []
        with torch.no_grad():
            for i in which:
                predictions.append(method.locate(framed(self.store.images(i))))
        ids, truths = self.store.ids, self.store.landmarks
        return Residuals(tuple(ids[i] for i in which), tuple(predictions), tuple(truths[i] for i in which))


def to_plain(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence as tensors and strings, for a checkpoint."""
    if not evidence:
        return {}
    out = {"stage": evidence["stage"], "independent": evidence["independent"]}
    for key in ("predictions", "truth"):
        out[key] = {case: _plain_landmarks(x) for case, x in evidence[key].items()}
    return out


def from_plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`to_plain`."""
    out = dict(data)
    for key in ("predictions", "truth"):
        if key in data:
            out[key] = {case: _landmarks(x) for case, x in data[key].items()}
    return out


def _plain_landmarks(x: Landmarks) -> dict[str, Any]:
    arrays = {"points": x.points, "score": x.score, "covariance": x.covariance, "radius90": x.radius90}
    out: dict[str, Any] = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items() if v is not None}
    return {**out, "names": list(x.names), "status": [str(s) for s in x.status]}


def _landmarks(data: Mapping[str, Any]) -> Landmarks:
    values: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else tuple(v) for k, v in data.items()}
    return Landmarks(**values)
