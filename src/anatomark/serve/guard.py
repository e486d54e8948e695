"""What every request passes first: host, origin, token, size of the body; and the headers of each answer."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/page/", "/docs", "/openapi.json")  # code and descriptions, the same for everybody: no token is asked for
MOST_TEXT = 16 << 20  # bytes of a body that holds no files: thousands of points have less than one
DRAINED, DRAIN_S = 64 << 20, 10.0  # of a body that is refused, so that its sender comes to read why
# nothing comes from elsewhere
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach the address or name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def own_names(host: str, more: Sequence[str] = ()) -> set[str]:
    """The names by which a service bound to ``host`` may be called: this machine's, and ``more``."""
    names = {*LOOPBACK, host, *more}
    if not is_loopback(host):
        names |= {socket.gethostname(), socket.getfqdn()}
    return {name.lower() for name in names}


class Guard:
    """Lets through to ``app`` what is called by one of ``names`` (or by an address, where ``by_address``), comes from
    no other site, holds the ``token``, where there is one, and has a body of at most ``most_bytes``, without files of
    at most ``MOST_TEXT``."""

    def __init__(self, app: ASGIApp, *, names: set[str], by_address: bool, token: str | None, most_bytes: int) -> None:
        self.app, self.names, self.by_address = app, names, by_address
        self.token, self.most_bytes = None if token is None else token.strip(), most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {k for k, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own]
                if b"cache-control" not in own:
                    more.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        status, reason = self.refusal(scope["path"], headers)
        if status:
            await _drain(receive)
            await _refuse(answer, status, reason)
            return
        await self.app(scope, self._limited(receive, self._most(headers)), answer)

    def refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """A status and the reason why a request is refused; 0 where it is not."""
        host = headers.get("host", "")
        if not self._is_ours(_name(host)):
            return 421, f"the service is not called {host[:80]!r}; names are allowed where it is started"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return 403, f"a page of {origin[:80]!r} may not use this service"
        if self.token is not None and not (path == "/" or path.startswith(OPEN)) and not self._knows(headers):
            return 401, "a token is needed: Authorization: Bearer TOKEN"
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > (most := self._most(headers)):
            return 413, _too_large(most)
        return 0, ""

    def _most(self, headers: dict[str, str]) -> int:
        with_files = headers.get("content-type", "").lower().startswith("multipart/")
        return self.most_bytes if with_files else min(self.most_bytes, MOST_TEXT)

    def _is_ours(self, name: str) -> bool:
        if name in self.names:
            return True
        if self.by_address:
            with suppress(ValueError):
                ipaddress.ip_address(name)
                return True
        return False

    def _knows(self, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), (self.token or "").encode())

    @staticmethod
    def _limited(receive: Receive, most: int) -> Receive:
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                await _drain(receive)
                raise HTTPException(413, _too_large(most))
            return message

        return limited


def _too_large(most: int) -> str:
    return f"the body is larger than {most / 2**20:g} MB, the most that this service takes"


def _name(host: str) -> str:
    """The host without its port: ``[::1]:80`` gives ``::1``."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


async def _drain(receive: Receive) -> None:
    """Read on for a while and forget it: a connection that is closed while its sender still sends loses the answer."""
    taken, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while more and taken < DRAINED:
                message = await receive()
                taken += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
