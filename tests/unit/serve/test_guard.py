"""Who is let through to the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from anatomark.errors import InputError
from anatomark.serve.guard import Guard, is_loopback, own_names
from anatomark.serve.start import Service, bound, url_of


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers the length of the body."""
    count, more = 0, True
    while more:
        message = await receive()
        count, more = count + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(count).encode()})


def ask(guard: Guard, path: str = "/v1/health", **arguments: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8777") as client:
            return await client.post(path, **arguments)

    return asyncio.run(once())


def guard(**changes: Any) -> Guard:
    given: dict[str, Any] = {"names": own_names("127.0.0.1"), "by_address": False, "token": None, "most_bytes": 1000}
    return Guard(_echo, **{**given, **changes})


@pytest.mark.parametrize("host", ["127.0.0.1:8777", "localhost", "LOCALHOST:1", "[::1]:8777"])
def test_it_answers_to_its_own_names(host: str) -> None:
    answer = ask(guard(), headers={"host": host}, content=b"abc")
    assert (answer.status_code, answer.text) == (200, "3")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8777", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_another_host_is_refused(host: str) -> None:
    assert ask(guard(), headers={"host": host}).status_code == 421


def test_a_service_for_others_answers_to_addresses_and_allowed_names() -> None:
    names = own_names("0.0.0.0", ["Scanner.example"])
    open_to_all = guard(names=names, by_address=True)
    for host in ("10.0.0.1:8777", "[fe80::1]", "scanner.example", "localhost"):
        assert ask(open_to_all, headers={"host": host}).status_code == 200
    assert ask(open_to_all, headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8777"])
def test_another_origin_is_refused(origin: str) -> None:
    answer = ask(guard(), headers={"origin": origin})
    assert answer.status_code == 403 and "may not use" in answer.json()["error"]
    assert ask(guard(), headers={"origin": "http://127.0.0.1:8777"}).status_code == 200


def test_a_token_is_asked_for() -> None:
    secret = guard(token="correct horse")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "correct horse"}):
        assert ask(secret, headers=headers).status_code == 401
    assert ask(secret, headers={"authorization": "Bearer correct horse"}).status_code == 200
    for path in ("/", "/page/app.js", "/docs", "/openapi.json"):  # the same for everybody
        assert ask(secret, path).status_code == 200
    for path in ("/v1/cases", "/info/", "/pages", "/page/../v1/cases"):
        assert ask(secret, path).status_code == 401


def test_a_large_body_is_refused_whether_or_not_it_says_so() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    assert ask(guard(), content=b"x" * 1000).text == "1000"
    assert ask(guard(), content=b"x" * 1001).status_code == 413
    with pytest.raises(Exception, match="413"):  # FastAPI answers it
        ask(guard(), content=chunks())


def test_a_body_without_files_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anatomark.serve.guard.MOST_TEXT", 500)
    files = {"content-type": "Multipart/form-data; boundary=x"}
    assert ask(guard(), content=b"x" * 501, headers=files).text == "501"
    assert ask(guard(), content=b"x" * 501, headers={"content-type": "application/json"}).status_code == 413
    assert ask(guard(), content=b"x" * 500).text == "500"


def test_without_a_token_only_this_machine_may_reach_it() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.5"):
        assert is_loopback(host)
        Service(host).check()
    for host in ("0.0.0.0", "::", "10.0.0.1", "", "example.org"):
        with pytest.raises(InputError, match="token"):
            Service(host).check()
        Service(host, token="long enough").check()
    for token in ("short", " " * 9, "line\nand line", "gr\u00fc\u00dfe vom Rhein"):
        with pytest.raises(InputError, match="at least 8"):
            Service(token=token).check()


def test_the_url_is_that_of_a_browser() -> None:
    assert url_of(Service(), 80) == "http://127.0.0.1:80/"
    assert url_of(Service("0.0.0.0", token="a-secret-word"), 1) == "http://127.0.0.1:1/#token=a-secret-word"
    assert url_of(Service(token="a+b#c&d%20 e"), 1) == "http://127.0.0.1:1/#token=a%2Bb%23c%26d%2520%20e"
    assert url_of(Service("::1"), 1) == "http://[::1]:1/"


def test_a_port_that_is_taken_is_said() -> None:
    with bound("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=f"`port` {port} of 127.0.0.1"):
            bound("127.0.0.1", port)
