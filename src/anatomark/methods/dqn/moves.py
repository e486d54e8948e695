"""What an agent may do, what it is paid for it, when it stops, and the replay memory: the environment of deep
Q-learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.methods.base import Batch

TRAIL = 4  # positions that an agent remembers
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


def directions(ndim: int) -> Array:
    """(2 D, D) unit moves: +x, -x, +y, -y[, +z, -z]."""
    return np.stack([sign * axis for axis in np.eye(ndim) for sign in (1.0, -1.0)])


def reward(before: Array, after: Array, truth: Array, step: Array) -> Array:
    """(M,) by how much a move brought agents (M, D) closer to the truth (M, D), in steps (M,), within -1 ... 1."""
    gain = np.linalg.norm(before - truth, axis=1) - np.linalg.norm(after - truth, axis=1)
    return np.asarray(np.clip(gain / step, -1, 1))


class Walk:
    """M agents at ``at`` (M, D) world mm that go where their moves are worth most, with smaller and smaller ``steps``.

    An agent oscillates when it comes back to one of its last four positions (or cannot leave the image, or has made
    ``most`` moves). It then goes on with the next step from that position of the cycle whose best move is worth least:
    nowhere else is there as little to gain (Ghesu et al. 2016; Alansary et al. 2019). After the last step it is done.
    """

    def __init__(self, at: Array, steps: Sequence[float] | Array, most: int):
        m, d = at.shape
        self.at, self.steps, self.most = at.copy(), np.asarray(steps, dtype=np.float64), most
        self.scale: Numbers = np.zeros(m, dtype=np.int64)
        self.made: Numbers = np.zeros(m, dtype=np.int64)
        self.trail = np.full((m, TRAIL, d), np.nan)  # newest first
        self.worth = np.full((m, TRAIL), np.inf)
        self._ways = directions(d)

    @property
    def active(self) -> Numbers:
        return np.flatnonzero(self.scale < len(self.steps))

    def go(self, q: Array, allowed: Callable[[Array, Array], Flags]) -> None:
        """One move of all active agents; ``q`` (A, 2 D) what their moves are worth, ``allowed`` (A, D), (A, D) ->
        (A,) whether they may go from the first positions to the second. Those that begin anew with a smaller step have
        ``made`` no move."""
        rows = self.active
        step = self.steps[self.scale[rows]][:, None]
        self.trail[rows, 1:], self.worth[rows, 1:] = self.trail[rows, :-1], self.worth[rows, :-1]
        self.trail[rows, 0], self.worth[rows, 0] = self.at[rows], q.max(1)
        there = self.at[rows] + step * self._ways[q.argmax(1)]
        there = np.where(allowed(self.at[rows], there)[:, None], there, self.at[rows])
        with np.errstate(invalid="ignore"):
            back = np.abs(self.trail[rows] - there[:, None]).max(2) < 0.25 * step
        self.made[rows] += 1
        ends = back.any(1) | (self.made[rows] >= self.most)
        first = np.where(back.any(1), back.argmax(1), TRAIL - 1)  # the cycle is what lies between
        cycle = np.where(np.arange(TRAIL) <= first[:, None], self.worth[rows], np.inf)
        rest = self.trail[rows, cycle.argmin(1)]
        self.at[rows] = np.where(ends[:, None], rest, there)
        over = rows[ends]
        self.scale[over] += 1
        self.made[over], self.trail[over], self.worth[over] = 0, np.nan, np.inf


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
