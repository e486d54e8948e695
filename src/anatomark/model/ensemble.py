"""Several answers as one: the average of several models, or of one model's answers to slightly changed images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import rotation_from_vector
from anatomark.errors import InputError
from anatomark.io.images import read_image
from anatomark.model.align.aligner import Alignment
from anatomark.model.confidence.radius import sigma_of
from anatomark.model.model import Model
from anatomark.model.run_folder import WEIGHTS, list_zoo, load_run

JOINT = "+"
NARROWEST = 1 / 3  # of the members' median radius: below it certainty counts no further
FAR = 4.0  # without radii: median distances from the median point beyond which a member is left out
TURN_DEG, SHIFT, LOG_SCALE, GAMMA = 5.0, 0.02, 0.03, 0.1  # largest changes of a view; SHIFT of the image's extent
_SEED = 77  # the same image gives the same views


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


@dataclass(frozen=True)
class Combined:
    """Averaged landmarks, and by name which answers (their numbers) were left out."""

    landmarks: Landmarks
    left_out: dict[str, list[int]]


def combine(found: Sequence[Landmarks], names: Sequence[str]) -> Combined:
    """The average of several answers for one image, landmark by landmark, in the order of ``names``.

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
    picked = [one.select(names) for one in found]
    n, d = len(names), picked[0].ndim
    points = np.stack([p.points for p in picked])  # (M, N, D)
    placed = np.stack([p.defined for p in picked])
    absent = np.stack([[s is Status.ABSENT for s in p.status] for p in picked])
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
            gone = absent[:, k].any()
            status.append(Status.ABSENT if gone else Status.UNANNOTATED)
            score[k] = _mean(scores[absent[:, k] if gone else slice(None), k])
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
    return Combined(averaged, left_out)


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
    """Several models as one, with the attributes of ``engine.model.Model``. ``names`` in the first member's order;
    ``cost``: how many predictions one takes. Raises InputError where the members differ in dimension or landmarks."""

    def __init__(self, members: Sequence[Model]):
        first, self.members = members[0], tuple(members)
        for other in members[1:]:
            _check_alike(first, other)
        self.names, self.ndim, self.modality = first.names, first.ndim, first.modality
        self.name = JOINT.join(_distinct(members))
        self.hash = _hash("ensemble 1", *(m.hash for m in members))
        self.calibration = {"members": [m.calibration for m in members]}
        self.cost = sum(m.cost for m in members)

    @property
    def licence(self) -> str:
        """What the weights may be used for, of every member that says so."""
        said = {m.licence: m.name for m in reversed(self.members) if m.licence}
        return "; ".join(f"{name}: {text}" if len(said) > 1 else text for text, name in reversed(said.items()))

    def predict(
        self, image: Image | str | os.PathLike[str], spacing: tuple[float, ...] | float | None = None
    ) -> Landmarks:
        """As ``Model.predict``: the average of the members' landmarks (:func:`combine`). ``meta``: ``members``,
        ``left_out`` (landmark to members), ``flags`` of all with the number of members that raise them, ``suspicion``
        the members' median on the first one's scale. Raises InputError."""
        image = image if isinstance(image, Image) else read_image(image, spacing)
        found = [m.predict(image) for m in self.members]
        averaged = combine(found, self.names)
        called = _distinct(self.members)
        left_out = {n: [called[i] for i in rows] for n, rows in averaged.left_out.items()}
        counts = Counter(flag for f in found for flag in dict.fromkeys(f.meta.get("flags", [])))
        flags = [f"{flag} ({n} of {len(found)} models)" for flag, n in counts.items()]
        meta = {"flags": flags, "members": called, "left_out": left_out, **_seconds(found), **_suspicion(found)}
        return replace(averaged.landmarks, meta=meta)

    def flattened(self, image: Image) -> Image:
        """As ``Model.flattened``."""
        return self.members[0].flattened(image)


