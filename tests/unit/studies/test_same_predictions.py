"""The comparison of two versions' predictions: equal is equal, and each kind of difference is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODELS = ("brain", "mouse_skull", "cephalogram")


def _case(**changes: Any) -> dict[str, Any]:
    """What ``predict`` writes of a case, as far as it counts."""
    landmarks = [
        {"label": "a", "status": "defined", "position": [1.0, 2.0, 3.0], "score": 0.9, "radius90": 1.5},
        {"label": "b", "status": "absent"},
    ]
    return {"model": "x", "seconds": 1.0, "flags": [], "suspicion": 0.5, "landmarks": landmarks, **changes}


def _landmark(**changes: Any) -> dict[str, Any]:
    first, second = _case()["landmarks"]
    return _case(landmarks=[{**first, **changes}, second])


def _write(folder: Path, case: str, facts: dict[str, Any]) -> None:
    for model in MODELS:
        (folder / model).mkdir(parents=True, exist_ok=True)
        (folder / model / f"{case}.json").write_text(json.dumps(facts))
        (folder / model / f"{case}.mrk.json").write_text("{}")


@pytest.fixture
def same(study: Callable[[str], ModuleType], tmp_path: Path) -> Callable[[], int]:
    """Compares the folders ``new`` and ``old`` of two cases each; the exit code."""
    for version in ("new", "old"):
        for case in ("one", "two"):
            _write(tmp_path / version, case, _case())

    def compare() -> int:
        arguments = ["--out", tmp_path / "new", "--against", tmp_path / "old", "--json", tmp_path / "facts.json"]
        with pytest.raises(SystemExit) as end:
            study("same_predictions").main([str(a) for a in arguments])
        return int(end.value.code or 0)

    return compare


def test_equal_predictions_are_equal(
    same: Callable[[], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "new", "two", _landmark(position=[1.0 + 5e-10, 2.0, 3.0]) | {"seconds": 9.0})
    assert same() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "not predicted again" not in line]
    assert [line.split(":")[0] for line in lines] == list(MODELS)
    assert "2 cases, 4 landmarks; largest difference of a position 5e-10 mm, of a radius 0 mm" in lines[0]
    assert all(line.endswith("statuses and flags equal") for line in lines)
    assert json.loads((tmp_path / "facts.json").read_text())["brain"]["position"] == pytest.approx(5e-10)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (_landmark(position=[1.0, 2.0 + 2e-9, 3.0]), "two, landmark a: position differs by 2e-09"),
        (_landmark(position=[1.0, 2.0]), "two, landmark a: position differs by inf"),
        (_landmark(position=[1.0, float("nan"), 3.0]), "two, landmark a: position differs by nan"),
        (_landmark(radius90=1.6), "two, landmark a: radius90 differs by 0.1"),
        (_landmark(radius90=None), "two, landmark a: radius90 None, was 1.5"),
        (_landmark(status="absent"), "two, landmark a: status absent, was defined"),
        (_landmark(label="c"), "two: its landmarks are others"),
        (_case(landmarks=_case()["landmarks"][::-1]), "two: its landmarks are others, or in another order"),
        (_case(flags=["odd"]), "two: flags ['odd'], were []"),
        (_case(suspicion=None), "two: suspicion None, was 0.5"),
        (_case(suspicion=0.501), "two: suspicion differs by 0.001"),
    ],
)
def test_a_difference_is_named(
    same: Callable[[], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    message: str,
) -> None:
    _write(tmp_path / "new", "two", changed)
    assert same() == 1
    assert f"DIFFERENT: {message}" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["new", "old"])
def test_a_case_that_only_one_has_differs(
    same: Callable[[], int], tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    (tmp_path / version / "brain" / "one.json").unlink()
    assert same() == 1
    printed = capsys.readouterr().out
    assert "brain: 1 cases" in printed and f"one: only in {tmp_path}" in printed and "brain" in printed
    assert printed.count("DIFFERENT") == 1


def test_folders_without_predictions_are_not_the_same(same: Callable[[], int], tmp_path: Path) -> None:
    for version in ("new", "old"):
        for file in (tmp_path / version / "cephalogram").iterdir():
            file.unlink()
    assert same() == 1


def test_what_is_predicted(study: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANATOMARK_DATA", str(tmp_path / "data"))
    images = {"brain": ["X_T1w.nii", "Y_T1w.nii.gz"], "mouse_skull": ["A.nii.gz"]}
    images["cephalogram"] = [f"images/{i + 1:03}.jpg" for i in range(300)]
    for name, files in images.items():
        for file in files:
            (tmp_path / "data" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name / file).touch()
    module, commands = study("same_predictions"), []

    def run(command: list[str]) -> Any:
        commands.append(command)
        Path(command[command.index("--out") + 1]).mkdir(parents=True)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(module.subprocess, "run", run)
    module.main(["--out", str(tmp_path / "new")])
    assert [c[4].rpartition("/")[2] for c in commands] == ["brain-afids", "mouse-skull", "cephalogram-isbi2015"]
    named = [[Path(w).name for w in c[5 : c.index("--out")]] for c in commands]
    assert [len(n) for n in named] == [2, 1, 40] and named[2][:2] == ["001.jpg", "008.jpg"]
    assert commands[2][-2:] == ["--spacing", "0.1"] and "--spacing" not in commands[0] + commands[1]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(MODELS)
    module.main(["--out", str(tmp_path / "new")])
    assert len(commands) == 3  # nothing is predicted twice
    shutil.rmtree(tmp_path / "new" / "brain")
    shutil.rmtree(tmp_path / "data" / "brain")
    with pytest.raises(SystemExit, match="brain: there are no images"):
        module.main(["--out", str(tmp_path / "new")])
