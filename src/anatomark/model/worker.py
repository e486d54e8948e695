"""What predicts images one after the other, with the model loaded once: in a worker process of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anatomark.cases.case import Case
from anatomark.engine.base import Engine, Lost
from anatomark.engine.local import Processes, cores
from anatomark.errors import reason_of
from anatomark.io.claim import Claim
from anatomark.io.parts import Helper
from anatomark.io.reader_process import bytes_of
from anatomark.model.device import find_device
from anatomark.model.memory import keep_freed_memory
from anatomark.model.predict import AnyModel, Predicted, Task, load, path_of, write_outcome
from anatomark.model.run_cases import Outcome, run_cases
from anatomark.progress import Reporter

MANY = 50  # images from which on the start of workers pays
WORKER_BYTES, IMAGE_TIMES = 2e9, 50  # memory of a worker, and what is added for the bytes of the largest file
MEMORY = Path("/proc/meminfo")


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
        keep_freed_memory()
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


@dataclass(frozen=True)
class Spread:
    """Does the tasks of :func:`~anatomark.model.predict.predict` in :func:`usual_workers` on this machine, where these
    are several; all as :class:`Work` has it."""

    model: str
    out: Path
    device: str | None = None
    threads: int = 1
    tta: int = 1

    def __call__(self, tasks: Sequence[Task], claim: Claim, report: Reporter) -> Iterator[Predicted] | None:
        workers = usual_workers([path_of(task.case) for task in tasks], self.device, self.threads)
        return None if workers == 1 else self._done(tasks, claim, Processes(workers), report)

    def _done(self, tasks: Sequence[Task], claim: Claim, engine: Engine, report: Reporter) -> Iterator[Predicted]:
        work = Work(self.model, self.out, claim.lock, self.device, self.threads, self.tta)
        report.say(f"{len(tasks)} images: {engine.workers} workers")
        with report.bar("predict", len(tasks)) as bar:
            for count, (task, answer) in enumerate(engine(work.start, tasks, self.threads), 1):
                yield outcome_of(task, answer)
                bar.update(count, task.case.id)


def usual_workers(images: Sequence[Path], device: str | None, threads: int = 1) -> int:
    """How many workers predict so many images where nobody says: as many as the cores that may be used hold processes
    of so many ``threads``, and as memory is free for; 1, which is this process, for fewer than ``MANY`` images, and
    where the model runs on a GPU."""
    if len(images) < MANY or find_device(device).type != "cpu":
        return 1
    most = cores() // threads
    with suppress(OSError, ValueError, StopIteration):  # not every system tells
        lines = MEMORY.read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
        most = min(most, int(free // (WORKER_BYTES + IMAGE_TIMES * max(map(bytes_of, images)))))
    return max(1, most)
