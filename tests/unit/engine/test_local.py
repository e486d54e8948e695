"""Each item is answered once, few are taken ahead, and what ends its process twice is lost."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from functools import partial

import pytest

from anatomark.engine.base import Lost
from anatomark.engine.local import Processes
from anatomark.errors import InputError


def test_few_items_are_taken_ahead() -> None:
    taken: list[float] = []

    def items() -> Iterator[float]:
        for k in range(40):
            taken.append(k)
            yield float(k)

    answers = Processes(2)(partial(partial, math.sqrt), items())
    first = next(answers)
    time.sleep(0.5)
    assert len(taken) <= 5  # two answers for each worker, and the one that was taken
    assert sorted([first, *answers]) == [(k, math.sqrt(k)) for k in range(40)]


def test_an_item_that_ends_its_process_is_lost_and_others_go_on() -> None:
    def items() -> Iterator[int]:
        yield from (3, 3)

    assert [*Processes(1)(partial(partial, os._exit), items())] == [(3, Lost("exit 3"))] * 2


def test_a_worker_that_cannot_start_ends_all() -> None:
    with pytest.raises(InputError, match="ValueError: invalid literal"):
        next(Processes(2)(partial(int, "x"), [1]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"ends before it does anything \(exit 3\)"):
        next(Processes(1)(partial(os._exit, 3), [1]))


def test_nothing_to_do_starts_nothing() -> None:
    assert [*Processes(2)(partial(os._exit, 3), [])] == []
