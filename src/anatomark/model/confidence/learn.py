"""Trust: what a finished run remembers of its training images, and whether a prediction deserves a second look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from anatomark.cases.division import Division, Source
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.atomic import write_bytes
from anatomark.methods.base import Plan
from anatomark.model.compose import ALIGN
from anatomark.model.confidence.presence import with_absent
from anatomark.model.confidence.review import Reference, Usual, absent_names, reasons, shortened
from anatomark.model.residuals import Residuals
from anatomark.progress import Reporter

REFERENCE = "reference.safetensors"
MOST = 60  # cases that are looked at, of the training cases and of the independent ones


@dataclass(frozen=True)
class Judgement:
    """``suspicion``: the most unusual measure in robust standard deviations; ``limit``: above it a case is flagged;
    ``reasons``: one line each, the worst first; empty where nothing is unusual."""

    suspicion: float
    limit: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Trust:
    """What training looked like and what is usual."""

    reference: Reference
    usual: Usual

    def judge(self, image: Image, found: Landmarks) -> Judgement:
        """A prediction, its absent landmarks marked, in its image."""
        seen = self.reference.look(image, found)
        if seen is None:
            gone = shortened(absent_names(found))
            few = f"only {int(found.defined.sum())} of {len(found)} landmarks are in the image"
            why = f"{few}; absent: {gone}" if gone else few
            return Judgement(float("inf"), self.usual.limit, (why,))
        values = self.reference.likeness(seen)
        lines = reasons(self.usual, self.reference, values, seen)
        return Judgement(self.usual.suspicion(values), self.usual.limit, tuple(lines))


def learn_trust(
    plan: Plan,
    division: Division,
    independent: Residuals | None,
    presence: Mapping[str, Any] | None,
    report: Reporter,
) -> Trust | None:
    """From a division's training cases at their true landmarks, and predictions in ``independent`` cases of it;
    ``presence``: the frozen threshold of absence. None with fewer than three training cases or two landmarks."""
    chosen = _chosen(division.train)
    if len(chosen) < 3 or len(plan.names) < 2:
        return None
    shapes = np.stack([s.landmarks.points for s in chosen])
    reference, others = Reference.of_shapes(chosen[0].landmarks.names, shapes, known_turns(plan))
    # what is measured of a training case is measured without it
    without = {s.id: replace(reference, shapes=o) for s, o in zip(chosen, others, strict=True)}
    held = [] if independent is None else [independent.cases[i] for i in _spread(len(independent.cases))]
    looks = {}
    with report.bar("what is usual", len(chosen) + len(held)) as bar:
        for source in chosen:
            look = without[source.id].look(source.image(), source.landmarks)
            looks.update({source.id: look} if look is not None else {})
            bar.update(len(looks), source.id)
        if not looks:
            return None
        reference = reference.with_pictures(list(looks.values()))
        known = [reference.likeness(look, own=look) for look in looks.values()]
        unseen = []
        sources = {s.id: s for s in (*division.train, *division.val)}
        for k, case in enumerate(held):
            assert independent is not None
            image = sources[case].image()
            found = independent.predictions[independent.cases.index(case)]
            found = with_absent(found, image.grid, {"presence": presence})
            look = without.get(case, reference).look(image, found)
            if look is not None:
                unseen.append(reference.likeness(look, own=looks.get(case)))
            bar.update(len(looks) + k + 1, case)
    usual = Usual.learned(known, unseen)
    return None if usual is None else Trust(reference, usual)


def known_turns(plan: Plan) -> float:
    """Degrees from the training cases' usual pose within which a model was trained to find the anatomy, or its
    alignment finds it."""
    facts = plan.facts.get(ALIGN) or plan.facts
    return float(facts.get("rotations_deg") or 0.0)


def described_trust(trust: Trust | None) -> str:
    """One line for the console and the card."""
    if trust is None:
        return "review flag: too few training cases or landmarks to say what is usual"
    usual = trust.usual
    cases = f"{usual.cases} training cases and {usual.independent} independent ones"
    return f"review flag: above {usual.limit:.1f} robust standard deviations of what is usual, learned from {cases}"


def write_reference(folder: Path, trust: Trust) -> None:
    """Write ``reference.safetensors``. Raises InputError where the disk refuses."""
    write_bytes(folder / REFERENCE, save_tensors(trust.reference.to_tensors()))


def read_trust(folder: Path, names: Sequence[str], calibration: Mapping[str, Any]) -> tuple[Trust | None, bytes]:
    """What a run folder holds, and the bytes of it; None where it was made without. Raises InputError."""
    path, facts = folder / REFERENCE, calibration.get("trust")
    if facts is None or not path.exists():
        return None, b""
    try:
        data = path.read_bytes()
        tensors: dict[str, torch.Tensor] = load_tensors(data)
        return Trust(Reference.from_tensors(names, tensors), Usual.from_json(facts)), data
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: does not fit plan.json and calibration.json: {error}") from None


def _chosen(cases: Sequence[Source]) -> list[Source]:
    """Evenly spread cases, and some of each landmark that is defined in none of these."""
    at = set(_spread(len(cases)))
    known = np.stack([s.landmarks.defined for s in cases])
    for k in np.flatnonzero(~known[sorted(at)].any(0)):
        at.update(np.flatnonzero(known[:, k])[:3].tolist())
    return [cases[i] for i in sorted(at)]


def _spread(count: int) -> list[int]:
    """At most :data:`MOST` of ``count`` cases, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(count, MOST)).round().astype(int).tolist())) if count else []
