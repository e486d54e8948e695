"""Worker processes on this machine: each predicts one case after the other, and is replaced where it dies."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from anatomark.errors import InputError, reason_of
from anatomark.io.child import end_child, start_child
from anatomark.scale.worker import Done, Task, Work, Worker, failed

CODE = "import sys; sys.path[:] = {!r}; from anatomark.scale.local import serve; serve()"
MOST_KILLS = 2  # workers that a case may take along
MOST_STARTS = 3  # in a row that may fail


def in_processes(work: Work, model: str, tasks: Iterable[Task], count: int) -> Iterator[Done]:
    """Do the tasks in ``count`` processes, by the model of this hash; each as it is done, in any order. A case whose
    worker ends is given to another once, then it is a failed row. Raises InputError where no worker can be started, or
    loads the model."""
    waiting, lock = iter(tasks), threading.Lock()
    answers: queue.SimpleQueue[Done | Exception | None] = queue.SimpleQueue()
    processes = [Process(work) for _ in range(count)]
    stop = threading.Event()

    def run(process: Process) -> None:
        try:
            while not stop.is_set():
                with lock:
                    task = next(waiting, None)
                if task is None:
                    break
                answers.put(_done(process, task, model, stop))
        except Exception as error:
            answers.put(error)
        answers.put(None)

    threads = [threading.Thread(target=run, args=(process,), daemon=True) for process in processes]
    for thread in threads:
        thread.start()
    try:
        running = count
        while running:
            answer = answers.get()
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                running -= 1
            else:
                yield answer
    finally:
        stop.set()
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()
        for process in processes:
            process.end()


def _done(process: Process, task: Task, model: str, stop: threading.Event) -> Done:
    ended = ""
    for _ in range(MOST_KILLS):
        try:
            return process.ask(task)
        except Ended as error:
            ended = str(error)
            if stop.is_set():
                break
    reason = (
        f"{task.case.path}: twice ended the process that predicts it ({ended}); too large for the memory, or damaged"
    )
    return Done(failed(task, model, reason))


class Ended(Exception):
    """The process ended before its answer: how."""


class Process:
    """A worker process, started when it is first asked, and anew where it ended."""

    def __init__(self, work: Work):
        self.work = work
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, task: Task) -> Done:
        """Have a task done. Raises Ended where the process ended meanwhile, InputError where none can be started."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        answer: Done = self._asked(task)
        return answer

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill()

    def end(self) -> None:
        """End the process, and wait until it has."""
        process, self.process = self.process, None
        end_child(process)

    def _start(self) -> None:
        for left in reversed(range(MOST_STARTS)):
            self.end()
            try:
                self.process = start_child(CODE.format(sys.path), self.work.threads)
                refused = self._asked(self.work)
            except OSError as error:
                raise InputError(f"no worker process could be started: {error.strerror or error}") from None
            except Ended as error:
                if not left:
                    raise InputError(f"a worker process ends before its first case ({error})") from None
                continue
            if refused:
                raise InputError(refused)
            return

    def _asked(self, request: object) -> Any:
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (
            OSError,
            EOFError,
            pickle.UnpicklingError,
            ValueError,
        ):  # it has ended, perhaps in the middle of an answer
            self.process.kill()
            code = self.process.wait()
            raise Ended(signal.Signals(-code).name if code < 0 else f"exit {code}") from None


def serve() -> None:
    """Be a worker: work, then tasks, on standard input, until it ends or the parent does. What libraries print goes
    nowhere."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def answer(what: object) -> None:
        pickle.dump(what, answers)
        answers.flush()

    with suppress(EOFError, BrokenPipeError):
        try:
            worker = Worker(pickle.load(requests))
        except Exception as error:
            answer(reason_of(error))
            return
        answer("")
        while True:
            answer(worker.do(pickle.load(requests)))


def _end_with(parent: int) -> None:
    """End this process where its parent was killed: another run may take its place."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
