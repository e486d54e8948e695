"""Training examples of a stage, the same whatever the number of workers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from anatomark.cases.store import CaseStore
from anatomark.methods.base import Batch, Method, Stage, TrainingCase


class StoredCases(Sequence[TrainingCase]):
    """The cases of a store as a sequence whose items are opened when they are asked for."""

    def __init__(self, store: CaseStore):
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    @overload
    def __getitem__(self, i: int) -> TrainingCase: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[TrainingCase]: ...
    def __getitem__(self, i: int | slice) -> TrainingCase | Sequence[TrainingCase]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        k = i % len(self)
        return TrainingCase(self.store.ids[k], self.store.images(k), self.store.landmarks[k])

    def __iter__(self) -> Iterator[TrainingCase]:
        return (self[i] for i in range(len(self)))


class Examples(Dataset[Batch]):
    """Example i of a stage: its case from a seeded shuffle of the cases for each round, made with
    ``rng(seed, stage, i)``; so it is the same whatever the number of workers."""

    def __init__(self, method: Method, stage: Stage, number: int, store: CaseStore, seed: int):
        self.method, self.stage, self.number = weightless(method), stage, number
        self.cases, self.seed = StoredCases(store), seed

    def __getitem__(self, i: int) -> Batch:
        turn, at = divmod(i, len(self.cases))
        case = self.cases[int(_shuffled(self.seed, self.number, turn, len(self.cases))[at])]
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


def weightless(method: Method) -> Method:
    """A copy of a method for data workers: its own facts and CPU copies of its buffers, but empty parameters."""
    memo: dict[int, Any] = {}
    for p in method.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    for b in method.buffers():
        memo[id(b)] = b.detach().to("cpu", copy=True)
    return copy.deepcopy(method, memo)
