"""anatomark simulate: files that fit reads, the same again from the same seed, nothing overwritten."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.division import read_division
from anatomark.cases.manifest import read_manifest
from anatomark.cli import app as cli
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.images import read_image, write_image
from anatomark.io.landmarks import read_landmarks, write_landmarks
from anatomark.tools.simulate import simulate as module
from anatomark.tools.simulate.simulate import simulate
from anatomark.training.plan import plan

tiny.register()


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0)


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline="")))


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    splits = ["train", "val", "train"]
    return tiny.write_study(tmp_path / "data", 3, ndim=request.param, splits=splits)


def test_new_cases_are_read_and_trained_on(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert _run("simulate", study, "--out", out, "--count", 5, "--include-originals", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["count"] == 5
    assert told["manifest"] == str(out / "cases.csv")
    cases = read_manifest(out / "cases.csv").cases
    assert [c.split for c in cases] == ["train", "val", "train"] + ["train"] * 5
    sources = [row["source"] for row in _rows(out / "cases.csv")]
    assert sources == ["case0", "case1", "case2", "case0", "case2", "case0", "case2", "case0"]
    real = {c.id: c for c in cases[:3]}
    for case, source in zip(cases[3:], sources[3:], strict=True):
        image, marks = case.image(), case.landmarks
        np.testing.assert_allclose(image.grid.affine, real[source].image().grid.affine, atol=1e-5)
        assert image.array.dtype == np.uint8
        assert marks.names == ("a", "b", "c")
        for point in marks.points:  # the brightest voxel near a landmark is near it
            near = np.linalg.norm(image.grid.points() - point, axis=-1)
            assert image.array[0][near < 3].mean() > image.array[0][near > 12].mean()
    run = tmp_path / "run"
    assert _run("fit", out / "cases.csv", "--out", run, "--method", "tiny", "--steps", 4, "--json") == 0
    assert (run / "weights.safetensors").exists()


def test_a_stopped_command_goes_on_and_ends_the_same(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(study, whole, 5, seed=3)
    plain, calls = module.simulate_case, []

    def stops(*given: object) -> tuple[Image, Landmarks]:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "simulate_case", stops)
    with pytest.raises(KeyboardInterrupt):
        simulate(study, broken, 5, seed=3)
    assert not (broken / "cases.csv").exists()
    assert simulate(study, broken, 5, seed=3).before == 3
    assert len(calls) == 6
    assert _tree(whole) == _tree(broken)
    assert simulate(study, broken, 5, seed=3).before == 5
    assert len(calls) == 6


def test_a_case_depends_on_seed_and_number_only(study: Path, tmp_path: Path) -> None:
    few, many, other = (tmp_path / name for name in ("few", "many", "other"))
    simulate(study, few, 2)
    simulate(study, many, 3)
    simulate(study, other, 2, seed=1)
    for name in (n for n in _tree(few) if n.startswith(("images", "landmarks"))):
        assert _tree(few)[name] == _tree(many)[name]
        assert _tree(few)[name] != _tree(other)[name]


def test_a_failed_draw_is_repeated_and_said(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, calls = module.simulate_case, []

    def fails(*given: object) -> tuple[Image, Landmarks]:
        calls.append(given)
        if len(calls) in (1, 2):
            raise RuntimeError("landmarks miss their places")
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "simulate_case", fails)
    assert simulate(study, tmp_path / "new", 2).redrawn == 2
    assert capsys.readouterr().err.count("case0_sim0001: drawn again: landmarks miss their places") == 2
    monkeypatch.setattr(module, "DRAWS", 1)
    calls.clear()
    with pytest.raises(InputError, match="smaller changes"):
        simulate(study, tmp_path / "other", 2)


def test_points_are_added_to_all_cases_alike(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    simulate(study, out, 2, points=6, reference="case2", originals=True)
    cases = {c.id: c.landmarks for c in read_manifest(out / "cases.csv").cases}
    assert set(cases) == {"case0", "case1", "case2", "case0_sim0001", "case2_sim0002"}
    wanted = ("a", "b", "c", *(f"p{i:04d}" for i in range(1, 7)))
    assert all(marks.names == wanted for marks in cases.values())
    assert sorted(p.name.split(".")[0] for p in (out / "originals").iterdir()) == ["case0", "case1", "case2"]
    assert cases["case2"].defined.all()
    moved = cases["case0"].points[:3].mean(0) - cases["case2"].points[:3].mean(0)
    off = np.linalg.norm(cases["case0"].points - moved - cases["case2"].points, axis=1)
    assert np.nanmedian(off[3:]) < 4
    before = _tree(out)
    simulate(study, out, 2, points=6, reference="case2", originals=True)
    assert _tree(out) == before


def test_states_and_descriptions_go_along(tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 1)
    marks = read_landmarks(tmp_path / "data" / "case0.mrk.json")
    known = Landmarks(
        ("a", "b", "c"), np.vstack([marks.points[:1], np.full((2, 3), np.nan)]),
        (Status.DEFINED, Status.ABSENT, Status.UNANNOTATED), descriptions=("first", "second", ""),
    )  # fmt: skip
    write_landmarks(known, tmp_path / "data" / "case0.mrk.json")
    simulate(study, tmp_path / "new", 1)
    new = read_landmarks(tmp_path / "new" / "landmarks" / "case0_sim0001.mrk.json")
    assert new.status == known.status
    assert new.descriptions == known.descriptions


def test_a_picture_that_png_cannot_hold_becomes_mha(tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 1, ndim=2)
    image = read_image(tmp_path / "data" / "case0.png", 2.0)
    write_image(Image(image.array.astype(np.float32), image.grid), tmp_path / "data" / "case0.mha")
    study.write_text(study.read_text().replace("case0.png", "case0.mha"))
    simulate(study, tmp_path / "new", 1)
    (case,) = read_manifest(tmp_path / "new" / "cases.csv").cases
    assert case.path is not None and case.path.name == "case0_sim0001.mha"
    assert case.image().array.dtype == np.float32
    np.testing.assert_allclose(case.image().grid.affine, image.grid.affine, atol=1e-6)


def test_real_cases_keep_the_form_that_their_rows_choose(tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 2)
    head, *rows = study.read_text().splitlines()
    study.write_text(
        "\n".join([f"{head},form", *(f"{row},{form}" for row, form in zip(rows, ("", "qform"), strict=True))])
    )
    simulate(study, tmp_path / "out", 1, originals=True)
    assert [case.form for case in read_manifest(tmp_path / "out" / "cases.csv").cases] == [None, "qform", None]
    study.write_text(study.read_text().replace("qform", "sform"))
    with pytest.raises(InputError, match="another simulate command"):
        simulate(study, tmp_path / "out", 1, originals=True)


def test_copies_of_few_people_are_no_many_people(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("simulate", study, "--out", tmp_path / "new", "--count", 6) == 0
    assert "no case is apart" in (said := capsys.readouterr().out) and "--include-originals" in said
    note = "6 of 6 training cases were simulated from 2 real ones: how alike cases are, and errors on cases held out"
    assert _run("plan", tmp_path / "new" / "cases.csv") == 0
    assert f"note: {note[:60]}" in capsys.readouterr().out
    assert any(line.startswith(note) for line in read_division(tmp_path / "new" / "cases.csv").notes)
    assert _run("simulate", study, "--out", tmp_path / "all", "--count", 6, "--include-originals") == 0
    assert "no case is apart" not in capsys.readouterr().out
    division = read_division(tmp_path / "all" / "cases.csv")
    assert not any("simulated" in line for line in division.notes)  # validated on a real case apart
    assert plan(tmp_path / "all" / "cases.csv").facts["cautions"][0].startswith("6 of 8 training cases were simulated")
    (tmp_path / "new" / "simulate.json").unlink()  # a name alone proves nothing
    assert not any("simulated" in line for line in plan(tmp_path / "new" / "cases.csv").facts["cautions"])


def test_an_other_splits_cases_keep_their_split(study: Path, tmp_path: Path) -> None:
    simulate(study, tmp_path / "new", 2, split="val")
    assert [row["split"] for row in _rows(tmp_path / "new" / "cases.csv")] == ["val", "val"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--count", 0], "--count 0: give"),
        (["--count", 2, "--amplitude-mm", -1], "amplitude_mm = -1"),
        (["--count", 2, "--points", -4], "--points -4: give"),
        (["--count", 2, "--split", "tets"], "did you mean 'test'"),
        (["--count", 2, "--split", "test"], "no case has split 'test'"),
        (["--count", 2, "--reference", "case0"], "say how many points"),
        (["--count", 2, "--points", 3, "--reference", "case9"], "'case9' is no case"),
        (["--count", 2, "--points", 100_000], "no room for 100000 points"),
    ],
)
def test_bad_requests_end_with_one_line(
    study: Path, tmp_path: Path, options: list[object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("simulate", study, "--out", tmp_path / "new", *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "new" / "cases.csv").exists()


def test_folders_of_others_are_left_alone(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert _run("simulate", study, "--out", out, "--count", 2) == 2
    assert "holds no simulated cases" in capsys.readouterr().err
    (out / "thesis.txt").unlink()
    assert _run("simulate", study, "--out", out, "--count", 2) == 0
    before = _tree(out)
    assert _run("simulate", study, "--out", out, "--count", 2, "--seed", 1) == 2
    assert "another simulate command" in capsys.readouterr().err
    assert _run("simulate", study, "--out", study, "--count", 2) == 2
    assert "is a file" in capsys.readouterr().err
    assert _tree(out) == before


def test_manifests_without_landmarks_or_of_both_kinds_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solid, flat = (tiny.write_study(tmp_path / f"d{d}", 1, ndim=d) for d in (3, 2))
    text = solid.read_text()
    bare = solid.with_name("bare.csv")
    bare.write_text(text.replace("case0.mrk.json", ""))
    assert _run("simulate", bare, "--out", tmp_path / "new", "--count", 2) == 2
    assert "the landmarks cell is blank" in capsys.readouterr().err
    mixed = tmp_path / "mixed.csv"
    rows = ["solid,d3/case0.nii.gz,d3/case0.mrk.json,train,\n", "flat,d2/case0.png,d2/case0.csv,train,2\n"]
    mixed.write_text("case,image,landmarks,split,spacing\n" + "".join(rows))
    assert flat.exists()
    assert _run("simulate", mixed, "--out", tmp_path / "new", "--count", 2) == 2
    assert "2D and 3D" in capsys.readouterr().err
    assert _run("simulate", tmp_path / "none.csv", "--out", tmp_path / "new", "--count", 2) == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
