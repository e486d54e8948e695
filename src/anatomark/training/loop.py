"""One training stage from where the state stands to its end: its steps, batches, validation, checkpoints."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from anatomark.core.grid import Array
from anatomark.errors import counted
from anatomark.methods.base import Batch, Evidence
from anatomark.progress import Bar, Reporter
from anatomark.training.examples import Examples, batches, worker_count
from anatomark.training.optimise import average, make_optimizer, set_modes, set_rate, weights_of
from anatomark.training.state import State, log, save, write_setup
from anatomark.training.teach import DrawnCases

SAVE_EVERY_S = 60.0
SHORTEST_INTERVAL = 50  # steps between validations
ROUND = 50  # batches from one call of Method.collect
VALIDATIONS = 10  # per stage, evenly spread; fewer in short stages
VALIDATION_SHARE = 0.1  # of a time budget
FEWEST_STEPS, ENOUGH_STEPS = 50, 500  # of a stage: fewer are hopeless; that many begin to teach something
BUSY = 0.5  # of the threads' time that a training gets: below it others take the rest
Flags = NDArray[np.bool_]


def train_stage(state: State) -> None:
    """Train the current stage to its end from where the state stands, then move on to the next."""
    resumed = state.optimizer is not None
    state.method.begin(state.stage, state.before.get(state.stage.name, state.evidence))
    if not resumed:
        if state.config.minutes is not None and state.stage.name not in state.config.stage_steps:
            fix_steps(state)
        state.optimizer = make_optimizer(state.method, state.stage)
        state.ema = weights_of(state.method) if state.stage.ema is not None else None
        write_setup(state)
    set_modes(state.method, state.stage)
    every = state.config.validate_every.get(state.stage.name) or _interval(state.stage.steps)
    title = f"{state.stage.name} ({state.at + 1}/{len(state.stages)})"
    with state.report.bar(title, state.stage.steps, state.step) as bar:
        _loop(state, every, bar)
    _end_stage(state)


def _loop(state: State, every: int, bar: Bar) -> None:
    stage, losses = state.stage, []
    val = next((f"val {r['val_mm']} mm" for r in reversed(state.rows) if r["val_mm"] != ""), "")
    for batch, boundary in batches_of(state, state.step):
        if boundary and time.monotonic() - state.saved > SAVE_EVERY_S and state.step > 0:
            save(state)
        losses.append(optimiser_step(state, batch))
        state.step += 1
        due = state.step % every == 0 or state.step == stage.steps
        if due or state.step % max(1, stage.steps // 100) == 0:
            mean = _mean(losses)
            if not np.isfinite(mean["loss"]):
                raise RuntimeError(f"training diverged: the loss of stage {stage.name} is {mean['loss']}")
            losses = []
            mm = _validate(state) if due and len(state.validation) else None
            val = f"val {mm:.3f} mm" if mm is not None else val
            log(state, mean, mm)
        if state.step % 10 == 0 or state.step == stage.steps or bar.silent:
            loss = losses[-1]["loss"].item() if losses else mean["loss"]
            bar.update(state.step, f"loss {loss:.4f}  {val}")


@contextmanager
def _averaged(state: State) -> Iterator[None]:
    """The method with its averaged weights, where the stage keeps them."""
    if state.ema is None:
        yield
        return
    own = weights_of(state.method)
    state.method.load_state_dict(state.ema)
    try:
        yield
    finally:
        state.method.load_state_dict(own)


def _interval(steps: int) -> int:
    return max(SHORTEST_INTERVAL, -(-steps // VALIDATIONS))


def _validate(state: State) -> float:
    """Validation error in mm; the weights are kept where they are the best of the stage so far."""
    with _averaged(state):
        residuals = state.validation.run(state.method, state.config.validation_cases)
        mm = residuals.selection_mm()
        if mm < state.best_mm or state.best is None:
            state.best, state.best_mm = weights_of(state.method), mm
            state.best_evidence = residuals.evidence(state.validation.source)
    set_modes(state.method, state.stage)
    return mm


def _end_stage(state: State) -> None:
    """Keep the stage's best weights, gather evidence for the next, save."""
    chosen = state.best or state.ema
    if chosen is not None:
        state.method.load_state_dict(chosen)
    if len(state.validation):
        state.report.say(f"{state.stage.name}: validation {state.best_mm:.3f} mm")
    state.evidence, state.best_evidence = state.best_evidence, Evidence()
    state.reached_mm = state.best_mm
    state.at, state.step = state.at + 1, 0
    state.optimizer, state.ema, state.best, state.best_mm = None, None, None, float("inf")
    save(state)


