"""The application without processes: what is offered, and in which words errors come."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from anatomark.serve.app import create_app
from anatomark.serve.pool import Failed, Full, Workers


class Stub(Workers):
    """Workers that say what they are told to."""

    def __init__(self, answer: Any):
        super().__init__(["m"])
        self.models = {"m": {"name": "m", "path": "/secret/m", "landmarks": [], "dimension": 3}}
        self.answer = answer

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"text": self.answer}


def ask(method: str, path: str, answer: Any = "{}", **arguments: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        app = create_app(Stub(answer), names={"localhost"})
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(once())


def test_models_alone_offer_no_review() -> None:
    assert ask("GET", "/v1/health").json()["models"] == ["m"]
    assert "secret" not in ask("GET", "/v1/models").text
    for path in ("/v1/cases", "/v1/review", "/v1/jobs", "/info/"):
        assert ask("GET", path).status_code == 404
    assert ask("GET", "/").headers["location"] == "/docs"
    assert ask("DELETE", "/v1/health").status_code == 405


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [(Full("come again"), 503, "come again"), (Failed("was ended (SIGKILL)", 500), 500, "SIGKILL"),
     (Failed("took longer", 504), 504, "longer"), (ValueError("odd"), 500, "our fault")],
)  # fmt: skip
def test_errors_are_one_line(fault: Exception, status: int, words: str) -> None:
    answer = ask("POST", "/v1/models/m/predict", fault, files={"image": b"x"})
    assert answer.status_code == status and words in answer.json()["error"] and len(answer.json()) == 1
    assert ("retry-after" in answer.headers) == (status == 503)


def test_several_files_are_one_series() -> None:
    files = [("image", (f"{i}.dcm", b"x")) for i in range(3)]
    assert ask("POST", "/v1/models/m/predict", "{}", files=files).status_code == 200
