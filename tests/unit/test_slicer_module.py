"""The part of the module for 3D Slicer that needs no Slicer. That it speaks to a service: test_service.py."""

from __future__ import annotations

import ast
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
    with pytest.raises(ServiceError, match="does not answer"):
        Client("http://127.0.0.1:9").models()


def test_it_needs_the_standard_library_alone() -> None:
    inside = {"qt", "slicer", "AnatomarkReviewLib"}  # of 3D Slicer, and its own
    for file in MODULE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert tops <= (inside if file.parent == MODULE else set()), file
