"""Turning ``--minutes`` into numbers of steps."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.progress import Reporter
from anatomark.training.optimise import make_optimizer, set_modes, weights_of
from anatomark.training.state import State
from anatomark.training.steps import ROUND, optimiser_step, sources

VALIDATIONS = 10  # per stage, evenly spread; fewer in short stages
VALIDATION_SHARE = 0.1  # of a time budget
Flags = NDArray[np.bool_]


def fix_steps(state: State) -> None:
    """Measure a stage's throughput on a copy of the method, and write its number of steps into the config."""
    assert state.config.minutes is not None
    shares = [s.share for s in state.stages[state.at :]]
    left = state.config.minutes * 60 - state.seconds
    budget = max(0.0, left) * state.stage.share / max(1e-9, sum(shares))
    began = time.monotonic()
    per_validation = _time_validation(state)
    per_step = _time_step(state, min(20.0, 0.05 * budget))
    budget -= time.monotonic() - began
    validations = int(np.clip(VALIDATION_SHARE * budget / max(1e-9, per_validation), 1, VALIDATIONS))
    steps = max(1, int((budget - validations * per_validation) / per_step))
    state.stages[state.at] = replace(state.stage, steps=steps)
    state.config.stage_steps[state.stage.name] = steps
    state.config.validate_every[state.stage.name] = max(1, -(-steps // validations))
    state.report.say(f"{state.stage.name}: {per_step * 1000:.0f} ms a step, so {steps} steps")


def _time_step(state: State, seconds: float) -> float:
    """Seconds a step, on a copy of the method."""
    probe = copy.copy(state)
    probe.method = copy.deepcopy(state.method)
    probe.wrapped, probe.report = probe.method, Reporter(quiet=True)
    set_modes(probe.method, probe.stage)
    probe.optimizer = state.fabric.setup_optimizers(make_optimizer(probe.method, probe.stage))
    probe.ema = weights_of(probe.method) if "ema" in probe.stage.options else None
    probe.stages = [replace(s, steps=10**4) for s in state.stages]
    marks, begins = [time.monotonic()], []
    for batch, begin in sources(probe, 0):
        optimiser_step(probe, batch)
        if state.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.monotonic())
        begins.append(begin)
        enough = seconds if len(marks) > 12 else 2 * seconds
        if len(marks) > 2 and marks[-1] - marks[0] > enough:
            break
    return _mean_step(np.diff(marks), np.array(begins))


def _mean_step(times: Array, begins: Flags) -> float:
    """Seconds a step, from those that the first steps took; ``begins`` (T,): where a round of ``Method.collect`` begins
    (everywhere, where nothing is collected). What it does there counts once for each step of a round."""
    if begins.all():
        return float(times[min(2, len(times) - 1) :].mean())  # the first steps allocate and warm up
    between, rounds = times[~begins], np.flatnonzero(begins)
    usual = between[min(1, len(between) - 1) :].mean()
    first, length = (times[rounds[1:]].mean(), rounds[1]) if len(rounds) > 1 else (times[0], ROUND)
    return float(usual + max(0.0, first - usual) / length)


def _time_validation(state: State) -> float:
    """Seconds that one validation takes, from one case."""
    if not len(state.validation):
        return 0.0
    began = time.monotonic()
    state.validation.run(state.method, 1)
    return (time.monotonic() - began) * len(state.validation.chosen(state.config.validation_cases))
