"""Worker processes: their queue, their ends. The stand-in for a worker answers what it is told to."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from anatomark.errors import InputError
from anatomark.serve import pool
from anatomark.serve.pool import Failed, Full, Workers

STAND_IN = """
given = {!r}, {!r}
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["what"] == "describe":
        bad = asked["model"].startswith("bad")
        said = {{"error": "no such model"}} if bad else {{"model": {{"name": asked["model"].split("/")[-1]}}}}
    else:
        time.sleep(asked.get("sleep", 0))
        if asked.get("end"):
            os._exit(3)
        said = {{"text": str(os.getpid())}}
        said.update(asked.get("said", {{}}))
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CODE", STAND_IN)


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(["runs/m"], 2, most_waiting=4, timeout=2)
    workers.start()
    yield workers
    workers.close()


def ask(workers: Workers, *requests: dict[str, Any]) -> list[Any]:
    """The answers, or the errors, to requests that come at once."""

    async def all_of_them() -> list[Any]:
        asked = [workers.ask({"what": "predict", **request}) for request in requests]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)

    return asyncio.run(all_of_them())


def test_models_are_described_once(workers: Workers) -> None:
    assert workers.models == {"m": {"name": "m", "path": "runs/m"}}
    assert workers.add("runs/n")["path"] == "runs/n" and list(workers.models) == ["m", "n"]
    with pytest.raises(InputError, match="no such model"):
        workers.add("bad")


def test_a_model_that_cannot_be_loaded_and_two_of_one_name_are_refused() -> None:
    for models, said in ((["bad"], "no such model"), (["a/m", "b/m"], "two models are called 'm': a/m and b/m")):
        with pytest.raises(InputError, match=said):
            (refused := Workers(models)).start()
        refused.close()


def test_requests_wait_for_a_free_worker_but_not_too_many(workers: Workers) -> None:
    answers = ask(workers, *({"sleep": 0.1} for _ in range(6)))
    good = [answer["text"] for answer in answers if isinstance(answer, dict)]
    assert len(good) == 4 and all(isinstance(answer, Full) for answer in answers[4:])
    assert workers.pending == 0 and isinstance(ask(workers, {})[0], dict)


def test_what_a_worker_says_of_an_error_is_passed_on(workers: Workers) -> None:
    error, fault = ask(
        workers, {"said": {"error": "damaged", "status": 400}}, {"said": {"fault": "odd", "status": 400}}
    )
    assert (str(error), error.status, str(fault), fault.status) == ("damaged", 400, "odd", 500)


def test_one_that_ends_costs_its_request_alone(workers: Workers) -> None:
    ended, good = ask(workers, {"end": True}, {})
    assert isinstance(ended, Failed) and ended.status == 500 and "exit 3" in str(ended)
    assert isinstance(good, dict)
    assert [type(answer) for answer in ask(workers, {"end": True}, {"end": True})] == [Failed, Failed]
    assert all(isinstance(answer, dict) for answer in ask(workers, {}, {}, {}, {}))


def test_one_that_takes_too_long_is_ended(workers: Workers) -> None:
    began = time.monotonic()
    late = ask(workers, {"sleep": 60})[0]
    assert (late.status, time.monotonic() - began < 30) == (504, True) and "longer than 2 s" in str(late)
    assert isinstance(ask(workers, {})[0], dict)


def test_one_that_is_killed_while_idle_costs_nothing(workers: Workers) -> None:
    pids = {int(ask(workers, {})[0]["text"]) for _ in range(6)}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    after = ask(workers, {}, {})
    assert all(isinstance(answer, dict) for answer in after)
    assert not pids & {int(answer["text"]) for answer in after}


def test_all_end_with_the_service_even_with_requests_that_wait() -> None:
    workers = Workers(["m"], 1, most_waiting=8, timeout=60)
    workers.start()

    async def closed() -> list[Any]:
        asked = [asyncio.ensure_future(workers.ask({"what": "predict", "sleep": 60})) for _ in range(3)]
        await asyncio.sleep(0.5)
        children = psutil.Process().children()
        workers.close()
        psutil.wait_procs(children, timeout=10)
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)

    answers = asyncio.run(closed())
    assert all(isinstance(answer, Failed | asyncio.CancelledError) for answer in answers)


def test_a_worker_that_had_ended_unseen_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    one = pool.Process(None)
    first = one.ask({"what": "predict"}, 5)["text"]
    assert one.process is not None
    monkeypatch.setattr(one.process, "poll", lambda: None)  # as if nobody had noticed
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait()
    try:
        assert one.ask({"what": "predict"}, 5)["text"] != first
    finally:
        one.end()