class Augmented:
    """A model that looks ``views`` times: at the image as it is, then slightly turned, moved, scaled and with another
    contrast; the answers are averaged as an :class:`Ensemble`'s are. No voxel is resampled: only the grid moves."""

    def __init__(self, model: Model | Ensemble, views: int):
        self.model, self.views = model, views
        self.names, self.ndim, self.modality = model.names, model.ndim, model.modality
        self.name, self.calibration, self.licence = model.name, model.calibration, model.licence
        self.hash = _hash("views 1", str(views), model.hash)
        self.cost = views * model.cost

    def predict(
        self, image: Image | str | os.PathLike[str], spacing: tuple[float, ...] | float | None = None
    ) -> Landmarks:
        """As ``Model.predict``. Flags and suspicion are those of the image as it is; ``meta["views"]`` their number,
        ``left_out`` landmark to views. Raises InputError."""
        image = image if isinstance(image, Image) else read_image(image, spacing)
        image = self.model.flattened(image)
        found = [self.model.predict(image)]
        for number in range(1, self.views):
            motion, seen = view(image, number, contrast=self.modality != "ct")
            found.append(motion.from_template(self.model.predict(seen)))
        averaged = combine(found, self.names)
        extra = {"views": self.views, "left_out": averaged.left_out, **_seconds(found)}
        return replace(averaged.landmarks, meta={**found[0].meta, **extra})

    def flattened(self, image: Image) -> Image:
        """As ``Model.flattened``."""
        return self.model.flattened(image)


AnyModel = Model | Ensemble | Augmented


def load_any(model: str | os.PathLike[str], device: str | None = None, views: int = 1) -> AnyModel:
    """The model or models that a name stands for (:func:`member_paths`), looking ``views`` times. Raises InputError."""
    if views < 1:
        raise InputError(f"--tta {views}: give the number of views, 1 or more")
    members = [Model(load_run(path), device) for path in member_paths(model)]
    made = members[0] if len(members) == 1 else Ensemble(members)
    return made if views == 1 else Augmented(made, views)


def described_cost(model: AnyModel) -> str:
    """One line on what a prediction costs beside one of a single model; empty for a single model."""
    if model.cost == 1:
        return ""
    inner, parts = model, []
    if isinstance(inner, Augmented):
        parts.append(f"{inner.views} views of each image")
        inner = inner.model
    if isinstance(inner, Ensemble):
        parts.insert(0, f"{len(inner.members)} models")
    return f"{', '.join(parts)}: {model.cost} predictions for each image, their seconds add up"


# ---------------------------------------------------------------------- views


def view(image: Image, number: int, *, contrast: bool = True) -> tuple[Alignment, Image]:
    """The motion and the image of view ``number`` >= 1: a similarity about the image's centre by at most 5 degrees, 2 %
    of the extent and 3 % of size, and with ``contrast`` a gamma of 0.9 to 1.1 over the range of values. The motion's
    ``from_template`` brings landmarks back."""
    rng = np.random.default_rng([_SEED, number])
    d, grid = image.ndim, image.grid
    vector = rng.normal(size=1 if d == 2 else 3)
    turn = rotation_from_vector(np.radians(TURN_DEG) * rng.uniform(-1, 1) * vector / np.linalg.norm(vector))
    linear = turn * np.exp(LOG_SCALE * rng.uniform(-1, 1))
    affine = np.eye(d + 1)
    affine[:d, :d] = linear
    affine[:d, d] = grid.centre - linear @ grid.centre + SHIFT * grid.extent_mm.min() * rng.uniform(-1, 1, d)
    motion = Alignment(affine, float("nan"), 0.0)
    gamma = float(np.exp(GAMMA * rng.uniform(-1, 1)))
    moved = motion.moved(image)
    return motion, replace(moved, array=_bent(moved.array, gamma)) if contrast else moved


def _bent(array: NDArray[Any], gamma: float) -> NDArray[Any]:
    low, high = float(array.min()), float(array.max())
    if not high > low:
        return array
    return np.asarray(((array.astype(np.float32) - low) / (high - low)) ** gamma * (high - low) + low, dtype=np.float32)


# ---------------------------------------------------------------------- odds and ends


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


def _seconds(found: Sequence[Landmarks]) -> dict[str, float]:
    """What the alignments took together; nothing where nothing was aligned."""
    spent = [f.meta["align_seconds"] for f in found if "align_seconds" in f.meta]
    return {"align_seconds": float(sum(spent))} if spent else {}


def _suspicion(found: Sequence[Landmarks]) -> dict[str, float]:
    """The median of the members' suspicions in their limits, times the first one's; nothing unless all have one."""
    if not all("suspicion" in f.meta for f in found):
        return {}
    limit = float(found[0].meta["suspicion_limit"])
    shares = [float(f.meta["suspicion"]) / float(f.meta["suspicion_limit"]) for f in found]
    return {"suspicion": float(np.median(shares)) * limit, "suspicion_limit": limit}


def _hash(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
