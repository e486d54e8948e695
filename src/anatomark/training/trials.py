"""How ``auto`` decides where time allows: short trainings of the candidates, judged on the cases that are held out.

The rules of ``auto.py`` name a favourite. Each candidate is trained for an equal, short time on the same cases; the
favourite and the best other go on to a trial twice as long, and what both would give in the whole time is foreseen from
the two. The favourite stays unless another errs clearly less, so that a busy moment does not decide.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.division import Division, spread
from anatomark.core.shape import mean_shape
from anatomark.errors import counted
from anatomark.methods.base import Task
from anatomark.model.config import RunConfig, checked, completed, merged
from anatomark.progress import Reporter
from anatomark.training.baselines import judged
from anatomark.training.loop import train_stage
from anatomark.training.start import start

SHARE = 0.25  # of the time, for all trials
PATIENCE = 2.0  # times that, on a machine that is busy: what is left then is not tried
LEAST_MINUTES, MOST_MINUTES = 0.4, 4.0  # of one trial: in less nothing is learned, in more nothing decided
CASES, HELD = 120, 12  # training and held-out cases of a trial, at most
CLEARLY = 0.9  # of the favourite's error: another must stay below it
ALIKE_DEG, ALIKE_SHIFT = 12.0, 0.15  # images lie alike: turns, and shifts in radii
STEEPEST = 0.7  # of the error that a doubling of the time is believed to leave: a faster fall is the first learning
FADES = 0.6  # by this the gain of each doubling of the time shrinks
RESOLVED = 0.8  # of the placed mean shape's error: a method below it knows more than the mean shape
TREE_STEPS = 400  # before which the tree's network, which knows no shape, is no better than a mean shape (spines)
CONFUSED = 1.0  # placed mean shape's error in distances between neighbours: above it they are confused


@dataclass(frozen=True)
class Candidate:
    """Settings of a config to try, under a name for the log. ``slow``: steps before which its error says nothing."""

    label: str
    settings: Mapping[str, Any]
    slow: int = 0


@dataclass(frozen=True)
class Tried:
    """What a trial gave: held-out error, mm, in how many steps of ``step_s`` seconds, and that of the mean shape placed
    by its points."""

    candidate: Candidate
    minutes: float
    steps: int
    error_mm: float
    placed_mm: float = np.inf
    step_s: float = 0.0

    def has_steps(self, minutes: float) -> bool:
        """Whether ``minutes`` are enough for the steps that a slow candidate needs."""
        return 0 < self.candidate.slow * self.step_s <= 60 * minutes and np.isfinite(self.error_mm)

    def foreseen_mm(self, shorter: Tried | None, minutes: float) -> float:
        """The error after ``minutes``, as a trial half as long lets it be foreseen: each doubling of the time divides
        it again, by less each time."""
        if shorter is None or not 0 < self.error_mm < shorter.error_mm < np.inf:
            return self.error_mm
        gains = FADES * (1 - FADES ** max(0.0, np.log2(minutes / self.minutes))) / (1 - FADES)
        return float(self.error_mm * max(STEEPEST, self.error_mm / shorter.error_mm) ** gains)


def candidates(task: Task, division: Division, favourite: Mapping[str, Any], free: bool) -> list[Candidate]:
    """The favourite first: ``favourite``, or where neighbours are confused the tree. ``free``: whether the user left
    the alignment open."""
    name = favourite["method"]["name"]
    out = [Candidate(_label(favourite), favourite)]
    confused, alike = neighbours_confused(division), lie_alike(division)
    if confused:  # no global shape model can tell one neighbour from the other
        out.insert(0, replace(_with(favourite, "heatmap", preset="tree"), slow=TREE_STEPS))
    for other in ("pin", "global_to_local", "heatmap"):
        if other != name and not (other == "heatmap" and confused):
            out.append(_with(favourite, other, align=False if task.ndim == 3 and alike and free else None))
    aligned = favourite.get("align", {}).get("enabled")
    if task.ndim == 3 and alike and free and aligned and name != "t2dl":  # which reads images in the template's pose
        out.insert(1, _with(favourite, name, align=False))
    return out


def neighbours_confused(division: Division) -> bool:
    """Whether landmarks stray from the placed mean shape farther than to their nearest neighbours."""
    shapes = np.stack([c.landmarks.points for c in division.train])
    if shapes.shape[1] < 6 or len(shapes) < 10:
        return False
    mean, poses = mean_shape(shapes)
    aligned = np.stack([p.invert(s) for p, s in zip(poses, shapes, strict=True)])
    strays = np.nanmedian(np.linalg.norm(aligned - mean, axis=2))
    apart = np.linalg.norm(mean[:, None] - mean, axis=2)
    np.fill_diagonal(apart, np.inf)
    return bool(strays > CONFUSED * np.median(apart.min(1)))


def lie_alike(division: Division) -> bool:
    """Whether the anatomy lies in all images nearly as in the others: nothing is left to align."""
    cases = [c for c in division.train if c.landmarks.defined.sum() > c.landmarks.ndim]
    if len(cases) < 3:
        return False
    ndim = cases[0].landmarks.ndim
    mean, poses = mean_shape(np.stack([c.landmarks.points for c in cases]))
    radius = float(np.nanmax(np.linalg.norm(mean, axis=1)))
    turns = [np.degrees(np.arccos(np.clip((np.trace(p.rotation) - (ndim - 2)) / 2, -1, 1))) for p in poses]
    at = spread(len(cases), 40)
    shifts = np.stack([poses[i].translation - cases[i].grid(ndim).centre for i in at])
    strays = np.linalg.norm(shifts - np.median(shifts, 0), axis=1)
    return bool(np.quantile(turns, 0.9) <= ALIKE_DEG and np.quantile(strays, 0.9) <= ALIKE_SHIFT * radius)


def decide(
    tried: Sequence[Candidate], config: RunConfig, division: Division, run: Path, minutes: float, report: Reporter
) -> tuple[Candidate, list[str]]:
    """The candidate that is to be trained, and a line for each reason; trials take about ``SHARE`` of ``minutes``."""
    each = min(SHARE * minutes / (len(tried) + 4), MOST_MINUTES)
    second = each >= LEAST_MINUTES
    if not second:
        tried = tried[: max(1, int(SHARE * minutes / LEAST_MINUTES))]
        each = max(LEAST_MINUTES, SHARE * minutes / len(tried))
    if len(tried) < 2:
        return tried[0], []
    began, folder = time.monotonic(), run / "trials"
    part = _part(division)
    report.say(f"trying {len(tried)} candidates for {each:.1f} minutes each on {len(part.train)} training cases")
    first: list[Tried] = []
    try:
        for candidate in tried:
            if first and time.monotonic() - began > PATIENCE * SHARE * minutes * 60:
                report.say(f"{candidate.label} is not tried: the trials have taken long enough")
                continue
            first.append(_tried(candidate, config, part, folder, each, report))
        results = first
        if second:
            others = sorted(first[1:], key=lambda t: t.error_mm)[:1]
            results = [_tried(t.candidate, config, part, folder, 2 * each, report) for t in (first[0], *others)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lines = [f"tried for {t.minutes:.1f} minutes: {t.candidate.label} {t.error_mm:.3f} mm held out" for t in first]
    if second:
        lines += [f"tried for {t.minutes:.1f} minutes: {t.candidate.label} {t.error_mm:.3f} mm" for t in results]
    shorter = {t.candidate.label: t for t in first} if second else {}
    return _best(results, shorter, (1 - SHARE) * minutes), lines


def _best(results: Sequence[Tried], shorter: Mapping[str, Tried], minutes: float) -> Candidate:
    """The candidate to be trained for ``minutes``: the first, unless another is foreseen to err clearly less. Beside
    one that is slow, and has the steps that it needs, only those count that know more than the mean shape."""
    own, *others = results
    if own.has_steps(minutes):
        others = [t for t in others if t.error_mm < RESOLVED * t.placed_mm]
    foreseen = {t.candidate.label: t.foreseen_mm(shorter.get(t.candidate.label), minutes) for t in results}
    best = min(others, key=lambda t: foreseen[t.candidate.label], default=own).candidate
    return best if foreseen[best.label] <= CLEARLY * foreseen[own.candidate.label] else own.candidate


def _tried(
    candidate: Candidate, config: RunConfig, division: Division, folder: Path, minutes: float, report: Reporter
) -> Tried:
    """Train a candidate for a while, without what a finished run leaves behind."""
    quiet = Reporter(quiet=True)
    shutil.rmtree(folder, ignore_errors=True)
    cache = config.cache or str(folder.parent / "cache")
    update = {"minutes": minutes, "steps": None, "cache": cache, "refine": {"enabled": False}, "validation_cases": HELD}
    own = merged(merged(config.model_dump(mode="json"), candidate.settings), update)
    own["reasons"] = []
    state = start(division, folder, completed(checked(RunConfig, own, "trial")), None, quiet)
    state.started = time.monotonic()  # images are read and cached once, whatever is chosen
    while state.at < len(state.stages):
        train_stage(state)
    residuals = state.validation.run(state.method, HELD)
    error = residuals.selection_mm()
    beside = judged(division.train, [*division.train, *division.val], residuals)
    steps = sum(state.config.stage_steps.values())
    placed = np.inf if beside is None else beside.placed
    free = "" if beside is None else f"; mean position {beside.position:.3f}"
    free += f", placed mean shape {placed:.3f}" if np.isfinite(placed) else ""
    report.say(f"{candidate.label}: {counted(steps, 'step')}, held-out error {error:.3f} mm{free}")
    return Tried(candidate, minutes, steps, error if np.isfinite(error) else np.inf, placed, state.step_s)


def _part(division: Division) -> Division:
    """At most ``CASES`` training and ``HELD`` held-out cases, evenly spread."""
    train = tuple(division.train[i] for i in spread(len(division.train), CASES))
    known = np.stack([c.landmarks.defined for c in train]).any(0).all()
    val = tuple(division.val[i] for i in spread(len(division.val), HELD))
    return replace(division, train=train if known else division.train, val=val)


def _with(
    favourite: Mapping[str, Any], name: str, *, preset: str = "recommended", align: bool | None = None
) -> Candidate:
    settings = {**favourite, "method": {"name": name, "preset": preset}}
    if align is not None:
        settings["align"] = {**favourite.get("align", {}), "enabled": align}
    return Candidate(_label(settings), settings)


def _label(settings: Mapping[str, Any]) -> str:
    method = settings["method"]
    preset = method.get("preset", "recommended")
    aligned = settings.get("align", {}).get("enabled")
    return f"{method['name']}{f' ({preset})' if preset != 'recommended' else ''}{', aligned' if aligned else ''}"
