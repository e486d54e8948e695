"""Training examples of a stage, the same whatever the number of workers."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from anatomark.cases.case import Case
from anatomark.methods.base import Batch, Stage
from anatomark.model.compose import Composed
from anatomark.model.config import RunConfig
from anatomark.training.teach import drawn

M = TypeVar("M", bound=nn.Module)


class Examples(Dataset[Batch]):
    """Example i of a stage: its case from a seeded shuffle of the cases for each round, made with
    ``rng(seed, stage, i)``; so it is the same whatever the number of workers."""

    def __init__(self, method: Composed, stage: Stage, number: int, cases: Sequence[Case], seed: int):
        self.method, self.stage, self.number = weightless(method), stage, number
        self.cases, self.seed = cases, seed

    def __getitem__(self, i: int) -> Batch:
        turn, at = divmod(i, len(self.cases))
        case = self.cases[int(_shuffled(self.seed, self.number, turn, len(self.cases))[at])]
        case = drawn(case, self.seed, self.number, i, 5)
        return self.method.examples(case, self.stage, np.random.default_rng([self.seed, self.number, i]))


@lru_cache(maxsize=4)
def _shuffled(seed: int, number: int, turn: int, count: int) -> Any:
    return np.random.default_rng([seed, number, turn, 1]).permutation(count)


def batches(examples: Examples, first: int, steps: int, *, workers: int = 0, pin: bool = False) -> DataLoader[Batch]:
    """Loader of stacked batches ``first`` ... ``steps`` - 1 (batch s holds examples s * batch ...), in order."""
    size = examples.stage.batch
    sampler = [list(range(s * size, (s + 1) * size)) for s in range(first, steps)]
    return DataLoader(
        examples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=default_collate,
        pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=4 if workers else None,
    )


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)


def weightless(method: M) -> M:
    """A copy of a method for data workers: its own facts and CPU copies of its buffers, but empty parameters."""
    memo: dict[int, Any] = {}
    for p in method.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    for b in method.buffers():
        memo[id(b)] = b.detach().to("cpu", copy=True)
    return copy.deepcopy(method, memo)


def worker_count(config: RunConfig) -> int:
    """Data workers: as configured, else some where a GPU trains and none where the CPU does."""
    if config.workers is not None:
        return config.workers
    cores = os.cpu_count() or 1
    return min(8, cores - 1) if torch.cuda.is_available() and config.device != "cpu" else 0
