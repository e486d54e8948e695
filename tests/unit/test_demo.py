"""The demo's folder: what it may write over, and what it must leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from anatomark import demo as module
from anatomark.errors import InputError
from anatomark.model.config import make_config
from anatomark.progress import Reporter
from anatomark.training.request import write_request


class Started(Exception):
    pass


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(module, "fit", fit)


def test_a_persons_own_study_is_left_alone(tmp_path: Path) -> None:
    table = "case,image,landmarks,split\nanna,a.nii.gz,a.mrk.json,train\n"
    (tmp_path / "cases.csv").write_text(table)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.safetensors").write_text("weeks of work")
    with pytest.raises(InputError, match=r"holds no demo|is a file"):
        module.demo(tmp_path)
    assert (tmp_path / "run" / "weights.safetensors").read_text() == "weeks of work"
    assert (tmp_path / "cases.csv").read_text() == table


def test_a_file_or_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=r"holds no demo|is a file"):
            module.demo(out)


def test_an_earlier_demo_is_made_anew(tmp_path: Path) -> None:
    with pytest.raises(Started):
        module.demo(tmp_path / "new")
    (tmp_path / "new" / "run").mkdir()
    (tmp_path / "new" / "own.txt").write_text("mine")
    with pytest.raises(Started):
        module.demo(tmp_path / "new")
    assert not (tmp_path / "new" / "run").exists()
    assert (tmp_path / "new" / "own.txt").exists()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What the demo asks of ``fit``, which ends at once."""
    calls: list[dict] = []

    def fit(_: object, run: Path, **settings: object) -> None:
        calls.append(settings)
        raise Started

    monkeypatch.setattr(module, "fit", fit)
    return calls


def stopped(out: Path, holds: str, **budget: object) -> None:
    """A demo with this budget that was stopped."""
    (out / "run").mkdir(parents=True)
    rows = [f"{case},a.nii.gz,a.fcsv,{split}" for case, split in module.CASES]
    (out / "cases.csv").write_text("\n".join(["case,image,landmarks,split", *rows]))
    write_request(out / "run", make_config(None, [], method="pin", **budget))
    (out / "run" / holds).write_text("")


@pytest.mark.parametrize("holds", ["last.ckpt", "weights.safetensors"])
def test_a_demo_that_was_stopped_goes_on(tmp_path: Path, asked: list[dict], holds: str) -> None:
    stopped(tmp_path / "d", holds, stage_steps=module.STEPS)
    with pytest.raises(Started):
        module.demo(tmp_path / "d")
    assert asked[0]["resume"] is True
    assert (tmp_path / "d" / "run" / holds).exists()


def test_one_with_another_budget_or_a_finished_one_begins_anew(tmp_path: Path, asked: list[dict]) -> None:
    stopped(tmp_path / "other", "last.ckpt", minutes=3)
    stopped(tmp_path / "done", "weights.safetensors", stage_steps=module.STEPS)
    (tmp_path / "done" / "evaluation").mkdir()
    (tmp_path / "done" / "evaluation" / "report.html").write_text("")
    for name in ("other", "done"):
        with pytest.raises(Started):
            module.demo(tmp_path / name)
        assert asked[-1]["resume"] is False
        assert not (tmp_path / name / "run").exists()


def test_what_is_kept_is_said(tmp_path: Path) -> None:
    assert "nothing was saved yet" in module.kept(tmp_path)
    stopped(tmp_path / "d", "last.ckpt", stage_steps=module.STEPS)
    assert "checkpoint is kept in" in module.kept(tmp_path / "d")
    (tmp_path / "d" / "run" / "weights.safetensors").write_text("")
    assert "model is kept in" in module.kept(tmp_path / "d")


def test_how_long_it_takes_is_said_after_a_few_steps() -> None:
    said: list[str] = []
    report = Reporter(quiet=True)
    report.say = said.append  # type: ignore[method-assign]
    first, *_, last = module.STEPS
    module._foretell(report, f"{first} (1/3)", 10, 0.1)  # as on two quiet cores, where all takes 1:45
    assert said == ["0.1 s a step on this machine: the demo takes about 2 minutes more"]
    module._foretell(report, f"{last} (3/3)", module.STEPS[last] - 10, 0.3)
    assert "about 10 seconds more" in said[1] and len(said) == 2
    module._foretell(report, f"{first} (1/3)", 10, 4.0)
    assert "`minutes`" in said[3]
    module._foretell(report, "reading images", 10, 4.0)
    assert len(said) == 4


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "10 seconds"), (42, "40 seconds"), (57, "1 minute"), (200, "3 minutes")]
)
def test_times_are_told_in_words(seconds: float, words: str) -> None:
    assert module.in_words(seconds) == words
