"""Several models as one: which they are, and the average of their answers."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.model.confidence.radius import sigma_of
from anatomark.model.model import Model, Spacing, fitting
from anatomark.model.prediction import Prediction
from anatomark.model.run_folder import WEIGHTS, list_zoo

JOINT = "+"
NARROWEST = 1 / 3  # of the members' median radius: below it certainty counts no further
FAR = 4.0  # without radii: median distances from the median point beyond which a member is left out


# ---------------------------------------------------------------------- which models


def member_paths(model: str | os.PathLike[str]) -> list[str]:
    """The run folders and zoo names that ``model`` names: itself; the parts of ``A+B+C``; the run folders within a
    folder that is none itself, such as ``RUN/folds``. What exists under the whole name comes first. Raises InputError
    for an empty part."""
    text = os.fspath(model)
    pieces, out, at = text.split(JOINT), [], 0
    while at < len(pieces):
        ends = range(len(pieces), at, -1)
        end = next((e for e in ends if _exists(JOINT.join(pieces[at:e]))), at + 1)
        part = JOINT.join(pieces[at:end])
        if not part:  # as a path it would be the working directory
            raise InputError(f"model {text!r}: a part is empty; join run folders or zoo names as A{JOINT}B")
        out += _within(part) or [part]
        at = end
    return out


def is_ensemble(model: str | os.PathLike[str]) -> bool:
    """Whether ``model`` names models by their list or the folder they lie in, be it only one, and is none itself."""
    return not Path(model).is_file() and member_paths(model) != [os.fspath(model)]


def _exists(part: str) -> bool:
    return Path(part).is_dir() or part in list_zoo()


def _within(part: str) -> list[str]:
    """The run folders directly in a folder that is none itself, in the order of their numbers or names."""
    folder = Path(part)
    if not folder.is_dir() or any((folder / name).exists() for name in ("config.yaml", "plan.json", WEIGHTS)):
        return []
    inside = [p for p in folder.iterdir() if (p / "plan.json").exists()]
    return [str(p) for p in sorted(inside, key=lambda p: (not p.name.isdigit(), len(p.name), p.name))]


# ---------------------------------------------------------------------- averaging


def combine(answers: Sequence[Landmarks], names: Sequence[str]) -> tuple[Landmarks, dict[str, list[int]]]:
    """The average of several answers for one image, landmark by landmark, in the order of ``names``; and by landmark
    the numbers of the answers that were left out.

    - A landmark is absent where more answers call it absent than place it.
    - Weights are inverse squares of the answers' 90 % radii where all have one, else of the root mean variances of
      their covariances, else equal; a radius below a third of their median counts as that.
    - Of three or more answers one is left out that lies farther from their median point (each coordinate's) than its
      own radius, or, without radii, than four median distances; a minority only.
    - covariance: the weighted mean of the answers' own and of their scatter about the average.
    - radius90: root of the weighted mean of radius^2 + distance^2 to the average, so never below the weighted mean of
      the radii: agreement makes no radius smaller, because it was not measured that it may.
    - score: weighted mean; where the landmark is absent, plain mean.
    """
    picked = [one.select(names) for one in answers]
    n, d = len(names), picked[0].ndim
    points = np.stack([p.points for p in picked])  # (M, N, D)
    placed = np.stack([p.defined for p in picked])
    absent = np.stack([p.absent for p in picked])
    radius = np.stack([np.full(n, np.nan) if p.radius90 is None else p.radius90 for p in picked])
    sigma = np.stack([sigma_of(p.covariance, n) for p in picked])
    scores = np.stack([np.full(n, np.nan) if p.score is None else p.score for p in picked])
    own = np.stack([np.full((n, d, d), np.nan) if p.covariance is None else p.covariance for p in picked])
    status, left_out = [], {}
    out, score, width = np.full((n, d), np.nan), np.full(n, np.nan), np.full(n, np.nan)
    covariance = np.full((n, d, d), np.nan)
    for k, name in enumerate(names):
        here = np.flatnonzero(placed[:, k])
        if len(here) == 0 or absent[:, k].sum() > len(here):
            anyone = absent[:, k].any()
            status.append(Status.ABSENT if anyone else Status.UNANNOTATED)
            score[k] = _mean(scores[absent[:, k] if anyone else slice(None), k])
            continue
        status.append(Status.DEFINED)
        stays = kept(points[here, k], radius[here, k])
        if not stays.all():
            left_out[name] = here[~stays].tolist()
        here = here[stays]
        w = weights(radius[here, k], sigma[here, k])
        out[k] = w @ points[here, k]
        apart = points[here, k] - out[k]
        covariance[k] = _mean(own[here, k], w) + np.einsum("m,mi,mj->ij", w, apart, apart)
        width[k] = np.sqrt(w @ (radius[here, k] ** 2 + (apart**2).sum(1)))
        score[k] = _mean(scores[here, k], w)
    averaged = replace(
        picked[0],
        points=out,
        status=tuple(status),
        score=_known(score),
        covariance=_known(covariance),
        radius90=_known(width),
        descriptions=next((p.descriptions for p in picked if any(p.descriptions)), picked[0].descriptions),
        meta={},
    )
    return averaged, left_out


def weights(radius: Array, sigma: Array) -> Array:
    """(M,) shares, summing to 1, of answers with these 90 % radii and root mean variances, mm; see :func:`combine`."""
    for spread in (radius, sigma):
        if np.isfinite(spread).all() and np.median(spread) > 0:
            w = 1 / np.maximum(spread, NARROWEST * np.median(spread)) ** 2
            return np.asarray(w / w.sum())
    return np.full(len(radius), 1 / len(radius))


def kept(points: Array, radius: Array) -> NDArray[np.bool_]:
    """(M,) which of the points (M, D) are not far from the others; see :func:`combine`."""
    if len(points) < 3:
        return np.ones(len(points), dtype=bool)
    away = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    known = bool(np.isfinite(radius).all())
    stays = np.asarray(away <= (radius if known else FAR * np.median(away) + 1e-9))
    return stays if 2 * stays.sum() > len(points) else np.ones(len(points), dtype=bool)


def _mean(values: Array, w: Array | None = None) -> Any:
    """Weighted mean along the first axis over the rows that are known; NaN where none is."""
    good = np.isfinite(values.reshape(len(values), -1)).all(1)
    if not good.any():
        return np.full(values.shape[1:], np.nan)
    return np.average(values[good], axis=0, weights=None if w is None else w[good])


def _known(values: Array) -> Array | None:
    return values if np.isfinite(values).any() else None


# ---------------------------------------------------------------------- models


class Ensemble:
    """Several models as one, with the attributes of ``Model``. ``names`` in the first member's order; ``cost``: how
    many predictions one takes. Raises InputError where the members differ in dimension or landmarks."""

    def __init__(self, members: Sequence[Model]):
        first, self.members = members[0], tuple(members)
        for other in members[1:]:
            _check_alike(first, other)
        self.names, self.ndim, self.modality = first.names, first.ndim, first.modality
        self.intensity = first.intensity
        self.name = JOINT.join(_distinct(members))
        self.hash = hash_of("ensemble 1", *(m.hash for m in members))
        self.calibration = {"members": [m.calibration for m in members]}
        self.cost = sum(m.cost for m in members)
        self.learned = frozenset[str]().union(*(m.learned for m in members))
        self.chosen = frozenset[str]().union(*(m.chosen for m in members))

    @property
    def licence(self) -> str:
        """What the weights may be used for, of every member that says so."""
        said = {m.licence: m.name for m in reversed(self.members) if m.licence}
        return "; ".join(f"{name}: {text}" if len(said) > 1 else text for text, name in reversed(said.items()))

    def predict(self, image: Image | str | os.PathLike[str], spacing: Spacing = None) -> Prediction:
        """As ``Model.predict``: the average of the members' landmarks (:func:`combine`); ``flags`` of all with the
        number of members that raise them, ``suspicion`` the members' median on the first one's scale. Raises
        InputError."""
        image = fitting(image, spacing, self.ndim, self.name)
        predictions = [m.predict(image) for m in self.members]
        landmarks, left_out = combine([p.landmarks for p in predictions], self.names)
        called, count = _distinct(self.members), len(predictions)
        raised = Counter(flag for p in predictions for flag in dict.fromkeys(p.flags))
        suspicion, limit = _suspicion(predictions)
        return Prediction(
            landmarks,
            tuple(f"{flag} ({n} of {count} models)" for flag, n in raised.items()),
            suspicion,
            limit,
            align_seconds=summed_align_seconds(predictions),
            members=tuple(called),
            left_out={n: [called[i] for i in rows] for n, rows in left_out.items()},
            unproven=next((p.unproven for p in predictions if p.unproven), ""),
        )


def _check_alike(first: Model, other: Model) -> None:
    pair = f"{first.run.folder} and {other.run.folder}"
    if first.ndim != other.ndim:
        raise InputError(f"{pair}: cannot be averaged, one is for {first.ndim}D images and one for {other.ndim}D")
    for a, b in ((first, other), (other, first)):
        alone = [n for n in a.names if n not in b.names]
        if alone:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            shown = ", ".join(map(repr, alone[:3]))
            raise InputError(f"{pair}: cannot be averaged, only {a.run.folder} finds {shown}{more}")


def _distinct(members: Sequence[Model]) -> list[str]:
    """The members' names; with the folder above where two have the same."""
    names = [m.name for m in members]
    twice = len(set(names)) < len(names)
    return (
        [f"{m.run.folder.resolve().parent.name}/{n}" for m, n in zip(members, names, strict=True)] if twice else names
    )


def summed_align_seconds(predictions: Sequence[Prediction]) -> float | None:
    """What the alignments took together; None where nothing was aligned."""
    spent = [p.align_seconds for p in predictions if p.align_seconds is not None]
    return float(sum(spent)) if spent else None


def _suspicion(predictions: Sequence[Prediction]) -> tuple[float | None, float | None]:
    """The median of the members' suspicions in their limits, times the first one's, and that; None unless all have
    one."""
    shares = [p.suspicion / p.suspicion_limit for p in predictions if p.suspicion is not None and p.suspicion_limit]
    limit = predictions[0].suspicion_limit
    if limit is None or len(shares) < len(predictions):
        return None, None
    return float(np.median(shares)) * limit, limit


def hash_of(*parts: str) -> str:
    """A short hash of what a model is made of."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
