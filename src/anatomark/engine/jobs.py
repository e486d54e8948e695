"""Jobs that know nothing of each other, such as trainings: one after the other here, or side by side by an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from anatomark.engine.base import Engine, Lost
from anatomark.errors import InputError, is_users, reason_of
from anatomark.io.parts import Helper
from anatomark.progress import Reporter

T = TypeVar("T")
WIDTH = 200  # characters of a line in a log


@dataclass(frozen=True)
class Job(Generic[T]):
    """``work``, which pickles and tells a reporter how it goes; done elsewhere, that stands in the file ``log``."""

    name: str
    work: Callable[[Reporter], T]
    log: Path


@dataclass(frozen=True)
class Side:
    """Where jobs are done side by side: by an ``engine``, in processes of so many ``threads``. They write into the
    folder ``out``, whose claim has the file ``lock``."""

    engine: Engine
    out: Path
    lock: Path
    threads: int = 1


@dataclass(frozen=True)
class Answer:
    """The ``value`` of a job, or the ``reason`` why there is none, and whether the user can mend that."""

    value: Any = None
    reason: str = ""
    users: bool = True


def done(jobs: Sequence[Job[T]], side: Side | None, report: Reporter) -> Iterator[tuple[int, T]]:
    """The number of each job and what it gave, in the order in which they are done; without a ``side`` here, one after
    the other. What goes wrong in one ends all: raises InputError, RuntimeError where it is our fault."""
    if side is None:
        for k, job in enumerate(jobs):
            report.say(job.name)
            yield k, job.work(report)
        return
    if not jobs:
        return
    report.say(f"{len(jobs)} side by side, at most {side.engine.workers or 'as many as there is room for'} at a time")
    with report.bar("done", len(jobs)) as bar:
        items = [(k, job.work, job.log) for k, job in enumerate(jobs)]
        answers = side.engine(partial(_Doer, side.out, side.lock), items, side.threads)
        for count, ((k, _, log), answer) in enumerate(answers, 1):
            if isinstance(answer, Lost):
                how = f"twice ended its process ({answer.how}); there may be too little memory"
                answer = Answer(reason=f"{jobs[k].name}: {how}, see {log}")
            if answer.reason and answer.users:
                raise InputError(answer.reason)
            if answer.reason:
                raise RuntimeError(f"{answer.reason}, see {log}")
            report.say(f"{jobs[k].name}: done, log: {log}")
            bar.update(count)
            yield k, answer.value


class _Doer:
    """Does jobs in a worker's process."""

    def __init__(self, out: Path, lock: Path):
        self.helper = Helper(out, lock)

    def __call__(self, item: tuple[int, Callable[[Reporter], Any], Path]) -> Answer:
        _, work, log = item
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
                console = Console(file=file, highlight=False, soft_wrap=True, width=WIDTH, no_color=True)
                return Answer(work(Reporter(console)))
        except Exception as error:
            return Answer(None, reason_of(error), is_users(error))

    def close(self) -> None:
        """What this process writes from now on is no part of the work."""
        self.helper.close()
