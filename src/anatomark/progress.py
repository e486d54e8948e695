"""How long work shows itself: a live bar on a terminal, plain lines elsewhere, nothing where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Reporter:
    """Messages and bars on a console (standard error). ``quiet`` shows nothing; ``every_s`` spaces the plain lines;
    ``spell`` turns the parameters that messages name in backticks into what the reader knows them by; ``pace`` is
    told once of each bar how fast it goes: its title, the units done, seconds for a unit."""

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        every_s: float = 15.0,
        spell: Callable[[str], str] = str,
        pace: Callable[[str, int, float], None] | None = None,
    ):
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet, self.every_s, self.spell, self.pace = quiet, every_s, spell, pace

    def say(self, line: str) -> None:
        if not self.quiet:
            self.console.print(self.spell(line), markup=False)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar for ``total`` units of which ``done`` are done."""
        live = self.console.is_terminal and not self.quiet
        if not live:
            yield Bar(self, title, total, done)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
        with Progress(*columns, TextColumn("{task.fields[facts]}"), console=self.console, transient=True) as progress:
            yield Bar(self, title, total, done, progress)


class Bar:
    """One bar; ``update`` may be called as often as one likes. ``silent``: it was not for some seconds."""

    SILENT_S = 4.0
    MEASURED = 5  # units from the first update on, after which the pace is known; those before are slow

    def __init__(self, reporter: Reporter, title: str, total: int, done: int, progress: Progress | None = None):
        self.reporter, self.title, self.total = reporter, title, total
        self.progress = progress
        self.task = progress.add_task(title, total=total, completed=done, facts="") if progress else None
        self.started, self.first = time.monotonic(), done
        self.shown = self.updated = self.started
        self.mark: tuple[int, float] | None = None  # units and time of the first update
        self.paced = False

    @property
    def silent(self) -> bool:
        return time.monotonic() - self.updated > self.SILENT_S

    def update(self, done: int, facts: str = "") -> None:
        """``done`` units are done; ``facts`` stands behind them, with the time left."""
        self.updated = now = time.monotonic()
        text = "  ".join(t for t in (facts, self._left(done, now)) if t)
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, facts=text)
        elif not self.reporter.quiet and now - self.shown >= self.reporter.every_s:
            self.shown = now
            self.reporter.say(f"{self.title}  {done}/{self.total}  {text}")
        self._measure(done, now)

    def _measure(self, done: int, now: float) -> None:
        if self.mark is None:
            self.mark = done, now
        elif not self.paced and done - self.mark[0] >= self.MEASURED:
            self.paced = True
            if self.reporter.pace is not None:
                self.reporter.pace(self.title, done, (now - self.mark[1]) / (done - self.mark[0]))

    def _left(self, done: int, now: float) -> str:
        if done <= self.first or done >= self.total:
            return ""
        return f"{clock((now - self.started) / (done - self.first) * (self.total - done))} left"


def clock(seconds: float) -> str:
    """``75`` as ``1:15``; hours where there are any."""
    whole = round(seconds)
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
