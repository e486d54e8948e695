"""The loop that corrections close: predict, correct, learn from both manifests, measure against the corrections."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.find import find_images_as_cases
from anatomark.cli import app as cli
from anatomark.io.landmarks import read_landmarks
from anatomark.review import Review

tiny.register()


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0)


def test_corrections_are_learned_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny.write_study(tmp_path / "data", 4, splits=["train", "train", "train", "test"])
    model, found, out = tmp_path / "model", tmp_path / "found", tmp_path / "corrected"
    assert run("fit", study, "--out", model, "--method", "tiny", "--steps", 2) == 0
    assert run("predict", model, study, "--out", found) == 0
    assert "p=" in (found / "case1.mrk.json").read_text()
    with Review(out, find_images_as_cases([study]), found) as review:
        for case in ("case1", "case3"):
            truth = read_landmarks(tmp_path / "data" / f"{case}.mrk.json")["a"] + 1
            review.change(case, [{"name": "a", "state": "moved", "position": truth.tolist()}], "Ann")
            review.done(case, "Ann", confirm_all=False)
        before = review.summary()["models"]
    assert not any("p=" in file.read_text() for file in out.rglob("*") if file.is_file())
    capsys.readouterr()
    assert run("fit", study, out / "cases.csv", "--out", tmp_path / "m2", "--init", model, "--steps", 2) == 0
    said = capsys.readouterr().err
    assert "3 training cases" in said and "2 of its cases are in" in said
    plan = json.loads((tmp_path / "m2" / "plan.json").read_text())
    assert plan["names"] == ["a", "b", "c"]
    assert run("predict", tmp_path / "m2", study, "--out", found, "--overwrite") == 0
    with Review(out, find_images_as_cases([study]), found) as review:
        facts = review.summary()
    assert facts["models"][0] == before[0] and facts["models"][1]["model_name"] == "m2"
    assert [row["decided"] for row in facts["same_points"]] == [2, 2]

    capsys.readouterr()
    assert run("evaluate", model, out / "cases.csv", "--out", tmp_path / "e1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["truth"] == "corrected"
    assert run("evaluate", model, study, out / "cases.csv", "--out", tmp_path / "e2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["manifest"] == "cases.csv + cases.csv"
    assert run("plan", study, out / "cases.csv", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["manifest"] == f"{study} + {out / 'cases.csv'}" and facts["cases"]["train"] == 3
    assert run("plan", study, study) == 2
    assert "given twice" in capsys.readouterr().err


def test_no_model_describes_its_landmarks_by_scores(tmp_path: Path) -> None:
    """Predictions as Slicer files, and as a table that says the score in the description, as training data."""
    study = tiny.write_study(tmp_path / "data", 2)
    for k, text in enumerate(("the tip p=0.93 r90=1.2mm", "the tip p=0.93 r90=1.2mm checked")):
        landmarks = read_landmarks(tmp_path / "data" / f"case{k}.mrk.json")
        rows = [f"{n},{','.join(map(str, at))},{text}" for n, at in zip(landmarks.names, landmarks.points, strict=True)]
        table = "\n".join(["# frame=LPS unit=mm", "label,x,y,z,description", *rows]) + "\n"
        (tmp_path / "data" / f"case{k}.csv").write_text(table)
    study.write_text(study.read_text().replace(".mrk.json", ".csv"))
    assert run("fit", study, "--out", tmp_path / "model", "--method", "tiny", "--steps", 2) == 0
    text = (tmp_path / "model" / "plan.json").read_text()
    assert "p=" not in text and json.loads(text)["descriptions"] == ["the tip"] * 3
    assert run("predict", tmp_path / "model", tmp_path / "data" / "case0.nii.gz", "--out", tmp_path / "found") == 0
    landmarks = read_landmarks(tmp_path / "found" / "case0.mrk.json")
    assert landmarks.descriptions == ("the tip",) * 3
    assert landmarks.score is not None and np.isfinite(landmarks.score).all()
