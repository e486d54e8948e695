"""The review flag: whether a prediction deserves a second look, and why.

What is usual is learned from the training cases (their true landmarks, each measured against a reference that leaves it
out) and, for what concerns the prediction itself, from cases that no weight was fitted to. A case is suspicious by the
error that its measures foretell (``risk.py``), where enough cases taught that; and by its most unusual measure, in
robust standard deviations, where that is beyond all that is usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save as save_tensors

from anatomark.cases.case import Case
from anatomark.cases.division import spread
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, counted, listed
from anatomark.io.atomic import read_bytes, write_bytes
from anatomark.methods.kit.anatomy import AnatomyFacts
from anatomark.model.align.aligner import AlignFacts
from anatomark.model.compose import Plan
from anatomark.model.confidence.presence import with_absent
from anatomark.model.confidence.reference import Measured, Reference
from anatomark.model.confidence.risk import Risk
from anatomark.model.residuals import Residuals
from anatomark.model.tensors import read_tensors
from anatomark.progress import Reporter

REFERENCE = "reference.safetensors"
LARGEST = 1e6  # of its numbers, mm and counts
MOST = 60  # cases that are measured, of the training cases and of the independent ones
OF_PREDICTIONS = ("spread", "score", "weakest")  # measures that true landmarks do not have
LIMIT = 0.95  # share of usual cases that may not be flagged
LEAST_LIMIT = 4.0  # robust standard deviations
HARDLY = 0.2  # a score that says that a landmark was hardly found, whatever is usual
FEW, MARGIN = 20, 1.25  # below so many cases the limit lies so much above the worst of them

# the least that counts as one standard deviation
FLOORS = {
    "shape": 0.10, "size": 0.04, "turn": 1.5, "cut off": 0.01, "absent": 0.02, "whole": 0.05, "detail": 0.04,
    "noise": 0.12, "spread": 0.12, "score": 0.03, "weakest": 0.05,
}  # fmt: skip


@dataclass(frozen=True)
class Usual:
    """What each measure usually is, and from where on a case is suspicious: ``middle`` and ``scale`` by measure,
    ``limit`` in robust standard deviations; ``cases`` and ``independent`` ones it was learned from; ``risk``: what
    errors go with, where the independent ones were enough to tell."""

    middle: dict[str, float]
    scale: dict[str, float]
    limit: float
    cases: int
    independent: int
    risk: Risk | None = None

    @classmethod
    def learned(
        cls,
        true: Sequence[Mapping[str, float]],
        predicted: Sequence[Mapping[str, float]],
        errors: Sequence[float] | None = None,
    ) -> Usual | None:
        """From measures of training cases at their ``true`` landmarks and of ``predicted`` ones in cases that no weight
        was fitted to, with the mean ``errors`` there, mm; None without any. What only predictions have is learned from
        these alone."""
        middle, scale = {}, {}
        both = [*true, *predicted]
        for name, floor in FLOORS.items():
            cases = predicted if name in OF_PREDICTIONS else both
            x = np.array([v[name] for v in cases if np.isfinite(v.get(name, np.nan))])
            if not len(x):
                continue
            m = float(np.median(x))
            spread = 1.4826 * float(np.median(np.abs(x - m)))
            upper = (float(np.quantile(x, 0.9)) - m) / 1.28
            middle[name], scale[name] = m, max(_uncertain(len(x)) * max(spread, upper), floor)
        if not middle:
            return None
        usual = cls(middle, scale, float("inf"), len(true), len(predicted))
        worst = np.sort([usual.oddness(v) for v in (predicted if len(predicted) >= FEW else both)])
        rank = int(np.ceil((len(worst) + 1) * LIMIT))
        limit = worst[rank - 1] if len(worst) >= FEW and rank <= len(worst) else worst[-1] * MARGIN
        risk = None
        if errors is not None and len(errors) == len(predicted):
            risk = Risk.learned([usual.unusual(v) for v in predicted], np.asarray(errors, dtype=np.float64))
        return cls(middle, scale, max(LEAST_LIMIT, float(limit)), len(true), len(predicted), risk)

    def unusual(self, values: Mapping[str, float]) -> dict[str, float]:
        """Robust standard deviations above the usual, by measure."""
        return {
            n: (values[n] - m) / self.scale[n] for n, m in self.middle.items() if np.isfinite(values.get(n, np.nan))
        }

    def oddness(self, values: Mapping[str, float]) -> float:
        """The largest of them, at least 0."""
        return max([0.0, *self.unusual(values).values()])

    def suspicion(self, values: Mapping[str, float]) -> float:
        """Above ``limit`` where a case should be reviewed. With a ``risk`` it grows as the error that is foretold; how
        odd a case looks counts only where that is beyond all that is usual."""
        odd = self.oddness(values)
        if self.risk is None:
            return odd
        foretold = self.limit * float(np.exp(self.risk.of(self.unusual(values)) - self.risk.limit))
        return max(foretold, odd) if odd > self.limit else foretold

    def to_json(self) -> dict[str, Any]:
        measures = {n: {"middle": round(m, 5), "scale": round(self.scale[n], 5)} for n, m in self.middle.items()}
        facts = {"limit": round(self.limit, 3), "cases": self.cases, "independent": self.independent, "usual": measures}
        if self.risk is None:
            return facts
        weights = {n: round(w, 5) for n, w in self.risk.weights.items()}
        risk = {"weights": weights, "offset": round(self.risk.offset, 5), "limit": round(self.risk.limit, 5)}
        return {**facts, "risk": risk}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Usual:
        usual = data["usual"]
        middle = {n: float(v["middle"]) for n, v in usual.items()}
        scale = {n: float(v["scale"]) for n, v in usual.items()}
        risk = Risk(**data["risk"]) if data.get("risk") else None
        return cls(middle, scale, float(data["limit"]), int(data["cases"]), int(data["independent"]), risk)


def _uncertain(cases: int) -> float:
    """By how much wider than a spread that is known one lies that so few cases tell: Student's interval for a new value
    (97.5 %) over the normal one (Abramowitz and Stegun 26.7.5)."""
    z, freedom = 1.96, max(1, cases - 1)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(t / z * np.sqrt(1 + 1 / cases))


@dataclass(frozen=True)
class Judgement:
    """``suspicion``: the most unusual measure in robust standard deviations; ``limit``: above it a case is flagged;
    ``reasons``: one line each, the worst first; empty where nothing is unusual."""

    suspicion: float
    limit: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """What training cases looked like and what is usual: all that a run needs to judge a prediction."""

    reference: Reference
    usual: Usual

    def judge(self, image: Image, prediction: Landmarks) -> Judgement:
        """A prediction, its absent landmarks marked, in its image."""
        case = self.reference.measure(image, prediction)
        if case is None:
            few = f"only {int(prediction.defined.sum())} of {len(prediction)} landmarks are in the image"
            absent = [n for n, a in zip(prediction.names, prediction.absent, strict=True) if a]
            why = f"{few}; absent: {listed(absent)}" if absent else few
            return Judgement(float("inf"), self.usual.limit, (why,))
        values, limit = self.reference.compare(case), self.usual.limit
        suspicion, reasons = self.usual.suspicion(values), self._reasons(values, case)
        if hardly := self._hardly_found(prediction):
            reasons.append(f"hardly a trace of {listed(hardly)} (score below {HARDLY:g})")
            suspicion = max(suspicion, limit * (1 + len(hardly) / len(prediction)))
        return Judgement(suspicion, limit, tuple(reasons))

    def _hardly_found(self, prediction: Landmarks) -> list[str]:
        """Landmarks of a score that is low anywhere, where no independent case taught what scores are usual."""
        if prediction.score is None or "score" in self.usual.middle:
            return []
        low = prediction.defined & (prediction.score < HARDLY)
        return [n for n, hardly in zip(prediction.names, low, strict=True) if hardly]

    def _reasons(self, values: Mapping[str, float], case: Measured) -> list[str]:
        """One line for each measure above the limit, the worst first."""
        v, m, turns = values, self.usual.middle, self.reference.turns_deg
        worst = [self.reference.names[k] for k in np.argsort(-np.nan_to_num(case.residual, nan=-1.0))[:3]]
        lines = {
            "shape": lambda: f"implausible shape, most of all {', '.join(worst)}",
            "size": lambda: f"of unusual size, {np.exp(v['size']):.2f} times larger or smaller than usual",
            "turn": lambda: f"turned by {v['turn'] + turns:.0f} degrees, usual are {m['turn'] + turns:.0f}",
            "cut off": lambda: f"{v['cut off']:.0%} of the landmarks would lie outside the image",
            "absent": lambda: f"{v['absent']:.0%} of the landmarks are absent: {listed(case.absent)}",
            "whole": lambda: f"unlike the training images (likeness {1 - v['whole']:.2f}, usual {1 - m['whole']:.2f})",
            "detail": lambda: (
                f"surroundings of the landmarks unlike those in training (likeness {1 - v['detail']:.2f}, "
                f"usual {1 - m['detail']:.2f})"
            ),
            "noise": lambda: f"noisier than the training images, {np.exp(v['noise'] - m['noise']):.1f} times",
            "spread": lambda: f"votes or starts spread {np.exp(v['spread'] - m['spread']):.1f} times as wide as usual",
            "score": lambda: f"low scores, {1 - v['score']:.2f} on average, usual {1 - m['score']:.2f}",
            "weakest": lambda: f"a tenth of the scores below {1 - v['weakest']:.2f}, usual {1 - m['weakest']:.2f}",
        }
        away, risk = self.usual.unusual(values), self.usual.risk
        odd = [n for n in sorted(away, key=lambda n: -away[n]) if away[n] > self.usual.limit]
        if risk is not None and risk.of(away) > risk.limit:
            odd += [n for n in risk.leading(away)[:2] if n not in odd]
        return [lines[n]() for n in odd]


def described_review(review: Review | None) -> str:
    """What was learned of the usual, in words."""
    if review is None:
        return "review flag: too few training cases or landmarks to say what is usual"
    usual = review.usual
    cases = f"{counted(usual.cases, 'training case')} and {counted(usual.independent, 'independent one')}"
    line = f"review flag: above {usual.limit:.1f} robust standard deviations of what is usual, learned from {cases}"
    if usual.risk is None:
        return line
    measures = listed(sorted(usual.risk.weights, key=lambda n: -usual.risk.weights[n]))  # type: ignore[union-attr]
    return f"{line}; and where {measures} foretell an error above {np.exp(usual.risk.limit):.3g} mm"


# ---------------------------------------------------------------------- learning what is usual


def learn_review(
    plan: Plan,
    train: Sequence[Case],
    val: Sequence[Case],
    independent: Residuals | None,
    presence: Mapping[str, Any] | None,
    report: Reporter,
) -> Review | None:
    """From training cases at their true landmarks, and predictions in ``independent`` cases, which are among ``train``
    and ``val``; ``presence``: the frozen threshold of absence. None with fewer than three training cases or two
    landmarks."""
    chosen = _chosen(train)
    if len(chosen) < 3 or len(plan.names) < 2:
        return None
    shapes = np.stack([c.landmarks.points for c in chosen])
    reference, others = Reference.of_shapes(chosen[0].landmarks.names, shapes, known_turns(plan))
    # what is measured of a training case is measured without it
    without = {c.id: other for c, other in zip(chosen, others, strict=True)}
    predictions = {} if independent is None else dict(zip(independent.cases, independent.predictions, strict=True))
    by_case = {} if independent is None else dict(zip(independent.cases, independent.errors, strict=True))
    held = [list(predictions)[i] for i in spread(len(predictions), MOST)]
    own: dict[str, Measured] = {}
    with report.bar("what is usual", len(chosen) + len(held)) as bar:
        for case in chosen:
            measured = without[case.id].measure(case.image(), case.landmarks)
            own.update({case.id: measured} if measured is not None else {})
            bar.update(len(own), case.id)
        if not own:
            return None
        reference = reference.with_pictures(list(own.values()))
        true = [reference.compare(measured, own=measured) for measured in own.values()]
        predicted, errors = [], []
        cases = {c.id: c for c in (*train, *val)}
        for k, id in enumerate(held):
            image = cases[id].image()
            prediction = with_absent(predictions[id], image.grid, {"presence": presence})
            measured = without.get(id, reference).measure(image, prediction)
            if measured is not None:
                predicted.append(reference.compare(measured, own=own.get(id)))
                errors.append(float(np.nanmean(away)) if np.isfinite(away := by_case[id]).any() else float("nan"))
            bar.update(len(own) + k + 1, id)
    usual = Usual.learned(true, predicted, errors)
    return None if usual is None else Review(reference, usual)


def known_turns(plan: Plan) -> float:
    """Degrees from the training cases' usual pose within which a model was trained to find the anatomy, or its
    alignment finds it."""
    facts = plan.align or plan.method
    return facts.rotations_deg if isinstance(facts, AlignFacts | AnatomyFacts) else 0.0


def _chosen(cases: Sequence[Case]) -> list[Case]:
    """Evenly spread cases, and some of each landmark that is defined in none of these."""
    at = set(spread(len(cases), MOST))
    defined = np.stack([c.landmarks.defined for c in cases])
    for k in np.flatnonzero(~defined[sorted(at)].any(0)):
        at.update(np.flatnonzero(defined[:, k])[:3].tolist())
    return [cases[i] for i in sorted(at)]


# ---------------------------------------------------------------------- in the run folder


def write_reference(folder: Path, review: Review) -> None:
    """Write ``reference.safetensors``. Raises InputError where the disk refuses."""
    write_bytes(folder / REFERENCE, save_tensors(review.reference.to_tensors()))


def read_review(
    folder: Path, names: Sequence[str], ndim: int, calibration: Mapping[str, Any]
) -> tuple[Review | None, bytes]:
    """What a run folder holds for landmarks ``names`` in ``ndim`` dimensions and a checked ``calibration``, and the
    bytes of its reference; None where it was made without. Raises InputError."""
    path, facts = folder / REFERENCE, calibration.get("trust")
    if facts is None:
        return None, b""
    if not path.exists():
        raise InputError(f"{folder}: has no {REFERENCE}, to which `trust` in calibration.json belongs")
    data = read_bytes(path)
    tensors = read_tensors(path, data, LARGEST)
    try:
        return Review(Reference.from_tensors(names, tensors, ndim), Usual.from_json(facts)), data
    except ValueError as error:
        raise InputError(f"{path}: does not fit plan.json: {error}") from None
