"""The method ``auto``: method, refiner and settings chosen from what the data look like and the time there is.

Every rule rests on figures of ``docs/benchmarks.md``; none knows the name of a data set. What the user set stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from anatomark import methods
from anatomark.cases.division import HELD_OUT_FROM, Division
from anatomark.cases.look.fingerprint import two_observers
from anatomark.core.shape import mean_shape, rotation_angle
from anatomark.errors import counted
from anatomark.methods.base import Task
from anatomark.model.config import AUTO, RunConfig, checked, completed, merged
from anatomark.progress import Reporter
from anatomark.training.trials import candidates, decide

MANY = 100  # landmarks from which on a network, or a search, for each of them costs too much
ANY_POSE_DEG = 60.0  # turned by more than this, an anatomy lies in any pose
REFINED_FROM = {2: 2.0, 3: 10.0}  # minutes from which on the refiner is worth its share of the time
STEPS_A_MINUTE = 250.0  # PIN and its refiner on one core: 216 on skulls, 275 on cephalograms
ONE_LEVEL = 0.12  # radii: a finest sub-image that reaches so far needs no coarser one before it
WIDTHS = ((8, 16), (50, 24))  # fewer cases than the first: channels of each refiner network; else the usual number
REFINED_AT_ONCE = 6  # cases in a step of the refiner in 3D
HELD_LEAST = 2  # held-out cases from which on trials decide
HEADERS = 8  # images whose spacing is read
Row = tuple[str, Any, str]  # dotted key of the config, value, one sentence why
SAME_FRAME_DEG = 30.0  # beyond this an observer's habits have no fixed direction in the world


def task_of_fingerprint(facts: Mapping[str, Any], landmarks: int | None = None) -> Task:
    """From the facts that ``fingerprint`` gathers; ``landmarks``: how many of them are to be learned."""
    cases = facts["cases"]["train"]
    return Task(
        ndim=facts["dimension"],
        landmarks=len(facts["names"]) if landmarks is None else landmarks,
        cases=cases,
        turned_deg=facts["poses"]["rotation_deg"]["max"],
        radius_mm=facts["poses"]["radius_mm"],
        voxel_mm=min(facts["images"]["spacing_mm"]["median"]),
        observed=facts["observers"]["named"] == cases,
    )


def task_of_division(division: Division) -> Task:
    """From the cases of a run. Reads their headers, no image."""
    cases = (*division.train, *(division.val if division.how == "held out" else ()))
    ndim = cases[0].landmarks.ndim
    shapes = [c.landmarks.points for c in cases if c.landmarks.defined.sum() >= ndim]
    turned = radius = 0.0  # fewer points fix no pose
    if shapes:
        mean, poses = mean_shape(np.stack(shapes))
        turned = max(rotation_angle(p.rotation) for p in poses)
        radius = float(np.nanmax(np.linalg.norm(mean, axis=1)))
    at = np.unique(np.linspace(0, len(cases) - 1, min(HEADERS, len(cases))).astype(int))
    voxel = float(np.median([cases[i].header.spacing[-ndim:].min() for i in at]))
    observed = all(two_observers(c) for c in division.train)
    return Task(ndim, len(division.names), len(cases), float(turned), radius, voxel, observed)


@dataclass(frozen=True)
class Choice:
    """``rows`` of the config, the method first."""

    rows: tuple[Row, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The rows as one nested mapping, as a config has them."""
        out: dict[str, Any] = {}
        for key, value, _ in self.rows:
            for part in reversed(key.split(".")):
                value = {part: value}
            out = merged(out, value)
        return out

    @property
    def reasons(self) -> list[str]:
        """``key = value: why``, a line each."""
        return [f"{key} = {_shown(value)}: {why}" for key, value, why in self.rows]


def choose(
    task: Task,
    minutes: float | None,
    steps: int | None = None,
    *,
    refine: bool | None = None,
    align: bool | None = None,
    models: int = 1,
) -> Choice:
    """Method, refiner and settings for a task and a time budget: ``minutes``, else training ``steps`` in all, else a
    usual time, which is then chosen too. ``refine``, ``align``: what the user said of refiner and alignment, if
    anything; ``models``: among how many the minutes are shared."""
    usual: list[Row] = []
    if minutes is None and steps is None:
        minutes, why = usual_minutes(task.cases, task.ndim)
        usual = [("minutes", minutes, why)]
    time = minutes / models if minutes is not None else (steps or 0) / STEPS_A_MINUTE
    spent = f"{time:g} minutes" if minutes is not None else f"{steps} steps, {time:.0f} minutes on one core"
    spent += " for each model" * (models > 1)
    after, whether = _refined(task, time, spent)
    refined = after if refine is None else refine
    name, why = methods.suitable(replace(task, time=spent, refined=refined, align=align))
    if task.landmarks <= MANY:
        why = f"{task.landmarks} landmarks in {task.ndim}D, {counted(task.cases, 'training case')}, {spent}: {why}"
    rows: list[Row] = [("method.name", name, why), *usual]
    rows += [("align.enabled", *_alignment(task, name)), ("refine.enabled", after, whether)]
    if refined:
        rows += _refiner(task)
    # one more than a validation case needs, so that offsets between observers can be learned from the rest
    if task.observed and task.cases > HELD_OUT_FROM and task.turned_deg <= SAME_FRAME_DEG:
        rows.append(("observers", "combined", "every case has several observers, and their mean errs less than one"))
    return Choice(tuple(rows))


def _alignment(task: Task, name: str) -> tuple[bool, str]:
    if methods.find(name).aligned and task.ndim == 3:
        return True, "it reads images in the template's pose"
    if task.ndim == 2:
        return False, "in 2D a body turned out of the plane cannot be turned back"
    return False, "the method seeks the pose itself"


