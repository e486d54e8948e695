"""A shard: every N-th case of a sorted list, for machines that know nothing of each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anatomark.cases.case import Case
from anatomark.errors import InputError

MOST = 100_000


@dataclass(frozen=True)
class Shard:
    """The part ``number`` (from 1) ``of`` so many; 1 of 1 is everything."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``3/20``. Raises InputError."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]) <= MOST:
            raise InputError(f"`shard` {text[:40]!r}: give K/N, such as 3/20: the third of twenty, K from 1 to N")
        return cls(int(match[1]), int(match[2]))

    def pick(self, cases: Sequence[Case]) -> list[Case]:
        """Its cases, by their position in the list sorted by name: the shards are disjoint and together all."""
        return sorted(cases, key=lambda case: case.id)[self.number - 1 :: self.of]

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
