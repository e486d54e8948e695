"""The replay memory of the agents: episodes, and transitions drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anatomark.methods.base import Batch
from anatomark.methods.dqn.moves import TRAIL


@dataclass(frozen=True)
class Played:
    """An episode: ``frames`` (T + 1, A, px, ..., px), and K transitions by ``time`` and ``agent``."""

    frames: torch.Tensor
    time: torch.Tensor
    agent: torch.Tensor
    head: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    arrived: torch.Tensor

    def state(self, k: int) -> torch.Tensor:
        """(5, px, ..., px) the four frames before a transition and the one after it."""
        times = (self.time[k] + torch.arange(2 - TRAIL - 1, 2)).clamp(min=0)
        return self.frames[times, self.agent[k]]


def drawn(memory: Sequence[Played], size: int, rng: np.random.Generator) -> Batch:
    """Transitions drawn uniformly from all episodes."""
    ends = np.cumsum([len(p.action) for p in memory])
    chosen = rng.integers(ends[-1], size=size)
    of = np.searchsorted(ends, chosen, side="right")
    picked = [(memory[p], int(k - ends[p])) for p, k in zip(of, chosen, strict=True)]  # counted from the end
    keys = ("head", "action", "reward", "arrived")
    batch = {key: torch.stack([getattr(p, key)[k] for p, k in picked]) for key in keys}
    return {"frames": torch.stack([p.state(k) for p, k in picked]), **batch}
