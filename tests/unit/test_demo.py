"""The demo's folder: what it may write over, and what it must leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from anatomark import demo as module
from anatomark.errors import InputError


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
