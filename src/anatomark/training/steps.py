"""Batches for a stage, and one optimiser step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from anatomark.methods.base import Batch
from anatomark.model.config import RunConfig
from anatomark.training.examples import Examples, StoredCases, batches
from anatomark.training.optimise import average, set_modes, set_rate
from anatomark.training.state import State

ROUND = 50  # batches from one call of Method.collect


def sources(state: State, first: int) -> Iterator[tuple[Batch, bool]]:
    """Batches from step ``first`` on, each with whether a checkpoint may be taken before it."""
    stage, seed, device = state.stage, state.config.seed, state.fabric.device
    cases = StoredCases(state.store)

    def collected(step: int) -> Iterator[Batch] | None:
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
    logs = state.wrapped.loss(batch, stage)
    state.fabric.backward(logs["loss"])
    if stage.clip_norm is not None:
        parameters = [p for g in state.optimizer.param_groups for p in g["params"]]
        nn.utils.clip_grad_norm_(parameters, stage.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.method.after_step(stage)
    if state.ema is not None:
        average(state.ema, state.method, float(stage.options["ema"]), state.step)
    return {k: v.detach() for k, v in logs.items()}


def worker_count(config: RunConfig) -> int:
    """Data workers: as configured, else some where a GPU trains and none where the CPU does."""
    if config.workers is not None:
        return config.workers
    cores = os.cpu_count() or 1
    return min(8, cores - 1) if torch.cuda.is_available() and config.device != "cpu" else 0
