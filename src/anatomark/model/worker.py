"""What predicts images one after the other, with the model loaded once: in a worker process of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anatomark.cases.case import Case
from anatomark.engine.base import Lost
from anatomark.errors import reason_of
from anatomark.io.parts import Helper
from anatomark.model.predict import AnyModel, Left, Predicted, load, path_of, write_outcome
from anatomark.model.run_cases import Outcome, run_cases


@dataclass(frozen=True)
class Task:
    """A case that is ``left`` to do, and the ``key`` of its image. It pickles."""

    case: Case
    key: str
    left: Left


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

    def start(self) -> Worker:
        """In the worker's process. Raises InputError where the model cannot be loaded."""
        return Worker(self)


class Worker:
    """Does tasks, one by one: reads the image, finds its landmarks, writes the files. Any error is a failure with its
    reason."""

    def __init__(self, work: Work):
        self.work = work
        self.model: AnyModel = load(work.model, work.device, work.threads, work.tta)
        self.helper = Helper(work.out, work.lock)

    def __call__(self, task: Task) -> Predicted:
        try:
            outcome = next(iter(run_cases(lambda _, image: self.model.predict(image), [task.case])))
        except Exception as error:
            outcome = Outcome(task.case, reason=reason_of(error))
        try:
            return write_outcome(outcome, self.model, task.key, self.work.out, task.left)
        except Exception as error:
            return failure(task.case, reason_of(error))

    def close(self) -> None:
        """What this process writes from now on is no part of the work."""
        self.helper.close()


def failure(case: Case, reason: str) -> Predicted:
    """That a case failed."""
    return Predicted(case.id, path_of(case), "failed", reason=reason)


def outcome_of(task: Task, answer: Predicted | Lost) -> Predicted:
    """What became of a task that was given to an engine."""
    if isinstance(answer, Lost):
        how = f"twice ended the process that predicts it ({answer.how})"
        return failure(task.case, f"{task.case.path}: {how}; too large for the memory, or damaged")
    return answer
