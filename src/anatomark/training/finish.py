"""What a run leaves behind when its training is done: weights, plan, calibration, card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anatomark.cases.division import Division
from anatomark.errors import counted
from anatomark.io.atomic import write_json, write_text
from anatomark.methods.base import Stage
from anatomark.model.confidence.radius import described_radii
from anatomark.model.confidence.review import write_reference
from anatomark.model.config import write_config
from anatomark.model.residuals import Residuals
from anatomark.model.run_folder import write_weights
from anatomark.training.baselines import Judged, judged, settled_residuals
from anatomark.training.calibrate import learn_confidence
from anatomark.training.card import card
from anatomark.training.loop import FEWEST_STEPS
from anatomark.training.state import State

STILL_FROM = 6  # validations from which on standing still can be told
FELL = 0.9  # of the loss: falling


def finish(
    state: State, division: Division, residuals: Residuals | None, out_of_fold: Residuals | None
) -> Residuals | None:
    """Write the finished run's files; ``weights.safetensors`` last, because its presence means finished. Returns
    ``residuals`` as the finished model has them: where held-out cases say so, it settles on the mean shape.

    Raises InputError where the disk refuses.
    """
    run, composed = state.run, state.method
    independent = out_of_fold or (residuals if division.independent else None)
    every = [*division.train, *division.val]
    verdict = None if independent is None else judged(division.train, every, independent)
    how = "out-of-fold" if out_of_fold is not None else division.how
    lines = [] if verdict is None else verdict.lines(how if out_of_fold is not None else "validation")
    composed.settle = facts = None if verdict is None else verdict.facts(division.train)
    if facts is not None:
        residuals, out_of_fold, independent = (
            None if r is None else settled_residuals(r, facts, every) for r in (residuals, out_of_fold, independent)
        )
    unproven = doubt(verdict, state)
    lines.append(stalled(state.rows))
    loud = unproven.upper()
    if unproven and verdict is None:  # which says that it was hardly trained
        loud += f"; {more(state.advised)}"
    else:
        lines.append(short(state.stages, state.advised))
    lines = [line for line in lines if line]
    for line in [*lines, *([loud] if loud else [])]:
        state.report.say(line)
    learned = learn_confidence(composed.plan, division, independent, how, state.report)
    learned.facts["unproven"] = unproven
    state.report.say(described_radii(learned.facts))
    if learned.review is not None:
        write_reference(run, learned.review)
    write_json(run / "calibration.json", learned.facts)
    write_json(run / "plan.json", composed.plan.to_json())
    config = state.config.model_copy(update={"minutes": None})  # the steps of each stage say it all
    said = (*learned.lines, *lines, *([f"**{loud}**"] if loud else []))
    text = card(config, composed, division, residuals, out_of_fold, said, state.seconds)
    write_text(run / "card.md", text)
    write_config(run / "config.yaml", config)
    write_weights(run, composed, half=config.weights == "half")
    return residuals


def doubt(verdict: Judged | None, state: State) -> str:
    """Why no prediction of a model should be believed unseen, one clause; empty where nothing speaks against it."""
    if verdict is not None and not verdict.proven:
        better = "mean position" if verdict.position <= verdict.placed else "mean shape placed by its points"
        return f"on held-out cases this model is no better than the {better}"
    shortest = min(state.stages, key=lambda s: s.steps)
    if verdict is None and shortest.steps < FEWEST_STEPS:
        return f"hardly trained: stage {shortest.name} had {counted(shortest.steps, 'step')}, and no case was held out"
    return ""


def short(stages: Sequence[Stage], minutes: int = 0) -> str:
    """Which stages were too short to teach much, and the ``minutes`` that would be enough where they are known, one
    line; empty where none was."""
    few = [f"{s.name} {counted(s.steps, 'step')}" for s in stages if s.steps < FEWEST_STEPS]
    return f"hardly trained: {', '.join(few)}; {more(minutes)}" if few else ""


def more(minutes: int) -> str:
    """That a training needs so many ``minutes``, or more than it had where they are not known."""
    return f"give it {f'`minutes` {minutes} or more' if minutes else 'more time'} before you rely on it"


def stalled(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where the last stage's loss went on falling while validation stood still, one line; else empty."""
    last = [r for r in rows if r["stage"] == rows[-1]["stage"]] if rows else []
    seen = [(int(r["step"]), float(r["val_mm"]), float(r["loss"])) for r in last if r["val_mm"] and r["loss"]]
    if len(seen) < STILL_FROM:
        return ""
    steps, errors, losses = (np.array(x) for x in zip(*seen, strict=True))
    best = int(errors.argmin())
    if best > len(seen) // 2 or losses[-1] > FELL * losses[best]:
        return ""
    return (
        f"{last[0]['stage']}: the loss fell from step {steps[best]} on, validation did not: more steps would teach "
        "these cases only; more cases would help"
    )
