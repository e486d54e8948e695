"""2D images that state an origin, as cropped X-rays do: px and mm mean one place in every command, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.manifest import read_manifest
from anatomark.cli import app as cli
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.io.images import image_grid, write_image
from anatomark.io.landmarks import read_landmarks
from anatomark.io.tables import read_table

tiny.register()
NAMES = "abc"


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0)


def _table(path: Path, unit: str, points: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = "".join(f"{n},{x},{y}\n" for n, (x, y) in zip(NAMES, points, strict=True))
    path.write_text(f"# frame=image unit={unit}\nlabel,x,y\n{rows}")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Four cases, each with an origin of its own; their landmarks in ``px`` and in ``mm``, and a manifest of each."""
    for k in range(4):
        image, landmarks = tiny.blobs(k, 2)
        grid = Grid.from_axes(image.grid.shape, [[0.0, 0.1], [0.2, 0.0]], (3.0 * k, 6.0))
        index = image.grid.to_index(landmarks.points)
        write_image(Image(image.array, grid), tmp_path / f"{k}.mha")
        _table(tmp_path / "px" / f"{k}.csv", "px", index[:, ::-1])
        _table(tmp_path / "mm" / f"{k}.csv", "mm", grid.to_world(index))
    for unit in ("px", "mm"):
        rows = "".join(f"{k},{k}.mha,{unit}/{k}.csv,{'train' if k < 3 else 'test'}\n" for k in range(4))
        (tmp_path / f"{unit}.csv").write_text("case,image,landmarks,split\n" + rows)
    return tmp_path


def _true(study: Path, k: int) -> np.ndarray:
    return read_landmarks(study / "mm" / f"{k}.csv").points


def test_manifests_and_tools(study: Path, tmp_path: Path) -> None:
    for case, other in zip(*(read_manifest(study / f"{u}.csv").cases for u in ("px", "mm")), strict=True):
        np.testing.assert_allclose(case.landmarks.points, other.landmarks.points)
    boxes = []
    for unit in ("px", "mm"):
        for more in ((), ("--spacing", "0.1;0.2")):
            out = tmp_path / f"crop-{unit}-{len(more)}"
            marks = ("--landmarks", study / unit / "2.csv", "--margin-mm", 0.3)
            assert _run("crop", study / "2.mha", *marks, "--out", out, *more) == 0
            (row,) = tiny.read_json(out / "crops.json")["cases"]
            boxes.append((row["lower"], row["upper"]))
            np.testing.assert_allclose(read_landmarks(out / "2.csv").points, _true(study, 2), atol=1e-5)
    assert all(box == boxes[0] for box in boxes)
    index = image_grid(study / "2.mha").to_index(_true(study, 2))
    assert (boxes[0][0] <= index.min(0)).all() and (index.max(0) <= boxes[0][1]).all()
    assert _run("simulate", study / "px.csv", "--out", tmp_path / "new", "--count", 1, "--include-originals") == 0
    real, *_, new = read_manifest(tmp_path / "new" / "cases.csv").cases
    np.testing.assert_allclose(real.landmarks.points, _true(study, 0), atol=1e-5)
    assert new.image().grid == real.image().grid


@pytest.mark.parametrize("kind", ["rigid", "tps"])
def test_register(study: Path, tmp_path: Path, kind: str) -> None:
    """Two landmark files in px with their images are as two in mm."""
    records = []
    for unit in ("px", "mm"):
        files = (study / unit / "0.csv", study / unit / "1.csv")
        images = ("--fixed-image", study / "0.mha", "--moving-image", study / "1.mha")
        assert _run("register", *files, *images, "--out", tmp_path / unit, "--kind", kind) == 0
        (row,) = tiny.read_json(tmp_path / unit / "registration.json")["cases"]
        records.append(row["matrix"] if kind == "rigid" else row["field"]["affine"])
    np.testing.assert_allclose(*records, atol=1e-5)


def test_convert_there_and_back(study: Path, tmp_path: Path) -> None:
    """``--image`` says where the pixels lie; without it they have no origin."""
    px, image = study / "px" / "3.csv", ("--image", study / "3.mha")
    assert _run("convert", px, tmp_path / "a.csv", *image) == 0
    np.testing.assert_allclose(read_landmarks(tmp_path / "a.csv").points, _true(study, 3), atol=1e-5)
    table = (tmp_path / "a.csv").read_text().splitlines()
    columns, first = (line.split(",") for line in table[1:3])
    pixels = [float(first[columns.index(c)]) for c in ("x_px", "y_px")]
    np.testing.assert_allclose(pixels, read_table(px).pick(None).points[0], atol=1e-4)
    assert _run("convert", px, tmp_path / "b.mrk.json", *image) == 0
    np.testing.assert_allclose(read_landmarks(tmp_path / "b.mrk.json").points[:, :2], _true(study, 3), atol=1e-5)
    assert _run("convert", px, tmp_path / "c.csv", "--spacing", "0.1;0.2") == 0
    np.testing.assert_allclose(read_landmarks(tmp_path / "c.csv").points, _true(study, 3) - (9, 6), atol=1e-5)


def test_what_predict_wrote_is_measured_alike_in_px_and_mm(study: Path, tmp_path: Path) -> None:
    run, found, pixels = tmp_path / "run", tmp_path / "found", tmp_path / "pixels"
    assert _run("fit", study / "px.csv", "--out", run, "--method", "tiny", "--steps", 4) == 0
    assert _run("predict", run, study / "px.csv", "--out", found) == 0
    grid = image_grid(study / "3.mha")
    written = read_landmarks(found / "3.csv").points
    np.testing.assert_allclose(read_landmarks(found / "3.json").points, written, atol=1e-4)
    assert grid.contains(written).all()
    for k in range(4):
        index = image_grid(study / f"{k}.mha").to_index(read_landmarks(found / f"{k}.csv").points)
        _table(pixels / f"{k}.csv", "px", index[:, ::-1])
    figures = []
    for model in (run, found, pixels):
        out = tmp_path / f"measured-{model.name}"
        assert _run("evaluate", model, study / "mm.csv", "--out", out) == 0
        figures.append(tiny.read_json(out / "summary.json")["mre_mm"])
    np.testing.assert_allclose(figures, figures[0], atol=1e-4)
