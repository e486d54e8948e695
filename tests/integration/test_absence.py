"""Absent landmarks from the user's files to training, evaluation and report."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.division import read_division
from anatomark.cli import app as cli
from anatomark.core.landmarks import Landmarks, Status
from anatomark.io.landmarks import read_landmarks, write_landmarks

tiny.register()
ABSENT, DEFINED, UNKNOWN = Status.ABSENT, Status.DEFINED, Status.UNANNOTATED


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return int(exit.value.code or 0), said.out, said.err


def mark(path: Path, *states: Status) -> None:
    """Rewrite a landmark file with these states."""
    old = read_landmarks(path)
    write_landmarks(replace(old, status=states), path)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three training cases (in one nothing is there), three test cases (in one nothing is there, in one half)."""
    cases = tiny.write_study(tmp_path / "data", 6, ndim=3, splits=["train"] * 3 + ["test"] * 3)
    mark(tmp_path / "data" / "case2.mrk.json", ABSENT, ABSENT, ABSENT)
    mark(tmp_path / "data" / "case4.mrk.json", ABSENT, ABSENT, ABSENT)
    mark(tmp_path / "data" / "case5.mrk.json", DEFINED, ABSENT, UNKNOWN)
    return cases


def test_predictions_are_held_against_absent_landmarks(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case, states in {"case3": (DEFINED, ABSENT, DEFINED), "case4": (ABSENT, ABSENT, DEFINED),
                         "case5": (DEFINED, ABSENT, ABSENT)}.items():  # fmt: skip
        points = np.array([[12.0, 14, 20], [30, 16, 24], [22, 34, 18]])
        write_landmarks(Landmarks(("a", "b", "c"), points, states), tmp_path / "found" / f"{case}.mrk.json")
    code, said, _ = run(capsys, "evaluate", tmp_path / "found", study, "--out", tmp_path / "out")
    assert code == 0
    assert "absent landmarks: recall 75.0% of 4, precision 75.0%, 1 false absences" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["absent"], summary["false_presences"], summary["false_absences"]) == (4, 1, 1)
    assert (summary["absence_recall"], summary["absence_precision"]) == (0.75, 0.75)
    assert (summary["pairs"], summary["located"], summary["failures"]) == (4, 3, 1)
    by_landmark = {r["label"]: r for r in csv.DictReader((tmp_path / "out" / "per_landmark.csv").open())}
    assert by_landmark["b"]["absent"] == "2" and by_landmark["b"]["absence_recall"] == "1"
    assert by_landmark["b"]["absence_precision"] == "0.666667" and by_landmark["c"]["absence_recall"] == "0"
    outcomes = {(r["case"], r["label"]): r["outcome"] for r in csv.DictReader((tmp_path / "out" / "errors.csv").open())}
    assert outcomes["case3", "b"] == "false absence" and outcomes["case4", "c"] == "false presence"
    assert outcomes["case4", "a"] == "correctly absent" and outcomes["case5", "c"] == "not annotated"
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Found absent, of 4" in report and "2 of 3" in report


def test_a_test_split_in_which_everything_is_absent(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("case3", "case5"):
        mark(tmp_path / "data" / f"{case}.mrk.json", ABSENT, ABSENT, ABSENT)
    nothing = Landmarks(("a", "b", "c"), np.full((3, 3), np.nan), (ABSENT,) * 3)
    for case in ("case3", "case4", "case5"):
        write_landmarks(nothing, tmp_path / "found" / f"{case}.json")
    code, said, err = run(capsys, "evaluate", tmp_path / "found", study, "--out", tmp_path / "out")
    assert code == 0, err
    assert "recall 100.0% of 9, precision 100.0%" in said
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["mre_mm"] is None


def test_training_leaves_out_a_case_in_which_nothing_is_there_and_keeps_states(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark(tmp_path / "data" / "case1.mrk.json", DEFINED, ABSENT, UNKNOWN)
    division = read_division(study)
    assert [s.id for s in division.train] == ["case0", "case1"] and division.left_out == ("case2",)
    assert division.train[1].landmarks.status == (DEFINED, ABSENT, UNKNOWN)
    code, _, said = run(capsys, "fit", study, "--out", tmp_path / "run", "--method", "tiny", "--steps", 2)
    assert code == 0
    assert "left out, no landmark defined: case2" in said
    assert run(capsys, "plan", study)[0] == 0


def test_a_file_that_says_nothing_and_a_study_without_points_are_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(3):
        mark(tmp_path / "data" / f"case{k}.mrk.json", ABSENT, ABSENT, ABSENT)
    code, _, err = run(capsys, "fit", study, "--out", tmp_path / "run", "--method", "tiny")
    assert code == 2 and "no training case has a defined landmark" in err
    mark(tmp_path / "data" / "case5.mrk.json", UNKNOWN, UNKNOWN, UNKNOWN)
    code, _, err = run(capsys, "evaluate", tmp_path, study, "--out", tmp_path / "out")
    assert code == 2 and "row 7" in err and "no landmark is defined, or known to be absent" in err


def test_device_and_threads_are_for_a_model(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "fit", study, "--out", tmp_path / "run", "--method", "tiny", "--steps", 2)[0] == 0
    more = ("--device", "cpu", "--threads", 1)
    assert run(capsys, "evaluate", tmp_path / "run", study, "--out", tmp_path / "one", *more)[0] == 0
    assert run(capsys, "evaluate", tmp_path / "run", study, "--out", tmp_path / "two")[0] == 0
    one, two = (json.loads((tmp_path / x / "summary.json").read_text()) for x in ("one", "two"))
    assert one["model"] == two["model"] == "run" and one["mre_mm"] == two["mre_mm"]
    code, _, err = run(capsys, "evaluate", tmp_path / "one" / "predictions", study, "--out", tmp_path / "x", *more)
    assert code == 2 and "--device, --threads and --tta are for a model" in err
    code, _, err = run(capsys, "evaluate", tmp_path / "run", study, "--out", tmp_path / "y", "--device", "gpu")
    assert code == 2 and "gpu" in err