def _mean(losses: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    return {k: float(torch.stack([x[k].float() for x in losses]).mean()) for k in losses[0]}


# ---------------------------------------------------------------------- batches and steps


def batches_of(state: State, first: int) -> Iterator[tuple[Batch, bool]]:
    """Batches from step ``first`` on, each with whether a checkpoint may be taken before it."""
    stage, seed, device = state.stage, state.config.seed, state.device

    def collected(step: int) -> Iterator[Batch] | None:
        cases = DrawnCases(state.store, seed, state.at, step, 4) if state.taught else state.store
        return state.method.collect(cases, stage, np.random.default_rng([seed, state.at, step, 2]))

    if (stream := collected(first)) is None:
        examples = Examples(state.method, stage, state.at, state.store, seed)
        loader = batches(examples, first, stage.steps, workers=worker_count(state.config), pin=device.type == "cuda")
        yield from ((_to(batch, device), True) for batch in loader)
        return
    step = first
    while step < stage.steps:
        taken = 0
        for batch in stream or ():
            set_modes(state.method, stage)
            yield _to(batch, device), taken == 0
            taken, step = taken + 1, step + 1
            if taken == ROUND or step == stage.steps:
                break
        if taken == 0:
            raise RuntimeError(f"stage {stage.name}: collect gave no batch")
        stream = collected(step) if step < stage.steps else None


def _to(batch: Mapping[str, torch.Tensor], device: torch.device) -> Batch:
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


def optimiser_step(state: State, batch: Batch) -> dict[str, torch.Tensor]:
    """One optimiser step; random numbers inside the network depend on (seed, stage, step) only."""
    stage = state.stage
    torch.manual_seed(int(np.random.default_rng([state.config.seed, state.at, state.step, 3]).integers(2**62)))
    set_rate(state.optimizer, stage, state.step)
    logs = state.method.loss(batch, stage)
    logs["loss"].backward()
    if stage.clip_norm is not None:
        parameters = [p for g in state.optimizer.param_groups for p in g["params"]]
        nn.utils.clip_grad_norm_(parameters, stage.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.method.after_step(stage)
    if state.ema is not None:
        assert stage.ema is not None
        average(state.ema, state.method, stage.ema, state.step)
    return {k: v.detach() for k, v in logs.items()}


# ---------------------------------------------------------------------- minutes into steps


def fix_steps(state: State) -> None:
    """Measure a stage's throughput on a copy of the method, and write its number of steps into the config."""
    assert state.config.minutes is not None
    shares = [s.share for s in state.stages[state.at :]]
    left = state.config.minutes * 60 - state.seconds
    budget = max(0.0, left) * state.stage.share / max(1e-9, sum(shares))
    began, worked = time.monotonic(), time.process_time()
    per_validation = _time_validation(state)
    per_step = _time_step(state, min(20.0, 0.05 * budget))
    state.step_s = max(state.step_s, per_step)
    took = time.monotonic() - began
    share = (time.process_time() - worked) / max(took, 1e-9)
    if state.device.type == "cpu" and share < BUSY:
        state.report.say(f"{state.stage.name}: the machine is busy: this training gets {share:.0%} of one core")
    budget -= took
    validations = int(np.clip(VALIDATION_SHARE * budget / max(1e-9, per_validation), 1, VALIDATIONS))
    steps = max(1, int((budget - validations * per_validation) / per_step))
    state.stages[state.at] = replace(state.stage, steps=steps)
    state.config.stage_steps[state.stage.name] = steps
    state.config.validate_every[state.stage.name] = max(1, -(-steps // validations))
    state.report.say(f"{state.stage.name}: {per_step * 1000:.0f} ms a step, so {counted(steps, 'step')}")
    part = state.stage.share / max(1e-9, sum(s.share for s in state.stages))
    needed = int(np.ceil(max(state.config.minutes, 1.2 * ENOUGH_STEPS * per_step / max(part, 1e-9) / 60)))
    first, state.advised = not state.advised, max(state.advised, needed if steps < FEWEST_STEPS else 0)
    if first and state.advised:  # what later stages need is said at the end
        state.report.say(
            f"{state.stage.name}: {counted(steps, 'step')} can teach hardly anything; for {ENOUGH_STEPS} the whole "
            f"training would take {needed} minutes: give `minutes` {needed} or more"
        )


def _time_step(state: State, seconds: float) -> float:
    """Seconds a step, on a copy of the method."""
    probe = copy.copy(state)
    probe.method = copy.deepcopy(state.method)
    probe.report = Reporter(quiet=True)
    set_modes(probe.method, probe.stage)
    probe.optimizer = make_optimizer(probe.method, probe.stage)
    probe.ema = weights_of(probe.method) if probe.stage.ema is not None else None
    probe.stages = [replace(s, steps=10**4) for s in state.stages]
    marks, begins = [time.monotonic()], []
    for batch, begin in batches_of(probe, 0):
        optimiser_step(probe, batch)
        if state.device.type == "cuda":
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
    return (time.monotonic() - began) * min(len(state.validation), state.config.validation_cases)
