"""Suspect annotations: points, labels and frames that do not fit what the other cases say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.cases.look.medians import distance, nanmedian
from anatomark.cases.look.relabel import GAIN, best_order, label_cost, moved_groups
from anatomark.cases.look.shape_check import FEWEST_POINTS, ShapeStudy, misfit, robust_pose
from anatomark.core.grid import Array, Grid
from anatomark.core.landmarks import Landmarks, common_names
from anatomark.core.shape import mean_rotation, nanmean, rotation_angle
from anatomark.progress import Reporter

FEWEST = 5  # cases below which a shape cannot be judged
UNLIKE = 4.0  # times its usual residual, from which a case counts as of another shape
LOOSE = 4.0  # times the usual residual, from which a landmark counts as marked inconsistently; those at an end have 3


@dataclass(frozen=True)
class Suspect:
    """One finding. ``kind``: ``point`` (lies elsewhere than the others say), ``swap``, ``order``, ``frame``,
    ``mirror``, ``case`` (the whole shape is unlike the others), ``duplicate``, ``copy``, ``landmark`` (marked
    inconsistently), ``observers`` (two observers disagree); of :mod:`anatomark.cases.look.places` ``placeholder`` (a
    position that stands for none), ``outside`` (the image), ``image`` (that of a case of another split).

    ``labels`` are the landmarks concerned; ``found_mm`` is how far off they lie (largest), ``typical_mm`` what is usual
    there; ``expected`` the predicted world position of a point; ``message`` says it in a sentence.
    """

    case: str
    labels: tuple[str, ...]
    kind: str
    message: str
    found_mm: float | None = None
    typical_mm: float | None = None
    expected: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "labels": list(self.labels), "expected": list(self.expected) if self.expected else None}


@dataclass(frozen=True)
class Verdict:
    """``suspects`` and whether the shapes could be judged (``note`` says why not); ``residual_mm`` (M, N): how far each
    point lies from where its neighbours in its case put it; NaN = not judged."""

    suspects: list[Suspect]
    residual_mm: Array
    note: str = ""


def suspects(
    ids: Sequence[str],
    landmarks: Sequence[Landmarks],
    grids: Sequence[Grid | None] = (),
    report: Reporter | None = None,
) -> Verdict:
    """Looks for annotation errors over M cases, by case and label.

    Each point is predicted from its neighbours in its case through a local shape model of all cases, all fits robust;
    with fewer than 5 cases only what needs no shape model is found. ``grids`` (optional, per case) tell whether points
    lie in their image. World mm. Raises ValueError where the lengths disagree or the dimensions are mixed.
    """
    if len(ids) != len(landmarks) or (grids and len(grids) != len(ids)):
        raise ValueError(f"{len(ids)} case names, {len(landmarks)} landmark sets, {len(grids)} grids")
    names = common_names(landmarks)
    if not names:
        return Verdict([], np.zeros((len(ids), 0)), "there are no landmarks")
    shapes = np.stack([one.select(names).points for one in landmarks])
    findings = list(_coincident(ids, names, shapes))
    judged = np.isfinite(shapes).all(2).sum(0) >= 3
    images = list(grids) or [None] * len(ids)
    frames = list(_outside_frames(ids, shapes, images))
    residual = np.full(shapes.shape[:2], np.nan)
    if len(ids) < FEWEST or judged.sum() < FEWEST_POINTS:
        note = (
            f"too few to judge shapes: that takes {FEWEST} cases and {FEWEST_POINTS} landmarks marked in three of them "
            f"(found {len(ids)} and {judged.sum()})"
        )
        return Verdict(findings + frames, residual, note)
    kept = tuple(name for name, judge in zip(names, judged, strict=True) if judge)
    study = ShapeStudy(shapes[:, judged], report)
    frames = frames or list(_turned_frames(ids, study, images))
    with (report or Reporter(quiet=True)).bar("looking for swaps", len(ids)) as bar:
        for m, case in enumerate(ids):
            explained, residual[m, judged] = _explain(case, m, kept, study)
            findings += explained
            bar.update(m + 1)
    findings += _together(ids, kept, study, {(one.case, label) for one in findings for label in one.labels})
    return Verdict([*findings, *frames, *_loose_labels(kept, study)], residual)


def _explain(case: str, m: int, names: tuple[str, ...], study: ShapeStudy) -> tuple[list[Suspect], Array]:
    """Findings of one case and its residuals (N,) in mm once swapped labels are put right."""
    shape, scale = study.shapes[m], study.scale()[m]
    seen = np.isfinite(shape).all(1)
    if seen.sum() < FEWEST_POINTS:
        return [], np.full(len(seen), np.nan)
    cost = label_cost(study.expected[m], shape, scale)
    gain = np.diag(cost)[:, None] + np.diag(cost)[None] - cost - cost.T
    off = int((study.z[m] > study.beyond).sum())
    if off == 0 and study.factor[m] < 3 and not (gain > GAIN).any():
        return [], study.residual[m]
    mirrored = _mirrored(case, m, names, study)
    if mirrored:
        return [mirrored], study.residual[m]
    expected, owner = best_order(m, study, cost, search=off > 0.3 * seen.sum() or study.factor[m] >= 3)
    findings, fixed = [], shape.copy()
    for group in moved_groups(owner):
        before = float(np.nanmax(distance(expected[group], shape[group])))
        fixed[group] = np.where((owner[group] >= 0)[:, None], shape[owner[group]], np.nan)
        findings.append(_relabelled(case, group, owner, names, before))
    again = study.predict(fixed) if findings else expected
    residual = distance(again, fixed)
    factor = float(np.nanmedian(residual / study.typical))
    if factor > UNLIKE:
        typical = float(np.nanmedian(study.typical))
        message = f"the shape as a whole is unlike the other cases: residual {factor:.1f} times the usual"
        findings.append(Suspect(case, names, "case", message, float(np.nanmedian(residual)), typical))
    limit = study.beyond * study.typical * np.clip(factor, 1, 2)
    for i in np.flatnonzero(residual > limit) if factor <= UNLIKE else ():
        where, usual = tuple(round(float(v), 3) for v in again[i]), float(study.typical[i])
        text = f"{names[i]} lies {residual[i]:.3g} mm from where the other points put it (usual {usual:.2g} mm)"
        findings.append(Suspect(case, (names[i],), "point", text, float(residual[i]), usual, where))
    return findings, residual


def _relabelled(case: str, group: list[int], owner: NDArray[np.int64], names: tuple[str, ...], mm: float) -> Suspect:
    labels = tuple(names[i] for i in group)
    if len(group) == 2 and owner[group[0]] == group[1] and owner[group[1]] == group[0]:
        return Suspect(case, labels, "swap", f"{labels[0]} and {labels[1]} seem to be swapped", mm)
    pairs = [f"{names[owner[i]]} is {names[i]}" for i in group if owner[i] >= 0]
    shown = ", ".join(pairs[:4]) + (", ..." if len(pairs) > 4 else "")
    return Suspect(case, labels, "order", f"{len(pairs)} labels seem to be in the wrong order: {shown}", mm)


def _mirrored(case: str, m: int, names: tuple[str, ...], study: ShapeStudy) -> Suspect | None:
    """A case whose mirror image fits the others far better: one axis was read with the wrong sign."""
    mirror = np.ones(study.shapes.shape[2])
    mirror[0] = -1
    middle, shape, usual = study.middle, study.shapes[m], study.usual_misfit
    before, after = (misfit(robust_pose(middle, one), middle, one) for one in (shape, shape * mirror))
    if after > 2.5 * usual or after > before / 3:
        return None
    text = f"its mirror image fits the others far better ({after:.2g} mm, not {before:.2g}): an axis has the wrong sign"
    return Suspect(case, names, "mirror", text, before, usual)


def _outside_frames(ids: Sequence[str], shapes: Array, grids: Sequence[Grid | None]) -> Iterator[Suspect]:
    """3D cases with points outside their image that lie inside once x and y change sign (RAS read as LPS)."""
    for case, shape, grid in zip(ids, shapes, grids, strict=True):
        inside, flipped = _inside_both_ways(shape, grid)
        if inside < 0.5 and flipped > 0.9:
            text = f"{1 - inside:.0%} of the points lie outside the image, and inside with x and y negated: LPS or RAS?"
            yield Suspect(case, (), "frame", text)


def _inside_both_ways(shape: Array, grid: Grid | None) -> tuple[float, float]:
    """The shares of the points (N, 3) that lie in an image as they are, and with x and y negated; NaN: not known."""
    points = shape[np.isfinite(shape).all(1)]
    if grid is None or shape.shape[1] != 3 or not len(points):
        return np.nan, np.nan
    return float(grid.contains(points).mean()), float(grid.contains(points * [-1, -1, 1]).mean())


def _turned_frames(ids: Sequence[str], study: ShapeStudy, grids: Sequence[Grid | None]) -> Iterator[Suspect]:
    """3D cases that stand turned by half a turn about z where all others stand alike (RAS read as LPS). Not where the
    points lie in their image and would not with x and y negated: that head did lie so."""
    if study.shapes.shape[2] != 3:
        return
    flip = np.diag([-1.0, -1.0, 1.0])
    for m, case in enumerate(ids):
        others = [p.rotation for i, p in enumerate(study.poses) if i != m]
        for_all = mean_rotation(others)
        usual = float(np.median([rotation_angle(r @ for_all.T) for r in others]))
        given = rotation_angle(study.poses[m].rotation @ for_all.T)
        turned = rotation_angle(flip @ study.poses[m].rotation @ for_all.T)
        inside, flipped = _inside_both_ways(study.shapes[m], grids[m])
        if usual < 30 and given > 120 and turned < 45 and not (inside > 0.9 and flipped < 0.5):
            text = f"stands {given:.0f} degrees from the other cases, {turned:.0f} with x and y negated: LPS or RAS?"
            yield Suspect(case, (), "frame", text)


def _coincident(ids: Sequence[str], names: tuple[str, ...], shapes: Array) -> Iterator[Suspect]:
    """Two labels of a case at one place that are apart elsewhere, and cases with the very same points."""
    apart = distance(shapes[:, :, None], shapes[:, None])
    usual = nanmedian(apart, 0) if len(ids) > 2 else np.full(apart.shape[1:], np.inf)
    for m, i, j in zip(*np.nonzero(apart <= np.minimum(0.01 * usual, 1e9)), strict=True):
        exact = apart[m, i, j] <= 1e-6
        if i < j and (exact if len(ids) <= 2 else usual[i, j] > 0):
            text = f"{names[i]} and {names[j]} lie at the same place"
            mm = float(usual[i, j]) if np.isfinite(usual[i, j]) else None
            yield Suspect(ids[m], (names[i], names[j]), "duplicate", text, float(apart[m, i, j]), mm)
    first_with: dict[bytes, str] = {}
    for case, shape in zip(ids, shapes, strict=True):
        first = first_with.setdefault((shape + 0.0).tobytes(), case)  # -0.0 becomes 0.0
        if np.isfinite(shape).all(1).sum() > 1 and first != case:
            yield Suspect(case, names, "copy", f"has the very same points as {first}")


def _together(
    ids: Sequence[str], names: tuple[str, ...], study: ShapeStudy, known: set[tuple[str, str]]
) -> Iterator[Suspect]:
    """Neighbours that lie nearly at one place though they are apart elsewhere: one was marked twice. None of which
    something is ``known`` (case, label) already."""
    local = study.local
    for m, i, k in zip(*np.nonzero(local.together(study.shapes)), strict=True):
        j = int(local.near[i, k])
        if (i < j or i not in local.near[j]) and not {(ids[m], names[i]), (ids[m], names[j])} & known:
            found, usual = float(distance(study.shapes[m, i], study.shapes[m, j])), float(local.apart[i, k])
            text = f"{names[i]} and {names[j]} lie {found:.2g} mm apart (usual {usual:.2g} mm)"
            yield Suspect(ids[m], (names[min(i, j)], names[max(i, j)]), "duplicate", text, found, usual)


def _loose_labels(names: tuple[str, ...], study: ShapeStudy) -> Iterator[Suspect]:
    """Landmarks whose residuals are much larger than those of the others in most cases."""
    own = nanmedian(study.residual, 0)
    log = np.log(np.maximum(own, 1e-9))
    middle = float(np.nanmedian(log))
    spread = 1.4826 * float(np.nanmedian(np.abs(log - middle)))
    for i in np.flatnonzero(log - middle > max(3.5 * spread, np.log(LOOSE))) if len(names) >= 8 else ():
        text = f"{names[i]} is placed less consistently than the others: {own[i]:.3g} mm, usual {np.exp(middle):.2g} mm"
        yield Suspect("", (names[i],), "landmark", text, float(own[i]), float(np.exp(middle)))


def disagreements(observed: Sequence[Sequence[Landmarks]]) -> tuple[dict[str, float], list[Suspect]]:
    """Mean distance in mm between observers per landmark, over cases that hold two or more observers' landmarks, and
    the landmarks on which they disagree far more than on the others. Empty where no case has two."""
    names = common_names(one for case in observed for one in case)
    apart = [
        one.select(names).errors_to(other) for case in observed for i, one in enumerate(case) for other in case[:i]
    ]
    if not apart:
        return {}, []
    mean = nanmean(np.stack(apart))
    shared = np.isfinite(mean)
    findings, usual = [], float(np.median(mean[shared])) if shared.any() else 0.0
    for i in np.flatnonzero(mean > 2.5 * usual) if shared.sum() >= 5 else ():
        text = f"observers place {names[i]} {mean[i]:.2g} mm apart on average (usual {usual:.2g} mm)"
        findings.append(Suspect("", (names[i],), "observers", text, float(mean[i]), usual))
    return {names[i]: float(mean[i]) for i in np.flatnonzero(shared)}, findings
