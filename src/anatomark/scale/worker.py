"""What predicts the cases of a cohort, one after the other: in a process of its own, or an actor of a cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anatomark.cases.case import Case
from anatomark.errors import reason_of
from anatomark.io.parts import Helper
from anatomark.model.predict import AnyModel, Left, load, write_outcome
from anatomark.model.run_cases import Outcome, run_cases
from anatomark.scale.journal import DONE, FAILED, Row


@dataclass(frozen=True)
class Work:
    """What a worker is to do. It pickles. ``model``, ``device``, ``threads`` and ``tta`` as ``load`` takes them;
    ``lock``: of the part of ``out`` that is written."""

    model: str
    out: Path
    lock: Path
    device: str | None = None
    threads: int = 1
    tta: int = 1


@dataclass(frozen=True)
class Task:
    """A case that is ``left`` to do, and the ``key`` of its image. It pickles."""

    case: Case
    key: str
    left: Left


@dataclass(frozen=True)
class Done:
    """The row of a task, and what is to be known of it beside."""

    row: Row
    notes: tuple[str, ...] = ()


class Worker:
    """Does tasks. Raises InputError where the model cannot be loaded."""

    def __init__(self, work: Work):
        self.work = work
        self.model: AnyModel = load(work.model, work.device, work.threads, work.tta)
        self.helper = Helper(work.out, work.lock)

    def close(self) -> None:
        """What this process writes from now on is no part of the work."""
        self.helper.close()

    def do(self, task: Task) -> Done:
        """Read the image, find its landmarks, write the files. Any error is a failed row."""
        try:
            outcome = next(iter(run_cases(lambda _, image: self.model.predict(image), [task.case])))
        except Exception as error:
            outcome = Outcome(task.case, reason=reason_of(error))
        try:
            made = write_outcome(outcome, self.model, task.key, self.work.out, task.left)
        except Exception as error:
            return Done(failed(task, self.model.hash, reason_of(error)))
        if made.state == "failed":
            return Done(failed(task, self.model.hash, made.reason))
        seconds = round(made.seconds, 4)
        row = Row(task.case.id, DONE, "", seconds, bool(made.flags), self.model.hash, task.key, time.time())
        return Done(row, made.notes)


def failed(task: Task, model: str, reason: str) -> Row:
    """The row of a task that failed, by the model of this hash."""
    return Row(task.case.id, FAILED, reason, model=model, key=task.key, at=time.time())


def adopted(case: Case, key: str, facts: Mapping[str, object]) -> Row:
    """The row of a case that was finished before there was a journal, by the ``facts`` of its JSON."""
    seconds = facts.get("seconds")
    took = float(seconds) if isinstance(seconds, int | float) else 0.0
    return Row(case.id, DONE, "", took, facts.get("flagged") is True, str(facts.get("model")), key, time.time())
