"""A service in memory that answers as HTTP version 1 does, for the page's tests: made-up cases, nothing on disk."""

from __future__ import annotations

import copy
import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import nibabel as nib
import numpy as np

PAGE = Path(__file__).parents[2] / "src" / "anatomark" / "serve" / "page"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


@dataclass
class Case:
    """image: values by index, (x, y, z) or (y, x); affine: index to LPS mm, 2D: spacing; points: name -> mm of the frame."""

    id: str
    image: np.ndarray
    affine: np.ndarray | float
    points: dict
    flags: list = field(default_factory=list)
    suspicion: float | None = 0.5
    state: str = "open"

    def __post_init__(self):
        self.version = 1
        self.landmarks = [
            {
                "name": name,
                "state": "predicted" if point is not None else "missing",
                "position": None if point is None else [float(value) for value in point],
                "predicted": None if point is None else [float(value) for value in point],
                "moved_mm": None,
                "score": None if point is None else round(0.97 - 0.61 * (k * 7 % 10) / 10, 3),
                "radius90": None if point is None else 1.5 + (k * 5 % 7) / 3,
                "definition": f"The {k + 1}. made-up landmark, the middle of a blob.",
            }
            for k, (name, point) in enumerate(self.points.items())
        ]

    def nifti(self) -> bytes:
        if self.image.ndim == 2:
            affine = np.diag([self.affine, self.affine, 1, 1])
            data = self.image.T[:, ::-1, None]
        else:
            affine = np.diag([-1, -1, 1, 1]) @ self.affine
            data = self.image
        image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
        image.set_sform(affine, 1)
        return gzip.compress(image.to_bytes(), 1)

    def row(self) -> dict:
        decided = sum(point["state"] in ("moved", "confirmed", "absent") for point in self.landmarks)
        return {
            "id": self.id, "state": self.state, "flags": self.flags, "suspicion": self.suspicion,
            "flagged": bool(self.flags), "decided": decided, "points": len(self.landmarks), "reason": "",
        }  # fmt: skip

    def facts(self) -> dict:
        flat = self.image.ndim == 2
        size = self.image.shape[::-1] if flat else self.image.shape
        spacing = [self.affine] * 2 if flat else np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return self.row() | {"size": list(size), "spacing": spacing, "unit_known": True}

    def document(self) -> dict:
        return {
            "case": self.id, "frame": "image" if self.image.ndim == 2 else "LPS", "unit": "mm", "state": self.state,
            "person": "", "points": copy.deepcopy(self.landmarks), "flags": self.flags, "suspicion": self.suspicion,
        }  # fmt: skip

    def change(self, points: list[dict]) -> None:
        by_name = {point["name"]: point for point in self.landmarks}
        for given in points:
            point = by_name[given["name"]]
            point["state"], point["position"] = given["state"], given["position"]
            known = point["position"] is not None and point["predicted"] is not None
            away = np.linalg.norm(np.subtract(point["position"], point["predicted"])) if known else None
            point["moved_mm"] = float(away) if known and given["state"] != "predicted" else None
        self.version += 1

    @property
    def etag(self) -> str:
        return f'"{self.version}"'


class Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, cases: list[Case], can_train: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cases = {case.id: case for case in cases}
        self.can_train = can_train
        self.lock = threading.Lock()
        self.images: dict[str, bytes] = {}
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def point(self, case: str, name: str) -> dict:
        return next(point for point in self.cases[case].landmarks if point["name"] == name)

    def review(self) -> dict:
        first = next(iter(self.cases.values()))
        landmarks = [{key: point[key] for key in ("name", "definition")} for point in first.landmarks]
        return {
            "dimension": first.image.ndim, "model": "made-up", "landmarks": landmarks, "can_train": self.can_train,
            "out": "corrected", "person": "",
        }  # fmt: skip

    def queue(self, order: str) -> dict:
        rows = [case.row() for case in self.cases.values()]
        if order == "suspicion":
            rows.sort(key=lambda row: -(np.inf if row["suspicion"] is None else row["suspicion"]))
        else:
            rows.sort(key=lambda row: row["id"])
        moved = [point["moved_mm"] for case in self.cases.values() for point in case.landmarks if point["moved_mm"]]
        count = {state: sum(row["state"] == state for row in rows) for state in ("done", "open", "skipped")}
        mean = float(np.mean(moved)) if moved else None
        return {"cases": rows, "figures": count | {"mean_moved_mm": mean, "outside_radius": 0, "moved": len(moved)}}

    def job(self) -> dict:
        self.asked += 1
        figures = [{"step": 10 * k, "error": 4 / (k + 1) + 1} for k in range(1, self.asked + 1)]
        state = "done" if self.asked > 3 else "running"
        return {
            "id": "1", "state": state, "progress": min(1, self.asked / 4), "lines": ["reading 4 cases", "step 10"],
            "figures": figures, "model": "retrained-1" if state == "done" else None, "error": "",
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, kind="application/json", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        match parts:
            case [""] | ["page"]:
                self.answer(b"", 307, Location="/page/index.html")
            case ["page", *rest]:
                file = PAGE.joinpath(*rest)
                self.answer(file.read_bytes(), kind=TYPES[file.suffix])
            case ["v1", "review"]:
                self.answer(self.server.review())
            case ["v1", "cases"]:
                self.answer(self.server.queue(parse_qs(url.query).get("order", ["suspicion"])[0]))
            case ["v1", "cases", id]:
                self.answer(self.server.cases[id].facts())
            case ["v1", "cases", id, "image.nii.gz"]:
                if id not in self.server.images:
                    self.server.images[id] = self.server.cases[id].nifti()
                self.answer(self.server.images[id], kind="application/gzip")
            case ["v1", "cases", id, "landmarks"]:
                case = self.server.cases[id]
                self.answer(case.document(), ETag=case.etag)
            case ["v1", "jobs"]:
                self.answer({"jobs": []})
            case ["v1", "jobs", _]:
                self.answer(self.server.job())
            case _:
                self.answer({"error": f"nothing is at {url.path}"}, 404)

    def body(self):
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")

    def do_PUT(self):
        case = self.server.cases[unquote(self.path.split("/")[3])]
        body = self.body()
        with self.server.lock:
            if self.headers.get("If-Match") != case.etag:
                return self.answer({"error": "changed meanwhile", "current": case.document()}, 412)
            case.change(body["points"])
            return self.answer(case.document(), ETag=case.etag)

    def do_POST(self):
        parts = self.path.split("/")
        body = self.body()
        if parts[2] == "train":
            self.server.asked = 0
            return self.answer({"id": "1"}, 202)
        case, what = self.server.cases[unquote(parts[3])], parts[4]
        case.state = {"done": "done", "skip": "skipped", "reopen": "open"}[what]
        left = [point for point in case.landmarks if what == "done" and point["state"] == "predicted"]
        case.change([point | {"state": "confirmed"} for point in left])
        following = [row["id"] for row in self.server.queue("suspicion")["cases"] if row["state"] == "open"]
        document = case.document() | {"next": following[0] if following else None, "person": body.get("person")}
        return self.answer(document, ETag=case.etag)
