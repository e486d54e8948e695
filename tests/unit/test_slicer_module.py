"""The part of the module for 3D Slicer that needs no Slicer. That it speaks to a service: test_service.py."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "slicer" / "AnatomarkReview"
sys.path.insert(0, str(MODULE))
from AnatomarkReviewLib.client import Case, Client, ServiceError  # noqa: E402


def case(frame: str, *points: tuple[str, str, Any]) -> Case:
    facts = {"origin": [10.0, 20.0], "size": [5, 4], "spacing": [2.0, 3.0]}
    rows = [{"name": n, "state": s, "position": p, "definition": ""} for n, s, p in points]
    return Case(facts, {"case": "c", "frame": frame, "points": rows}, '"1"')


def test_positions_are_ras_of_the_served_image() -> None:
    head = case("LPS", ("a", "predicted", [1.0, 2.0, 3.0]))
    assert head.points[0]["position"] == [-1.0, -2.0, 3.0]
    assert head.changes({"a": [-1.0, -2.5, 3.0]}, set()) == [
        {"name": "a", "state": "moved", "position": [1.0, 2.5, 3.0]}
    ]
    flat = case("image", ("a", "predicted", [12.0, 29.0]))  # first column but one, last row
    assert flat.points[0]["position"] == [2.0, 0.0, 0.0]
    assert flat.changes({"a": [4.0, 3.0, 0.0]}, set()) == [{"name": "a", "state": "moved", "position": [14.0, 26.0]}]


def test_only_what_was_changed_is_saved() -> None:
    before = case(
        "LPS", ("still", "predicted", [1, 2, 3]), ("gone", "predicted", [1, 2, 3]), ("found", "missing", None),
        ("removed", "moved", [1, 2, 3]), ("never", "missing", None), ("away", "absent", None), ("back", "absent", None),
    )  # fmt: skip
    now = {"still": [-1.00001, -2, 3], "found": [0, 0, 1], "back": [0, 0, 2]}
    changes = {c["name"]: (c["state"], c["position"]) for c in before.changes(now, {"gone", "away"})}
    assert changes == {
        "gone": ("absent", None),
        "found": ("moved", [0, 0, 1]),
        "removed": ("missing", None),
        "back": ("moved", [0, 0, 2]),
    }


def test_the_address_that_review_prints_is_taken_as_it_is() -> None:
    client = Client(" http://127.0.0.1:8777/#token=abc ")
    assert (client.url, client.token) == ("http://127.0.0.1:8777", "abc")
    assert Client("http://127.0.0.1:8777/#token=a%2Bb%23c").token == "a+b#c"
    with pytest.raises(ServiceError, match="does not answer"):
        Client("http://127.0.0.1:9").models()


class Answering(Client):
    """A client of a service that answers this to everything."""

    def __init__(self, answer: Any):
        super().__init__("http://127.0.0.1:8777")
        self.answer = answer

    def _ask(self, *request: Any, **more: Any) -> tuple[bytes, Any]:
        return self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode(), {}


def test_the_next_case_is_the_one_behind() -> None:
    rows = [("a", "open", ""), ("b", "open", "damaged"), ("c", "done", ""), ("d", "open", ""), ("e", "open", "")]
    client = Answering({"cases": [{"id": i, "state": s, "reason": r} for i, s, r in rows]})
    assert [client.next_case(after) for after in ("", "a", "d", "e", "c", "b")] == ["a", "d", "e", "a", "a", "d"]
    assert Answering({"cases": [{"id": "a", "state": "open", "reason": ""}]}).next_case("a") is None
    with pytest.raises(ServiceError, match="b cannot be shown: damaged"):
        Answering({"id": "b", "reason": "damaged"}).case("b")


def test_a_point_of_another_name_is_not_lost_in_silence() -> None:
    with pytest.raises(ServiceError, match="F-1 is no landmark of this case"):
        case("LPS", ("a", "missing", None)).changes({"F-1": [1.0, 2.0, 3.0]}, set())


@pytest.mark.parametrize("url", ["", "127.0.0.1:8777", "file:///etc", "http://[::1", "http://127.0.0.1:port"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(ServiceError, match=r"is no address|does not answer"):
        Client(url).models()


def test_another_service_is_said() -> None:
    with pytest.raises(ServiceError, match="no service of anatomark"):
        Answering(b"<html>").models()


def test_it_needs_the_standard_library_alone() -> None:
    inside = {"qt", "slicer", "AnatomarkReviewLib"}  # of 3D Slicer, and its own
    for file in MODULE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert tops <= (inside if file.parent == MODULE else set()), file
