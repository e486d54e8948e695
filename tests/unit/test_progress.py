"""Bars tell how fast they go, once, and when they have said nothing for long."""

from __future__ import annotations

import pytest

from anatomark import progress
from anatomark.progress import Reporter


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(progress, "time", made := Clock())
    return made


def test_the_pace_is_told_once_and_the_first_slow_units_do_not_count(clock: Clock) -> None:
    told: list[tuple[str, int, float]] = []
    with Reporter(quiet=True, pace=lambda *facts: told.append(facts)).bar("stage", 100) as bar:
        clock.now += 60  # what begins a training is slow
        bar.update(10)
        clock.now += 2
        bar.update(12)
        assert told == []
        clock.now += 8
        bar.update(20)
        bar.update(40)
    assert told == [("stage", 20, pytest.approx(1.0))]


def test_a_bar_that_was_not_updated_for_some_seconds_is_silent(clock: Clock) -> None:
    with Reporter(quiet=True).bar("stage", 100) as bar:
        assert not bar.silent
        clock.now += bar.SILENT_S + 1
        assert bar.silent
        bar.update(1)
        assert not bar.silent