def _refined(task: Task, time: float, spent: str) -> tuple[bool, str]:
    if task.landmarks > MANY:
        return False, f"it would train {task.landmarks} networks"
    if time < REFINED_FROM[task.ndim]:
        return False, f"{spent} are better spent on the method alone"
    return True, "it lowered the error in all that was measured, by up to 36 %"


def _refiner(task: Task) -> Iterator[Row]:
    if task.radius_mm <= 0:  # fewer landmarks than span the image
        return
    px = 64 if task.ndim == 2 else 32
    reach = px / 2 * max(0.75 * task.voxel_mm, task.radius_mm / 350) / task.radius_mm
    if reach >= ONE_LEVEL:
        yield "refine.levels", 1, f"sub-images as fine as the voxels reach {reach:.0%} of the anatomy's radius already"
    else:
        yield "refine.levels", 2, f"sub-images as fine as they get reach only {reach:.0%} of the anatomy's radius"
    for fewer, width in WIDTHS:
        if task.cases < fewer:
            yield "refine.width", width, f"with {counted(task.cases, 'training case')} only a narrow network"
            break
    if task.ndim == 3 and 152 // task.landmarks < REFINED_AT_ONCE and task.landmarks <= MANY:
        yield "refine.batch", REFINED_AT_ONCE, "as in what was measured in 3D"


def usual_minutes(count: int, ndim: int) -> tuple[float, str]:
    """Minutes of training for so many cases, and why."""
    if count < HELD_OUT_FROM:
        return 20.0, f"{counted(count, 'training case')}: more time would fit these and no others"
    if count >= 100:
        return 90.0, f"{count} training cases take longer to learn from; raise it where the log still falls at the end"
    return 60.0, f"{counted(count, 'training case')} in {ndim}D; raise it where the log still falls at the end"


def settled(
    config: RunConfig,
    division: Division,
    models: int = 1,
    *,
    run: Path | None = None,
    began: float = 0.0,
    report: Reporter | None = None,
) -> RunConfig:
    """The complete config of a run whose method is ``auto``, with the ``reasons``; what the user set stays. ``models``:
    among how many the minutes are shared. In the folder ``run`` candidates are tried where time allows; the minutes
    since ``began`` (of ``time.monotonic``) are then taken off."""
    assert config.method.name == AUTO
    steps = config.steps or sum(config.stage_steps.values()) or None
    asked = {"refine": config.refine.enabled, "align": config.align.enabled}
    task = task_of_division(division)
    choice = choose(task, config.minutes, steps, **asked, models=models)
    rows = tuple(row for row in choice.rows if row[0] == "method.name" or not _given(config, row[0]))
    favourite = Choice(rows)
    minutes = config.minutes or favourite.settings.get("minutes")
    if run is None or report is None or minutes is None or not _triable(task, division):
        return applied(config, favourite)
    known: dict[str, Any] = {key: favourite.settings[key] for key in ("method", "align") if key in favourite.settings}
    tried = candidates(task, division, known, free=asked["align"] is None)
    chosen, lines = decide(tried, config, division, run, minutes / models, report)
    if lines:
        name, preset = (chosen.settings["method"].get(k, "recommended") for k in ("name", "preset"))
        aligned = chosen.settings.get("align", {}).get("enabled")
        why = "it erred least in trials on held-out cases, or hardly more than the method that did"
        others = [
            r if r[0] != "align.enabled" or r[1] == aligned else (r[0], aligned, "so it was tried") for r in rows[1:]
        ]
        if chosen.slow and asked["refine"] is None:  # a refiner's two levels would take four fifths of the time
            others = [r for r in others if not r[0].startswith("refine.")]
            others.append(("refine.enabled", False, "the method needs the time to learn which neighbour is which"))
        presets = [("method.preset", preset, "so it was tried")] if preset != "recommended" else []
        rows = (("method.name", name, why), *presets, *others)
    done = applied(config, Choice(rows))
    left = max(0.2 * minutes, minutes - (time.monotonic() - began) / 60)
    return done.model_copy(update={"minutes": left, "reasons": [*lines, *done.reasons]})


def _triable(task: Task, division: Division) -> bool:
    """Whether trials can say anything: held-out cases, and few enough landmarks for more than one method."""
    return division.independent and len(division.val) >= HELD_LEAST and 3 <= task.landmarks <= MANY


def aligned_in_any_pose(config: RunConfig, division: Division) -> RunConfig:
    """``config`` with the alignment switched on where 3D cases lie in any pose, for a method that would learn to seek
    it, and the user says nothing of it: few minutes do not teach that search. Presets of papers stay as they are."""
    if config.align.enabled is not None or config.method.preset != "recommended":
        return config
    task = task_of_division(division)
    if task.ndim < 3 or task.landmarks <= task.ndim or task.turned_deg <= ANY_POSE_DEG:
        return config
    turned = f"cases are turned by up to {task.turned_deg:.0f} degrees"
    why = f"align.enabled = true: {turned}, and an alignment finds the pose without being taught"
    align = config.align.model_copy(update={"enabled": True})
    return config.model_copy(update={"align": align, "reasons": [*config.reasons, why]})


def applied(config: RunConfig, choice: Choice) -> RunConfig:
    """``config`` with a choice in it, complete."""
    plain = merged({**config.model_dump(mode="json"), "reasons": choice.reasons}, choice.settings)
    return completed(checked(RunConfig, plain, "method auto"))


def _given(config: BaseModel, key: str) -> bool:
    """Whether the user gave this dotted key a value."""
    part, _, rest = key.partition(".")
    value = getattr(config, part)
    if part not in config.model_fields_set or value is None:
        return False
    return _given(value, rest) if rest else True


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
