"""Workers in a Ray cluster: one that is started for the run on this machine, or one that is there."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anatomark.engine.base import MOST_KILLS, MOST_STARTS, Answer, Item, Lost, answer_to, never_started
from anatomark.engine.local import cores
from anatomark.errors import InputError
from anatomark.io.child import THREADS

ANSWERS_S = 10.0
STORE_BYTES = 100 * 2**20  # of a cluster of our own: items and answers are small
EQUAL = {"RAY_worker_niceness": "0"}  # else 15: beside other work our workers would stand still
SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_PROMPT_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """An :class:`~anatomark.engine.base.Engine` of ``workers`` actors. ``address``: of the cluster to join, as
    ``ray start`` prints it, or ``auto``; None: one on this machine for as long as the run. ``gpu``: each worker takes a
    GPU. Raises InputError where Ray is not installed."""

    workers: int
    address: str | None = None
    gpu: bool = False

    def __post_init__(self) -> None:
        before = dict(os.environ)
        os.environ.update(self._words())  # read when ray is imported, and again later
        try:
            _ray()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _words(self) -> dict[str, str]:
        """What Ray is to find in the environment: a token is used where there is one, for `ray start` asks for it."""
        asks = self.address is not None and "RAY_AUTH_MODE" not in os.environ and _has_token()
        return {**SILENT, "RAY_AUTH_MODE": "token"} if asks else SILENT

    def __call__(
        self, start: Callable[[], Callable[[Item], Answer]], items: Iterable[Item], threads: int = 1
    ) -> Iterator[tuple[Item, Answer | Lost]]:
        waiting = iter(items)
        first = [*itertools.islice(waiting, 1)]
        if not first:  # nothing to start anything for
            return
        with self._connected(threads) as ray:
            room = int(ray.cluster_resources().get("CPU", 0)) // threads
            actor = ray.remote(Worker).options(
                num_cpus=threads, num_gpus=int(self.gpu), max_restarts=-1, max_task_retries=0
            )
            what = pickle.dumps(start)
            actors = [actor.remote(os.getcwd(), what) for _ in range(self.workers or max(1, room))]
            yield from _answers(ray, actors, itertools.chain(first, waiting))

    @contextmanager
    def _connected(self, threads: int) -> Iterator[Any]:
        """Ray, as long as it is needed; its words do not reach the terminal."""
        ray, before = _ray(), dict(os.environ)
        folder = tempfile.mkdtemp(prefix="anatomark-ray-")
        how: dict[str, Any] = {"address": self.address}
        if self.address is None:
            how = {
                "address": "local", "num_cpus": (self.workers or cores()) * threads, "include_dashboard": False,
                "object_store_memory": STORE_BYTES, "_temp_dir": folder,
            }  # fmt: skip
            os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in sys.path if p))  # what we find
            os.environ.update(EQUAL)
        os.environ.update(self._words())
        how["runtime_env"] = {"env_vars": dict.fromkeys(THREADS, str(threads))}
        try:
            self._connect(ray, how)
            yield ray
        finally:
            with suppress(Exception):
                ray.shutdown()
            os.environ.clear()
            os.environ.update(before)
            shutil.rmtree(folder, ignore_errors=True)

    def _check_address(self) -> None:
        """Raises InputError at once where nothing answers: Ray itself tries for minutes, aloud."""
        host, _, port = (self.address or "").rpartition(":")
        if self.address in (None, "auto"):
            return
        if not host or not port.isdigit() or "/" in host:
            raise InputError(f"`ray_address` {self.address}: give HOST:PORT, as `ray start` prints it, or auto")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"`ray_address` {self.address}: no cluster answers there: {reason}") from None

    def _connect(self, ray: Any, how: dict[str, Any]) -> None:
        """Raises InputError where there is no cluster, or none can be started; on a busy machine that may take several
        tries."""
        self._check_address()
        for left in reversed(range(1 if self.address else MOST_STARTS)):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    _quiet(ray)
                    ray.init(**how, log_to_driver=False, logging_level=logging.CRITICAL)
                return
            except Exception as error:  # Ray raises many kinds, also plain ones
                with suppress(Exception):
                    ray.shutdown()
                if left:
                    continue
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                where = f"`ray_address` {self.address}" if self.address else "Ray cannot be started"
                raise InputError(f"{where}: {first}") from None


class Worker:
    """An actor that answers one item after the other; what makes the answers is loaded anew after a restart."""

    def __init__(self, folder: str, start: bytes):
        self.folder, self.start = folder, start
        self.do: Callable[[Any], Any] | None = None

    def ready(self) -> str:
        """Why no item can be answered; empty where they can."""
        if self.do is not None:
            return ""
        with suppress(OSError):
            os.chdir(self.folder)
        self.do, refused = answer_to(pickle.loads(self.start))
        return refused

    def answer(self, item: bytes) -> bytes:
        refused = self.ready()
        if self.do is None:
            raise RuntimeError(refused)
        return pickle.dumps(self.do(pickle.loads(item)))


def _answers(ray: Any, actors: list[Any], items: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Each actor has one item at a time, and is asked whether it is ready before its first and after its death: what
    dies while it loads takes no item along."""
    asked: dict[Any, tuple[Any, Given | None]] = {_ready(actor): (actor, None) for actor in actors}
    again: list[Given] = []  # items to be given out once more
    idle: list[Any] = []  # actors that found nothing to do
    given, how = 0, ""  # items under way
    left = True
    while asked and (left or given or again):
        (done,), _ = ray.wait([*asked], num_returns=1)
        actor, item = asked.pop(done)
        if item is None:
            try:
                refused = ray.get(done)
            except ray.exceptions.RayError as error:
                how = type(error).__name__  # the others go on
                continue
            if refused:
                raise InputError(refused)
        else:
            given -= 1
            try:
                yield item.item, pickle.loads(ray.get(done))
            except ray.exceptions.RayTaskError as error:
                raise InputError(f"a worker cannot go on: {error.cause}") from None
            except ray.exceptions.RayError:
                item.kills += 1
                if item.kills < MOST_KILLS:
                    again.append(item)
                    asked |= {_ready(one): (one, None) for one in idle}
                    idle.clear()
                else:
                    yield item.item, Lost("its Ray actor died")
                asked[_ready(actor)] = (actor, None)
                continue
        following = again.pop() if again else next((Given(one) for one in items), None)
        if following is None:
            left = False
            idle.append(actor)
        else:
            given += 1
            asked[actor.answer.remote(pickle.dumps(following.item))] = (actor, following)
    if left or again:
        raise never_started(how)


@dataclass
class Given:
    """An item, and how many workers it took along."""

    item: Any
    kills: int = 0


def _ready(actor: Any) -> Any:
    return actor.ready.options(max_task_retries=MOST_STARTS - 1).remote()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(
            "`engine` ray: Ray is not installed; install it, pip install 'anatomark[ray]', or use `workers`"
        ) from None
    return ray


def _has_token() -> bool:
    """Whether there is a token for a cluster: ``ray start`` writes one into the home folder, newer versions use it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").is_file()


def _quiet(ray: Any) -> None:
    """Worker deaths are told by us; Ray prints them on standard output whatever ``log_to_driver`` says."""
    with suppress(Exception):  # no public switch
        ray._private.worker._worker_logs_enabled = False
