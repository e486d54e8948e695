"""Worker processes of the service: a queue before them, a limit of time for each request; one that ends is replaced."""

from __future__ import annotations

import asyncio
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from anatomark.errors import InputError
from anatomark.io.child import end_child, start_child

READY = b"ready\n"
GONE_S = 0.2  # a process that ends so soon had ended before it was asked
START_S = 600.0  # until the libraries are loaded, or a model
CODE = "import sys; sys.path[:] = {!r}; from anatomark.serve.worker import serve; serve({!r})"


class Full(Exception):
    """Too many requests wait."""


class Failed(Exception):
    """A request that its worker could not answer: the reason in a line, and the ``status`` of HTTP."""

    def __init__(self, reason: str, status: int):
        self.status = status
        super().__init__(reason)


class Process:
    """One worker process, started when it is first asked, and anew where it ended."""

    def __init__(self, device: str | None):
        self.device, self.late = device, False
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to one request. Raises Failed where the process ended, or was ended after ``seconds``."""
        began = time.monotonic()
        try:
            return self._ask(request, seconds)
        except Failed:
            if time.monotonic() - began > GONE_S:
                raise
            self.end()
            return self._ask(request, seconds)  # it had ended before, unseen

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        line = b""
        timer = self._timer(seconds)
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:  # it has ended
            pass
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            raise self._failed(seconds)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self) -> None:
        """Start the process and wait until it is ready. Raises Failed."""
        self.end()
        try:
            self.process = start_child(CODE.format(sys.path, self.device))
        except OSError as error:
            raise Failed(f"no process could be started: {error.strerror or error}", 500) from None
        assert self.process.stdout is not None
        timer = self._timer(START_S)
        line = self.process.stdout.readline()
        timer.cancel()
        if line != READY:
            raise self._failed(START_S)

    def end(self) -> None:
        """End the process, if there is one."""
        process, self.process = self.process, None
        end_child(process)

    def _timer(self, seconds: float) -> threading.Timer:
        self.late = False
        timer = threading.Timer(seconds, self._too_late, (self.process,))
        timer.daemon = True
        timer.start()
        return timer

    def _too_late(self, process: subprocess.Popen[bytes]) -> None:
        self.late = True
        process.kill()

    def _failed(self, seconds: float) -> Failed:
        assert self.process is not None
        code = self.process.wait()
        if self.late:
            return Failed(f"the prediction took longer than {seconds:g} s and was ended", 504)
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return Failed(f"the process that predicted was ended ({name}); another takes its place: ask again", 500)


class Workers:
    """``count`` processes that predict with the ``models`` (paths or zoo names). At most ``most_waiting`` requests are
    under way or wait; each may take ``timeout`` s."""

    def __init__(
        self,
        models: Sequence[str],
        count: int = 1,
        *,
        device: str | None = None,
        most_waiting: int = 32,
        timeout: float = 600.0,
    ):
        self.count, self.most_waiting, self.timeout = count, most_waiting, timeout
        self.models: dict[str, dict[str, Any]] = {}  # facts by name, with their path
        self._given = list(models)
        self._pending, self._lock = 0, threading.Lock()
        self._processes = [Process(device) for _ in range(count)]
        self._idle: queue.SimpleQueue[Process] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._ended = False

    @property
    def pending(self) -> int:
        """Requests that are under way or wait."""
        return self._pending

    def check_room(self) -> None:
        """Raises Full where too many requests wait."""
        if self._pending >= self.most_waiting:
            raise Full(
                f"{self._pending} requests are under way or wait, as many as this service takes; come again later"
            )

    def start(self) -> None:
        """Start a worker, load the models in it, and have the others do so meanwhile. Raises InputError for a model
        that cannot be loaded, and for two of one name."""
        first = self._processes[0]
        for path in self._given:
            facts = {**self._described(first, path), "path": path}
            if twice := self.models.get(facts["name"]):
                raise InputError(
                    f"two models are called {facts['name']!r}: {twice['path']} and {path}; rename a folder"
                )
            self.models[facts["name"]] = facts
        self._idle.put(first)
        for process in self._processes[1:]:
            self._warm_up(process)

    def add(self, path: str) -> dict[str, Any]:
        """Make another model known; its facts. Raises InputError or Failed."""
        answer = self._asked({"what": "describe", "model": path})
        if "model" not in answer:
            raise InputError(answer.get("error") or answer.get("fault"))
        facts: dict[str, Any] = {**answer["model"], "path": path}
        self.models[facts["name"]] = facts
        return facts

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer of the next free worker. Raises Full at once where too many wait, Failed where the worker ended,
        and for what it could not do."""
        with self._lock:
            self.check_room()
            self._pending += 1
        future = self._threads.submit(self._asked, request)
        future.add_done_callback(self._done)
        answer = await asyncio.shield(asyncio.wrap_future(future))  # it goes on where the client does not wait
        if "fault" in answer or "error" in answer:
            raise Failed(answer.get("error") or answer["fault"], answer["status"] if "error" in answer else 500)
        return answer

    def close(self) -> None:
        """End all processes."""
        self._ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            if process.process is not None:
                process.process.kill()
        for _ in range(self.count):  # threads that wait for one
            self._idle.put(Process(None))

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._idle.get()
        if self._ended:
            raise Failed("the service is closing", 503)
        try:
            answer = process.ask(request, self.timeout)
        except Failed:
            self._warm_up(process)
            raise
        self._idle.put(process)
        return answer

    def _warm_up(self, process: Process) -> None:
        if not self._ended:  # a thread of its own: those of requests may all be waiting
            threading.Thread(target=self._warm, args=(process,), daemon=True).start()

    def _warm(self, process: Process) -> None:
        """Start a process, load the models, and offer it."""
        with suppress(Failed, InputError):  # the next request tries again
            for facts in list(self.models.values()):
                self._described(process, facts["path"])
        if not self._ended:
            self._idle.put(process)

    def _described(self, process: Process, path: str) -> dict[str, Any]:
        try:
            answer = process.ask({"what": "describe", "model": path}, START_S)
        except Failed as error:
            raise InputError(f"{path}: cannot be loaded: {error}") from None
        if "model" not in answer:
            raise InputError(answer.get("error") or answer.get("fault"))
        facts: dict[str, Any] = answer["model"]
        return facts
