"""Speaks HTTP version 1 of ``anatomark serve`` and ``anatomark review``. Standard library only, no Slicer: positions
are RAS mm, as Slicer's points and volumes are."""

from __future__ import annotations

import http.client
import json
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

SAME_MM = 1e-4  # nearer than this a point was not moved
TIMEOUT_S = 900.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServiceError(Exception):
    """What the service refused, or that it does not answer: one line to show. ``status`` of HTTP, 0 without answer."""

    def __init__(self, reason: str, status: int = 0):
        self.status = status
        super().__init__(reason)


class Client:
    """A service at ``url``, with its ``token`` where it asks for one."""

    def __init__(self, url: str, token: str = ""):
        address, _, fragment = url.strip().partition("#")  # as the page's address is printed
        self.url = address.rstrip("/")
        self.token = token or unquote(fragment.partition("token=")[2])
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise ServiceError(f"{self.url} is no address: {error}") from None
        if parts.scheme not in ("http", "https"):
            raise ServiceError(f"{self.url or 'nothing'} is no address of a service, such as http://127.0.0.1:8777")
        proxies = {} if parts.hostname in LOOPBACK else None
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler(proxies)).open

    def models(self) -> list[dict[str, Any]]:
        """Name, dimension and landmarks of each model."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/models")
        return found

    def next_case(self, after: str = "") -> str | None:
        """The most suspicious open case, or the one that comes behind the case ``after``, round and round; None where
        there is no other. Cases whose image cannot be shown are left out."""
        rows = self._json("GET", "/v1/cases?order=suspicion")["cases"]
        at = next((i + 1 for i, row in enumerate(rows) if row["id"] == after and row["state"] == "open"), 0)
        rows = [row for row in rows[at:] + rows[:at] if row["state"] == "open" and not row["reason"]]
        return next((row["id"] for row in rows if row["id"] != after), None)

    def case(self, id: str) -> Case:
        """A case's points, as they stand."""
        facts = self._json("GET", f"/v1/cases/{quote(id, safe='')}")
        if facts["reason"]:
            raise ServiceError(f"{id} cannot be shown: {facts['reason']}")
        return self._case(facts, *self._ask("GET", f"/v1/cases/{quote(id, safe='')}/landmarks"))

    def image(self, id: str, folder: str) -> str:
        """Write a case's image into a folder; the file's path."""
        data, _ = self._ask("GET", f"/v1/cases/{quote(id, safe='')}/image.nii.gz")
        path = Path(folder) / "image.nii.gz"
        path.write_bytes(data)
        return str(path)

    def save(self, case: Case, positions: dict[str, Any], absent: set[str], person: str = "") -> Case:
        """Save what was changed since ``case`` was read; the case as it then stands. Raises ServiceError, with the
        status 412 where somebody else was faster: then read the case again."""
        body = {"person": person, "points": case.changes(positions, absent)}
        path = f"/v1/cases/{quote(case.id, safe='')}/landmarks"
        return self._case(case.facts, *self._ask("PUT", path, body, {"If-Match": case.etag}))

    def done(self, case: Case, person: str = "") -> str | None:
        """The case is finished, what is still predicted in it is right; the next open case."""
        path = f"/v1/cases/{quote(case.id, safe='')}/done"
        data, _ = self._ask("POST", path, {"person": person}, {"If-Match": case.etag})
        found: str | None = self._read(data)["next"]
        return found

    def predict(self, model: str, file: str, spacing: str = "") -> bytes:
        """The landmarks of an image file, as a markups file of 3D Slicer."""
        boundary = secrets.token_hex(16)
        ending = "".join(Path(file).suffixes[-2:])
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image{ending}"\r\n\r\n'
        form = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="spacing"\r\n\r\n{spacing}\r\n'
        body = head.encode() + Path(file).read_bytes() + form.encode() + f"--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Accept": "application/vnd.slicer.mrk+json",
        }
        return self._ask("POST", f"/v1/models/{quote(model, safe='')}/predict", body, headers)[0]

    def _case(self, facts: dict[str, Any], data: bytes, headers: Any) -> Case:
        return Case(facts, self._read(data), headers["ETag"])

    def _json(self, method: str, path: str) -> Any:
        return self._read(self._ask(method, path)[0])

    def _read(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise ServiceError(f"{self.url} answers, but it is no service of anatomark") from None

    def _ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[bytes, Any]:
        """The body and the headers of an answer. Raises ServiceError."""
        sent = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        try:
            request = urllib.request.Request(self.url + path, body, sent, method=method)
            with self._open(request, timeout=TIMEOUT_S) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            raise ServiceError(_reason(error), error.code) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServiceError(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from None


class Case:
    """A case's points as they were read: ``etag`` says of which version."""

    def __init__(self, facts: dict[str, Any], document: dict[str, Any], etag: str):
        self.facts, self.document, self.etag = facts, document, etag
        self.id: str = document["case"]

    @property
    def points(self) -> list[dict[str, Any]]:
        """``name``, ``state``, ``definition``, and ``position``: RAS mm of the served image, or None."""
        return [{**p, "position": self._ras(p["position"])} for p in self.document["points"]]

    def changes(self, positions: dict[str, Any], absent: set[str]) -> list[dict[str, Any]]:
        """What is to be saved where the points now stand at ``positions`` (RAS mm, None for those without one), and
        these are ``absent``: points that were moved, placed, removed or marked since. Raises ServiceError for a point
        of another name than the case's landmarks."""
        names = [point["name"] for point in self.points]
        if strange := sorted({*positions, *absent}.difference(names)):
            raise ServiceError(f"{strange[0]} is no landmark of this case: rename that point, or remove it")
        changed = []
        for point in self.points:
            name, before = point["name"], point["position"]
            now = None if name in absent else positions.get(name)
            if name in absent:
                if point["state"] != "absent":
                    changed.append({"name": name, "state": "absent", "position": None})
            elif now is None:
                if before is not None:
                    changed.append({"name": name, "state": "missing", "position": None})
            elif before is None or max(abs(a - b) for a, b in zip(now, before)) > SAME_MM:  # noqa: B905 - Python 3.9
                changed.append({"name": name, "state": "moved", "position": self._frame(now)})
        return changed

    def _ras(self, position: Any) -> list[float] | None:
        if position is None:
            return None
        if self.document["frame"] == "LPS":
            return [-position[0], -position[1], position[2]]
        (x, y), height = self.facts["origin"], (self.facts["size"][1] - 1) * self.facts["spacing"][1]
        return [position[0] - x, height - (position[1] - y), 0.0]

    def _frame(self, ras: Any) -> list[float]:
        if self.document["frame"] == "LPS":
            return [-ras[0], -ras[1], ras[2]]
        (x, y), height = self.facts["origin"], (self.facts["size"][1] - 1) * self.facts["spacing"][1]
        return [ras[0] + x, height - ras[1] + y]


def _reason(error: urllib.error.HTTPError) -> str:
    """The service's own words for why it refused."""
    try:
        said = json.loads(error.read())["error"]
    except (ValueError, KeyError, TypeError, OSError):
        said = f"the service answered {error.code} {error.reason}"
    return str(said)
