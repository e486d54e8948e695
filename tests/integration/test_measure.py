"""anatomark measure: tables of files, manifests and predictions, and what they agree in."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anatomark.cli import app as cli
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.images import write_image
from anatomark.io.jsonfile import write_json_landmarks
from anatomark.io.landmarks import read_landmarks, write_landmarks
from anatomark.tools.measure.measure import measure
from anatomark.tools.measure.measured import COLUMNS, UNPROVEN

DEFINITION = """
description: a test
measurements:
  length:
    distance: [a, b]
    classes: [{name: short, below: 20}, {name: long, at_least: 20}]
  corner:
    angle: [a, b, {c: 1}]
"""
OBSERVERS = "# frame=image unit=mm\ncase,label,x,y,observer\n"


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0)


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline="")))


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Any]:
    """Three 2D cases by two observers, predictions of them with covariances, and a definition."""
    (tmp_path / "found").mkdir()
    image = Image(np.zeros((1, 40, 50), np.uint8), Grid.from_axes((40, 50), [[0, 1], [1, 0]], (0, 0)))
    rows, cases = [], ["case,image,landmarks,split,spacing"]
    for i in range(3):
        points = np.array([[5.0, 5.0], [17.0 + 4 * i, 5.0], [17.0 + 4 * i, 30.0]])
        write_image(image, tmp_path / f"c{i}.png")
        cases.append(f"c{i},c{i}.png,marks.csv#senior,test,1.0")
        for observer, shift in (("senior", 0.0), ("junior", 1.0)):
            rows += [
                f"c{i},{n},{x + shift * (n == 'b')},{y},{observer}" for n, (x, y) in zip("abc", points, strict=True)
            ]
        status = (Status.DEFINED, Status.DEFINED, Status.ABSENT if i == 2 else Status.DEFINED)
        found = Landmarks(tuple("abc"), points + [0.5, 0], status, covariance=np.stack([0.25 * np.eye(2)] * 3))
        write_json_landmarks(found, tmp_path / "found" / f"c{i}.json")
        write_landmarks(found, tmp_path / "found" / f"c{i}.mrk.json")
    (tmp_path / "marks.csv").write_text(OBSERVERS + "\n".join(rows) + "\n")
    (tmp_path / "cases.csv").write_text("\n".join(cases) + "\n")
    (tmp_path / "junior.csv").write_text("\n".join(cases).replace("#senior", "#junior") + "\n")
    (tmp_path / "def.yaml").write_text(DEFINITION)
    return {"cases": tmp_path / "cases.csv", "found": tmp_path / "found", "definition": tmp_path / "def.yaml"}


@pytest.mark.parametrize("form", ["folder", ".json", ".mrk.json"])
def test_an_unproven_model_has_no_intervals_and_flagged_cases_are_counted(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    why = "on held-out cases this model is no better than the mean position"
    for i, facts in enumerate([{"unproven": why, "flags": [why]}, {"flags": ["low score: a"]}, {"flags": []}]):
        file = study["found"] / f"c{i}.json"
        found = replace(read_landmarks(file), radius90=np.full(3, 2.0))
        write_json_landmarks(found, file, facts)
        write_landmarks(found, study["found"] / f"c{i}.mrk.json")
    files = [study["found"]] if form == "folder" else [study["found"] / f"c{i}{form}" for i in range(3)]
    assert _run("measure", study["definition"], *files, "--out", tmp_path / "t.csv") == 0
    said = capsys.readouterr().out
    assert said.count(why) == 1 and "2 of 3 cases are flagged for review" in said
    assert "1 values are blank" in said and "intervals are blank" not in said  # in c2 one landmark is absent
    length = [r for r in _rows(tmp_path / "t.csv") if r["measurement"] == "length"]
    assert [bool(r["sd"]) for r in length] == [False, True, True]
    assert [r["reason"] for r in length] == [UNPROVEN, "", ""] and length[0]["value"] == "12"
    assert (length[0]["class"], length[0]["class_p"], length[0]["low90"]) == ("short", "", "")
    measured = measure(study["definition"], files, tmp_path / "again.csv").summary()
    assert (measured["flagged"], measured["unproven"]) == (2, why)


def test_a_manifest_predictions_and_a_file(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "out" / "t.csv"
    assert _run("measure", study["definition"], study["cases"], "--out", table) == 0
    said = capsys.readouterr().out
    assert "short 2, long 1" in said and str(table) in said
    rows = _rows(table)
    assert list(rows[0]) == list(COLUMNS)
    assert [(r["case"], r["value"], r["class"], r["sd"]) for r in rows if r["measurement"] == "length"] == [
        ("c0", "12", "short", ""), ("c1", "16", "short", ""), ("c2", "20", "long", ""),
    ]  # fmt: skip
    assert {r["value"] for r in rows if r["measurement"] == "corner"} == {"90"}
    before = table.read_bytes()
    assert _run("measure", study["definition"], study["cases"], "--out", table) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert table.read_bytes() == before
    assert _run("measure", study["definition"], study["found"], "--out", table, "--overwrite", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measurements"]["corner"]["n"] == 2
    rows = _rows(table)
    assert [float(r["sd"]) for r in rows if r["measurement"] == "length"] == pytest.approx([np.sqrt(0.5)] * 3, rel=1e-4)
    gone = next(r for r in rows if r["case"] == "c2" and r["measurement"] == "corner")
    assert (gone["value"], gone["sd"], gone["class"], gone["reason"]) == ("", "", "", "c is absent")
    one = tmp_path / "one.csv"
    assert _run("measure", study["definition"], study["found"] / "c1.mrk.json", "--out", one) == 0
    assert _rows(one)[0]["value"] == "16"
    assert sorted(p.name for p in table.parent.iterdir()) == ["t.csv"]


def test_what_common_labels_are_taken_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = np.array([[0.0, 0, 0], [0, 25, 0]])
    for name, texts in (("silent", ("", "")), ("other", ("nasion", "pc")), ("right", ("AC", "PC p=0.90 r90=1.0mm"))):
        write_landmarks(Landmarks(("1", "2"), points, descriptions=texts), tmp_path / f"{name}.mrk.json")
    expected = {
        "silent": "note: takes landmark 1 for AC, 2 for PC; no description in the files says so",
        "other": "note: takes landmark 1 for AC; files call 1 'nasion'",
        "right": "",
    }
    for name, note in expected.items():
        assert _run("measure", "acpc-length", tmp_path / f"{name}.mrk.json", "--out", tmp_path / f"{name}.csv") == 0
        said = capsys.readouterr().out.splitlines()
        assert [line for line in said if line.startswith("note")] == ([note] if note else [])


def test_truth_writes_the_agreement(study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    asked = (
        "measure",
        study["definition"],
        study["cases"],
        "--landmarks",
        study["found"],
        "--split",
        "test",
        "--truth",
    )
    assert _run(*asked, "--out", table, "--json") == 0
    told = json.loads(capsys.readouterr().out)["agreement"]
    length, corner = _rows(tmp_path / "t_agreement.csv")
    assert (length["n"], float(length["bias"]), float(length["success"])) == ("3", 0, 1)
    assert (corner["n"], corner["missing"], corner["success"]) == ("2", "1", "")
    assert float(length["coverage90"]) == told["length"]["coverage90"] == 1
    confusion = _rows(tmp_path / "t_confusion.csv")
    assert [(r["truth"], r["found"], r["cases"]) for r in confusion] == [("long", "long", "1"), ("short", "short", "2")]
    assert _run(*asked, "--out", table) == 2
    assert _run(*asked, "--out", table, "--overwrite") == 0
    assert "same class" in capsys.readouterr().out
    assert _run(*asked[:-1], "--out", table, "--overwrite") == 0
    assert not list(tmp_path.glob("t_*.csv"))  # an agreement of other values would be left
    study["definition"].write_text(DEFINITION.replace("distance: [a, b]", "distance: [a, b]\n    towards: [b, a]"))
    near = Landmarks(tuple("abc"), np.array([[0, 0], [0.1, 0], [1, 9.0]]), covariance=np.stack([np.eye(2)] * 3))
    write_json_landmarks(near, tmp_path / "near.json")
    assert _run("measure", study["definition"], tmp_path / "near.json", "--out", tmp_path / "n.csv") == 0
    assert "intervals are blank; the column reason says why" in capsys.readouterr().out
    assert _rows(tmp_path / "n.csv")[0]["reason"]


def test_two_observers_are_compared_in_python(study: dict[str, Any], tmp_path: Path) -> None:
    from anatomark.tools.measure.agreement import compare

    senior = measure(study["definition"], [study["cases"]], tmp_path / "s.csv").measured
    junior = measure(study["definition"], [tmp_path / "junior.csv"], tmp_path / "j.csv").measured
    length, _ = compare(junior, senior)
    assert length.bias == pytest.approx(1)
    assert length.success == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"definition": "acpc-lengt"},
            "acpc-lengt: no such file, and no ready definition (did you mean 'acpc-length'?)",
        ),
        ({"definition": "acpc-length"}, "acpc-length: landmark '1' is in none of the cases"),
        ({"out": "table.json"}, "table.json: `out` is a table; name it .csv"),
        ({"truth": True}, "`truth` compares predictions with the manifest's landmarks"),
        ({"split": "train"}, "no case has split 'train'"),
    ],
)
def test_bad_input(study: dict[str, Any], tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    asked = {"definition": study["definition"], "out": tmp_path / "new" / "t.csv", **changed}
    with pytest.raises(InputError) as error:
        measure(paths=[study["cases"]], **asked)
    assert said in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_typing_error_in_the_definition_is_one_line(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study["definition"].write_text(DEFINITION.replace("distance", "distanze"))
    assert _run("measure", study["definition"], study["cases"], "--out", tmp_path / "t.csv") == 2
    said = capsys.readouterr().err.strip()
    assert "def.yaml: unknown key 'measurements.length.distanze' (did you mean 'distance'?)" in said
    assert "\n" not in said


def test_cases_in_parts_give_the_same_table(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, cases, definition = tmp_path / "found", tmp_path / "cases.csv", tmp_path / "definition.yaml"
    definition.write_text(DEFINITION)
    made = []
    for at_once in (500, 1):
        monkeypatch.setattr("anatomark.tools.measure.measured.CASES", at_once)
        monkeypatch.setattr("anatomark.cases.find.AT_ONCE", at_once)
        out = tmp_path / f"{at_once}.csv"
        measure(definition, [found], out)
        measure(definition, [cases], tmp_path / f"{at_once}_told.csv", landmarks=found, truth=True)
        made.append([p.read_bytes() for p in sorted(tmp_path.glob(f"{at_once}*.csv"))])
    assert made[0] == made[1] and len(made[0]) == 4
    (tmp_path / "other").mkdir()
    (found / "c0.json").rename(tmp_path / "other" / "c1.json")
    with pytest.raises(InputError, match="two of the cases are called 'c1'"):
        measure(definition, [found, tmp_path / "other"], tmp_path / "twice.csv")
