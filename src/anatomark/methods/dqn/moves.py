"""What an agent may do, what it is paid for it, and when it stops: the environment of deep Q-learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array

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
