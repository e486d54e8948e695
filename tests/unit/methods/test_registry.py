"""The methods by name: ours, one added in this process, and one of another package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

import tiny
from anatomark import methods
from anatomark.errors import InputError
from anatomark.methods.base import Method, Task
from anatomark.methods.pin.paper import PaperPIN
from anatomark.methods.pin.recommended import PIN

TASK = Task(ndim=3, landmarks=3, cases=4, turned_deg=5.0, radius_mm=30.0, voxel_mm=1.0)


class Plain(Method):
    """Of another package, without presets."""


class Eager(tiny.Tiny):
    @classmethod
    def suits(cls, task: Task) -> str | None:
        return "it is small" if task.landmarks < 5 else None


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table as it is in a new process, of pin alone, and two entry points."""
    monkeypatch.setattr(methods, "TABLE", {"pin": methods.TABLE["pin"]})
    monkeypatch.setattr(methods, "_OURS", ("pin",))
    points = [EntryPoint(n, f"{__name__}:{c}", methods.ENTRY_POINTS) for n, c in (("plain", "Plain"), ("bad", "No"))]
    monkeypatch.setattr(methods, "entry_points", lambda group: points)
    yield


def test_a_class_is_found_by_its_preset() -> None:
    assert methods.presets("pin") == ["recommended", "paper", "paper-single"]
    assert methods.find("pin") is PIN
    assert methods.find("pin", "paper") is methods.find("pin", "paper-single") is PaperPIN
    with pytest.raises(InputError, match=r"no preset 'papr'.*'paper'.*it has: recommended, paper, paper-single"):
        methods.find("pin", "papr")


def test_methods_of_other_packages() -> None:
    assert methods.names() == ["pin", "plain", "bad"]
    assert methods.find("plain").__name__ == "Plain"
    assert methods.presets("plain") == ["recommended"]
    with pytest.raises(InputError, match="'plain' has no preset 'paper'"):
        methods.find("plain", "paper")
    with pytest.raises(InputError, match="'bad' of another package cannot be loaded"):
        methods.find("bad")
    with pytest.raises(InputError, match=r"unknown method 'pn'.*known: pin, plain, bad"):
        methods.find("pn")


@pytest.mark.parametrize("given", ["tiny:Tiny", tiny.Tiny])
def test_one_added_here(given: str | type[Method]) -> None:
    methods.add("tiny", given)
    assert methods.presets("tiny") == ["recommended", "small"]
    assert methods.find("tiny", "small") is tiny.Tiny
    assert "tiny" in methods.names()


def test_auto_takes_the_first_that_says_so_and_asks_others_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "entry_points", lambda group: [])
    assert methods.suitable(TASK)[0] == "pin"
    methods.add("tiny", tiny.Tiny)
    assert methods.suitable(TASK)[0] == "pin"
    methods.add("eager", Eager)
    assert methods.suitable(TASK) == ("eager", "it is small")
