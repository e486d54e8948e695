"""One training stage from where the state stands to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from anatomark.progress import Bar
from anatomark.training.budget import VALIDATIONS, fix_steps
from anatomark.training.optimise import make_optimizer, set_modes, weights_of
from anatomark.training.state import State, log, save, write_setup
from anatomark.training.steps import optimiser_step, sources

SAVE_EVERY_S = 60.0
SHORTEST_INTERVAL = 50  # steps between validations


def train_stage(state: State) -> None:
    """Train the current stage to its end from where the state stands, then move on to the next."""
    resumed = state.optimizer is not None
    state.method.begin(state.stage, state.before.get(state.stage.name, state.evidence))
    if not resumed:
        if state.config.minutes is not None and state.stage.name not in state.config.stage_steps:
            fix_steps(state)
        state.optimizer = make_optimizer(state.method, state.stage)
        state.ema = weights_of(state.method) if "ema" in state.stage.options else None
        write_setup(state)
    state.optimizer = state.fabric.setup_optimizers(state.optimizer)
    set_modes(state.method, state.stage)
    every = state.config.validate_every.get(state.stage.name) or _interval(state.stage.steps)
    title = f"{state.stage.name} ({state.at + 1}/{len(state.stages)})"
    with state.report.bar(title, state.stage.steps, state.step) as bar:
        _loop(state, every, bar)
    _end_stage(state)


def _loop(state: State, every: int, bar: Bar) -> None:
    stage, losses = state.stage, []
    val = next((f"val {r['val_mm']} mm" for r in reversed(state.rows) if r["val_mm"] != ""), "")
    for batch, boundary in sources(state, state.step):
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
        if state.step % 10 == 0 or state.step == stage.steps:
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
            state.found = residuals.evidence(state.stage.name, state.validation.independent)
    set_modes(state.method, state.stage)
    return mm


def _end_stage(state: State) -> None:
    """Keep the stage's best weights, gather evidence for the next, save."""
    chosen = state.best or state.ema
    if chosen is not None:
        state.method.load_state_dict(chosen)
    if len(state.validation):
        state.report.say(f"{state.stage.name}: validation {state.best_mm:.3f} mm")
    state.evidence, state.found = state.found, {}
    state.at, state.step = state.at + 1, 0
    state.optimizer, state.ema, state.best, state.best_mm = None, None, None, float("inf")
    save(state)


def _mean(losses: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    return {k: float(torch.stack([x[k].float() for x in losses]).mean()) for k in losses[0]}
