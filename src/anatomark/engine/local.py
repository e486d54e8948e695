"""Worker processes on this machine, spoken to over pipes; one that dies is replaced."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anatomark.engine.base import MOST_KILLS, MOST_STARTS, Answer, Item, Lost, answer_to, never_started
from anatomark.errors import InputError
from anatomark.io.child import end_child, start_child

CODE = "import sys; sys.path[:] = {!r}; from anatomark.engine.local import serve; serve()"
QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Processes:
    """An :class:`~anatomark.engine.base.Engine` of ``workers`` processes."""

    workers: int

    def __call__(
        self, start: Callable[[], Callable[[Item], Answer]], items: Iterable[Item], threads: int = 1
    ) -> Iterator[tuple[Item, Answer | Lost]]:
        waiting, lock = iter(items), threading.Lock()
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        room = threading.Semaphore(2 * self.workers)  # answers that nobody has taken yet
        processes = [Process(start, threads) for _ in range(self.workers)]
        stop = threading.Event()

        def run(process: Process) -> None:
            try:
                while room.acquire() and not stop.is_set():
                    with lock:
                        item = next(waiting, stop)
                    if item is stop:
                        break
                    answers.put((item, _answer(process, item, stop)))
            except Exception as error:
                answers.put(error)
            answers.put(None)

        runners = [threading.Thread(target=run, args=(process,), daemon=True) for process in processes]
        for thread in runners:
            thread.start()
        try:
            running = self.workers
            while running:
                answer = answers.get()
                if isinstance(answer, Exception):
                    raise answer
                if answer is None:
                    running -= 1
                else:
                    room.release()
                    yield answer
        finally:
            stop.set()
            room.release(self.workers)
            for process in processes:
                process.kill()
            for thread in runners:
                thread.join()
            for process in processes:
                process.end()


def cores() -> int:
    """The processor cores that this process may use, by its affinity and its control group."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = QUOTA.read_text(encoding="ascii").split()
        there = min(there, max(1, int(quota) // int(period)))
    return there


def _answer(process: Process, item: Any, stop: threading.Event) -> Any:
    ended = ""
    for _ in range(MOST_KILLS):
        try:
            return process.ask(item)
        except Ended as error:
            ended = str(error)
            if stop.is_set():
                break
    return Lost(ended)


class Ended(Exception):
    """The process ended before its answer: how."""


class Process:
    """A worker process, started when it is first asked, and anew where it ended."""

    def __init__(self, start: Callable[[], Any], threads: int):
        self.start, self.threads = start, threads
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, item: object) -> Any:
        """The answer to an item. Raises Ended where the process ended meanwhile, InputError where none can be
        started."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        return self._asked(item)

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
                self.process = start_child(CODE.format(sys.path), self.threads)
                refused = self._asked(self.start)
            except OSError as error:
                raise InputError(f"no worker process could be started: {error.strerror or error}") from None
            except Ended as error:
                if not left:
                    raise never_started(str(error)) from None
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
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):  # ended, perhaps in the middle of an answer
            self.process.kill()
            code = self.process.wait()
            raise Ended(signal.Signals(-code).name if code < 0 else f"exit {code}") from None


def serve() -> None:
    """Be a worker: what to do, then items, on standard input, until it ends or the parent does. What libraries print
    goes nowhere."""
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
        do, refused = answer_to(pickle.load(requests))
        answer(refused)
        while do is not None:
            answer(do(pickle.load(requests)))


def _end_with(parent: int) -> None:
    """End this process where its parent was killed: another run may take its place."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
