"""anatomark register and crop: files in, files out that SimpleITK reads, nothing overwritten, reasons said."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import tiny
from anatomark.cli import app as cli
from anatomark.core.box import paste
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import rotation_from_vector
from anatomark.errors import InputError
from anatomark.io.images import image_grid, read_image, write_image
from anatomark.io.landmarks import read_landmarks, write_landmarks

NAMES = tuple("ABCDEFGH")


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0)


def _inside(row: dict[str, Any]) -> tuple[slice, ...]:
    return tuple(slice(v, u) for v, u in zip(row["lower"], row["upper"], strict=True))


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def moved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """Two cases of the same object, the second in another pose and size, and one with a single landmark."""
    d = request.param
    rng = np.random.default_rng(0)
    base = Grid.from_axes((24,) * d, np.eye(d)[:, ::-1] * 2.0, np.zeros(d))
    points = rng.uniform(10, 36, (8, d))
    value = sum(np.exp(-((base.points() - p) ** 2).sum(-1) / 40) * (80 + 20 * i) for i, p in enumerate(points))
    turn = rotation_from_vector([0.3, -0.2, 0.4][: 1 if d == 2 else 3]) * 1.1
    pose = np.eye(d + 1)
    pose[:d, :d], pose[:d, d] = turn, rng.normal(0, 30, d)
    image = Image(np.asarray(value)[None].astype(np.float32), base)
    folder = tmp_path / "data"
    images = ("one.mha", "two.mha", "bare.mha") if d == 2 else ("one.nii.gz", "two.nii.gz", "bare.nii.gz")
    for name, grid in zip(images, (base, Grid(base.shape, pose @ base.affine), base), strict=True):
        write_image(Image(image.array, grid), folder / name)
    ending = ".csv" if d == 2 else ".mrk.json"
    only = np.where(np.arange(8)[:, None] == 0, points, np.nan)
    absent = tuple(Status.DEFINED if i == 0 else Status.ABSENT for i in range(8))
    write_landmarks(Landmarks(NAMES, points), folder / f"one{ending}")
    write_landmarks(Landmarks(NAMES, points @ turn.T + pose[:d, d]), folder / f"two{ending}")
    write_landmarks(Landmarks(NAMES, only, absent), folder / f"bare{ending}")
    with open(folder / "cases.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "image", "landmarks", "split"])
        writer.writerows([[n.split(".")[0], n, n.split(".")[0] + ending, "train"] for n in images])
    np.save(folder / "pose.npy", pose)
    return folder / "cases.csv", d


@pytest.mark.parametrize("kind", ["similarity", "affine", "tps"])
def test_a_manifest_is_registered_onto_one_of_its_cases(
    moved: tuple[Path, int], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, d = moved
    out = tmp_path / "out"
    assert _run("register", "one", cases, "--out", out, "--kind", kind, "--pictures", "--json") == 2
    told = capsys.readouterr()
    assert "1 of 2 cases failed" in told.err
    summary = json.loads(told.out)
    assert summary == tiny.read_json(out / "registration.json")
    assert summary["fixed"] == "one"
    two, bare = summary["cases"]
    assert "1 landmarks are defined in both: A" in bare["reason"]
    assert two["rejected"] == []
    ending = ".h5" if kind == "tps" else ".tfm"
    picture = ".mha" if d == 2 else ".nii.gz"
    names = {f"two{ending}", f"two{picture}", "two.png", "registration.json"}
    assert {p.name for p in out.iterdir()} == names
    pose = np.load(cases.parent / "pose.npy")
    transform = sitk.ReadTransform(str(out / f"two{ending}"))
    fixed, moving = (read_landmarks(f, case=None) for f in sorted(cases.parent.glob("[ot][nw][eo].[cm][sr][vk]*")))
    for a, b in zip(fixed.points, moving.points, strict=True):
        np.testing.assert_allclose(transform.TransformPoint(a.tolist()), b, atol=1e-4)
    if kind != "tps":
        np.testing.assert_allclose(two["matrix"], pose, atol=1e-4)
        np.testing.assert_allclose(np.array(two["matrix"]) @ two["inverse"], np.eye(d + 1), atol=1e-9)
    # our picture, SimpleITK's with our transform, and the fixed image are one
    flat = sitk.sitkFloat32
    files = [str(cases.parent / f"{n}{picture}") for n in ("one", "two")]
    one, other = (sitk.ReadImage(f, flat) for f in files)
    theirs = sitk.GetArrayFromImage(sitk.Resample(other, one, transform, sitk.sitkLinear, 0.0))
    ours = read_image(out / f"two{picture}").array[0]
    inside = (slice(3, -3),) * d
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.5)
    assert np.abs(ours[inside] - sitk.GetArrayFromImage(one)[inside]).max() < 2
    grids = image_grid(out / f"two{picture}"), image_grid(files[0])
    assert grids[0].shape == grids[1].shape
    np.testing.assert_allclose(grids[0].affine, grids[1].affine, atol=1e-5)


def test_landmark_files_alone_outliers_and_repeats(
    moved: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, d = moved
    pose, out = np.load(cases.parent / "pose.npy"), tmp_path / "out"
    fixed = read_landmarks(cases.parent / ("one.csv" if d == 2 else "one.mrk.json"))
    wrong = fixed.points @ pose[:d, :d].T + pose[:d, d] + np.random.default_rng(1).normal(0, 0.01, fixed.points.shape)
    wrong[3] += 15
    sure = replace(fixed, points=wrong, radius90=np.linspace(0.01, 0.02, 8))
    write_landmarks(fixed, tmp_path / "fixed.json")
    write_landmarks(sure, tmp_path / "found.json")
    given = ("register", tmp_path / "fixed.json", tmp_path / "found.json", "--out", out, "--kind")
    assert _run(*given, "similarity") == 0
    assert "rejected D: " in capsys.readouterr().out
    record = tiny.read_json(out / "registration.json")
    assert record["fixed"] == "fixed"
    (row,) = record["cases"]
    assert row["rejected"] == ["D"]
    assert row["weights"] == "radius90"
    assert row["landmarks"]["D"]["residual_mm"] > row["landmarks"]["D"]["limit_mm"]
    np.testing.assert_allclose(row["matrix"], pose, atol=0.05)
    before = _tree(out)
    assert _run(*given, "tps") == 2
    assert "exists already" in capsys.readouterr().err
    assert _tree(out) == before
    image = cases.parent / ("two.mha" if d == 2 else "two.nii.gz")
    assert _run(*given, "tps", "--overwrite", "--field-mm", 4, "--moving-image", image) == 0
    assert {p.name for p in out.iterdir()} == {"found.h5", "registration.json"}  # no file of the earlier kind
    assert "the fixed image is not known" in capsys.readouterr().out
    assert tiny.read_json(out / "registration.json")["cases"][0]["field"]["spacing_mm"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ona", "CASES"], "did you mean 'one'"),
        (["one", "CASES", "--smooth-mm", "1"], "are for --kind tps"),
        (["one", "CASES", "--kind", "tps", "--smooth-mm", "-1"], "give a number from 0 to 1,000,000"),
        (["one", "CASES", "--kind", "tps", "--field-mm", "0.001"], "make it coarser"),
        (["one", "CASES", "--moving-image", "x.nii"], "there are 2 cases"),
    ],
)
def test_bad_registrations_end_with_one_line(
    moved: tuple[Path, int], arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(moved[0]) if a == "CASES" else a for a in arguments]
    assert _run("register", *given, "--out", tmp_path / "out") == 2
    told = capsys.readouterr()
    assert words in told.err + told.out
    assert "Traceback" not in told.err


def test_crops_keep_their_place_and_go_back(
    moved: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, d = moved
    out, picture = tmp_path / "out", ".mha" if d == 2 else ".nii.gz"
    given = ("crop", cases, "--out", out, "--points", "B,C", "--margin-mm", 5)
    assert _run(*given, "--json") == 2
    told = capsys.readouterr()
    assert "none of the 2 landmarks to crop around is defined" in told.err
    rows = {r["case"]: r for r in json.loads(told.out)["cases"]}
    assert rows["bare"]["state"] == "failed"
    for name in ("one", "two"):
        original, part = (read_image(f / f"{name}{picture}") for f in (cases.parent, out))
        row, marks = rows[name], read_landmarks(out / f"{name}{'.csv' if d == 2 else '.mrk.json'}")
        np.testing.assert_array_equal(part.array[0], original.array[0][_inside(row)])
        chosen = [marks[n] for n in ("B", "C")]
        np.testing.assert_allclose(original.grid.to_index(chosen) - row["lower"], part.grid.to_index(chosen), atol=1e-3)
        assert part.grid.contains(chosen).all()
        segmented = Image((part.array > 60).astype(np.uint8), part.grid)
        write_image(segmented, tmp_path / f"seg{picture}")
        whole = paste(read_image(tmp_path / f"seg{picture}"), image_grid(cases.parent / f"{name}{picture}"))
        inside = _inside(row)
        np.testing.assert_array_equal(whole.array[0][inside], segmented.array[0])
        assert whole.array.sum() == segmented.array.sum()
    before = _tree(out)
    assert _run(*given) == 2
    assert "exists already" in capsys.readouterr().err
    assert _tree(out) == before


def test_crops_of_one_size_padded(moved: tuple[Path, int], tmp_path: Path) -> None:
    cases, d = moved
    out, picture = tmp_path / "out", ".mha" if d == 2 else ".nii.gz"
    given = ("crop", cases, "--out", out, "--size-mm", ",".join(["30", "40", "50"][:d]))
    assert _run(*given, "--pad", -5) == 0
    for name in ("one", "bare"):
        part = read_image(out / f"{name}{picture}")
        np.testing.assert_allclose(part.grid.extent_mm, [50, 40, 30][3 - d :])
    assert part.array.min() == -5  # around one landmark, near the border
    assert _run(*given, "--overwrite") == 0
    assert min(read_image(out / f"bare{picture}").grid.extent_mm) < 40
    row = tiny.read_json(out / "crops.json")["cases"][2]
    assert row["cut_at_border"]
    assert row["skipped"] == list("BCDEFGH")


def test_pictures_need_a_spacing_and_keep_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny.write_study(tmp_path / "data", 1, ndim=2)
    image, marks = study.with_name("case0.png"), study.with_name("case0.csv")
    given = ("crop", image, "--landmarks", marks, "--out", tmp_path / "out", "--margin-mm", 4)
    assert _run(*given) == 2
    assert "spacing" in capsys.readouterr().err
    assert _run(*given, "--spacing", 2) == 0
    part, there = read_image(tmp_path / "out" / "case0.mha"), read_landmarks(tmp_path / "out" / "case0.csv")
    np.testing.assert_allclose(part.grid.spacing, 2)
    assert part.array.dtype == np.uint8
    np.testing.assert_allclose(there.points, read_landmarks(marks).points)
    assert part.grid.contains(there.points).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--margin-mm", "-1"], "from 0 on"),
        (["--size-mm", "a,b"], "is not numbers in mm"),
        (["--size-mm", "5"], "numbers, X,Y"),
        (["--size-mm", "5,5", "--margin-mm", "4"], "give one of them"),
        (["--size-mm", "1e9,1,1"], "at most 100000"),
        (["--points", "B,X"], "--points X: no case has this landmark"),
    ],
)
def test_bad_crops_end_with_one_line(
    moved: tuple[Path, int], options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("crop", moved[0], "--out", tmp_path / "out", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_case_that_fails_now_leaves_nothing_of_the_run_before(
    moved: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, d = moved
    ending, picture = (".csv", ".mha") if d == 2 else (".mrk.json", ".nii.gz")
    commands = {
        tmp_path / "registered": ("register", "one", cases, "--pictures"),
        tmp_path / "cropped": ("crop", cases, "--points", "B,C"),
    }
    for out, command in commands.items():
        assert _run(*command, "--out", out) == 2  # the case "bare" fails
        assert (out / f"two{picture}").is_file()
    marks = read_landmarks(cases.parent / f"two{ending}")
    gone = tuple(Status.DEFINED if i == 0 else Status.ABSENT for i in range(8))
    points = np.where(np.arange(8)[:, None] == 0, marks.points, np.nan)
    write_landmarks(Landmarks(NAMES, points, gone), cases.parent / f"two{ending}")
    capsys.readouterr()
    for out, command in commands.items():
        assert _run(*command, "--out", out, "--overwrite") == 2
        assert not list(out.glob("two*"))
    assert not any((tmp_path / "registered").iterdir())  # all failed: no record that says otherwise
    rows = tiny.read_json(tmp_path / "cropped" / "crops.json")["cases"]
    assert [r["state"] for r in rows] == ["written", "failed", "failed"]


def test_a_transform_without_its_image_is_not_left_behind(
    moved: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anatomark.tools.register import register as module

    def full(*_: object) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(module, "write_image", full)
    assert _run("register", "one", moved[0], "--out", tmp_path / "out") == 2
    assert not list((tmp_path / "out").iterdir())


def test_landmarks_and_manifests_that_are_read_are_never_replaced(
    moved: tuple[Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    cases, d = moved
    picture, other = (".mha", ".nrrd") if d == 2 else (".nii.gz", ".mha")
    for name in ("one", "two", "bare"):  # crops are named otherwise than these images, but as their landmarks
        write_image(read_image(cases.parent / f"{name}{picture}"), cases.parent / f"{name}{other}")
        (cases.parent / f"{name}{picture}").unlink()
    cases.write_text(cases.read_text().replace(picture, other))
    before = _tree(cases.parent)
    assert _run("crop", cases, "--out", cases.parent, "--points", "B", "--overwrite") == 2
    assert "is one of the files to crop; choose another --out" in capsys.readouterr().err
    image = cases.parent / f"one{other}"
    assert _run("crop", image, "--landmarks", cases.parent, "--out", cases.parent, "--overwrite") == 2
    assert _tree(cases.parent) == before


def test_a_huge_crop_and_an_empty_file_end_with_one_line(
    moved: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, d = moved
    size = ",".join(["90000"] * d)
    assert _run("crop", cases, "--out", tmp_path / "out", "--size-mm", size, "--pad", 0) == 2
    assert "voxels, larger than the image; make it smaller" in capsys.readouterr().err
    write_landmarks(Landmarks((), np.zeros((0, d))), tmp_path / "none.json")
    image = cases.parent / ("one.mha" if d == 2 else "one.nii.gz")
    assert _run("crop", image, "--landmarks", tmp_path / "none.json", "--out", tmp_path / "out") == 2
    told = capsys.readouterr()
    assert "holds no landmarks" in told.err and "holds no landmarks" not in told.out
    assert _run("measure", "acpc-length", tmp_path / "none.json", "--out", tmp_path / "t.csv") == 2
    assert "none.json: holds no landmarks" in capsys.readouterr().err


def test_the_form_of_a_nifti_file_is_chosen_and_what_it_leaves_open_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, landmarks = tiny.blobs(0)
    made = nib.Nifti1Image(image.array[0].transpose(2, 1, 0), None)
    forms = [np.diag([-2.0, -2.0, 2.0, 1.0]), np.diag([-2.0, -2.0, 2.0, 1.0])]
    forms[0][0, 3] = -20
    made.set_sform(forms[0], 2)
    made.set_qform(forms[1], 1)
    nib.save(made, tmp_path / "two.nii.gz")
    write_landmarks(landmarks, tmp_path / "two.mrk.json")
    write_landmarks(landmarks, tmp_path / "fixed.mrk.json")
    lower = {}
    for form in ("qform", "sform"):
        out = tmp_path / form
        given = ("--landmarks", tmp_path / "two.mrk.json", "--margin-mm", 3, "--out", out, "--form", form)
        assert _run("crop", tmp_path / "two.nii.gz", *given) == 0
        (row,) = tiny.read_json(out / "crops.json")["cases"]
        assert f"place the image up to 20 mm apart; the {form} is used" in capsys.readouterr().out
        assert ("20 mm apart" in row["notes"][0] and not row["cut_at_border"]) or form == "sform"
        lower[form] = row["lower"]
    assert lower["qform"][:2] == lower["sform"][:2] and lower["qform"][2] > lower["sform"][2]
    files = (tmp_path / "fixed.mrk.json", tmp_path / "two.mrk.json")
    images = ("--fixed-image", tmp_path / "two.nii.gz", "--moving-image", tmp_path / "two.nii.gz")
    assert _run("register", *files, *images, "--out", tmp_path / "reg", "--form", "qform") == 0
    assert capsys.readouterr().out.count("the qform is used") == 2
    assert image_grid(tmp_path / "reg" / "two.nii.gz").origin[0] == 0
    bare = nib.Nifti1Image(np.asarray(made.dataobj), None)
    bare.set_sform(None, 0)
    bare.set_qform(None, 0)
    nib.save(bare, tmp_path / "bare.nii.gz")
    far = replace(landmarks, points=landmarks.points + 500)
    write_landmarks(far, tmp_path / "bare.mrk.json")
    given = ("--landmarks", tmp_path / "bare.mrk.json", "--out", tmp_path / "bare")
    assert _run("crop", tmp_path / "bare.nii.gz", *given) == 2
    assert "outside the image; note: sets neither sform nor qform" in capsys.readouterr().err
    assert _run("crop", tmp_path / "two.nii.gz", *given, "--form", "both") == 2


def test_pictures_that_cannot_be_drawn_are_mentioned(
    moved: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, d = moved
    files = [cases.parent / f"{n}{'.csv' if d == 2 else '.mrk.json'}" for n in ("one", "two")]
    for n, file in enumerate(files):
        write_landmarks(read_landmarks(file), tmp_path / f"{n}.json")
    assert _run("register", tmp_path / "0.json", tmp_path / "1.json", "--out", tmp_path / "out", "--pictures") == 0
    assert "no picture: neither image is known" in capsys.readouterr().out
