"""anatomark planes: slices at their place in the volume, nothing overwritten, reasons where there is no plane."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.cli import app as cli
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import rotation_from_vector
from anatomark.errors import InputError
from anatomark.io.images import read_image, write_image
from anatomark.io.landmarks import write_landmarks
from anatomark.tools.definitions import read_definition
from anatomark.tools.planes.geometry import find_planes
from anatomark.tools.planes.planes import planes
from anatomark.tools.planes.schema import PlaneSet
from points import named

PLANES = """
planes:
  oblique:
    through: [a, b, c]
    size_mm: [16, 12]
    spacing_mm: 0.5
  slab:
    through: [c]
    normal: superior
    size_mm: 10
    slab_mm: 3
measurements: {length: {distance: [a, b]}}
"""
POINTS = {"a": (0, 0, 0), "b": (8, 1, 2), "c": (1, 7, 3), "beside": (3, 3, 2.5), "far": (0, 0, 14)}


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two volumes whose value is a ramp along z, obliquely sampled; the second lacks the landmark c."""
    rows = ["case,image,landmarks,split"]
    for case, gone in (("one", ""), ("two", "c")):
        axes = rotation_from_vector([0.1, 0.2, 0.3]) @ np.eye(3)[:, ::-1]
        grid = Grid.centred((40, 44, 48), axes, (2, 2, 2))
        write_image(Image(grid.points()[None, ..., 2].astype(np.float32) + 100, grid), tmp_path / f"{case}.nii.gz")
        points = np.array([(np.nan,) * 3 if n == gone else p for n, p in POINTS.items()])
        status = tuple(Status.ABSENT if n == gone else Status.DEFINED for n in POINTS)
        write_landmarks(Landmarks(tuple(POINTS), points, status), tmp_path / f"{case}.mrk.json")
        rows.append(f"{case},{case}.nii.gz,{case}.mrk.json,test")
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "planes.yaml").write_text(PLANES)
    return tmp_path


def test_a_manifest(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = study / "out"
    assert _run("planes", study / "planes.yaml", study / "cases.csv", "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "planes.json").read_text())
    first, second = told["cases"]
    assert second["planes"]["oblique"] == {"defined": False, "reason": "landmark 'c' is absent"}
    names = {f"one_{p}.{e}" for p in ("oblique", "slab") for e in ("nii.gz", "png")}
    assert {f.name for f in out.iterdir()} == names | {"planes.json"}
    facts = first["planes"]["oblique"]
    assert set(facts["residuals_mm"]) == {"a", "b", "c"} and max(map(abs, facts["residuals_mm"].values())) < 1e-6
    cut = sitk.ReadImage(str(out / "one_oblique.nii.gz"))
    assert cut.GetSize() == (32, 24, 1) and np.allclose(cut.GetSpacing(), 0.5)
    for name in "abc":  # each point lies in the slice, and the slice shows there what the volume shows
        index = cut.TransformPhysicalPointToContinuousIndex([float(x) for x in POINTS[name]])
        assert abs(index[2]) < 1e-3
        if all(0 <= i <= n - 1 for i, n in zip(index[:2], cut.GetSize(), strict=False)):
            near = [round(i) for i in index]
            assert cut.GetPixel(*near) == pytest.approx(cut.TransformIndexToPhysicalPoint(near)[2] + 100, abs=1e-3)
    corner = cut.TransformContinuousIndexToPhysicalPoint((-0.5, -0.5, 0.0))
    assert np.allclose(corner, facts["corners"][0], atol=1e-4)
    slab = read_image(out / "one_slab.nii.gz")
    assert np.allclose(slab.grid.spacing, (3, 1, 1)) and np.allclose(slab.array, 103, atol=1e-3)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(out / "one_oblique.png"))).std() > 0


def test_a_single_image_and_what_is_never_overwritten(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("planes", study / "planes.yaml", study / "one.nii.gz", "--landmarks", study / "one.mrk.json")
    assert _run(*call, "--out", study / "out") == 0
    assert "2 slices of 1 case:" in capsys.readouterr().out
    before = {f.name: f.stat().st_mtime_ns for f in (study / "out").iterdir()}
    assert _run(*call, "--out", study / "out") == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert {f.name: f.stat().st_mtime_ns for f in (study / "out").iterdir()} == before
    assert _run(*call[:3], "--landmarks", study / "two.mrk.json", "--out", study / "out", "--overwrite") == 2
    told = capsys.readouterr()
    assert "one: oblique is not defined: landmark 'c' is absent" in told.out
    assert "no slice was written" in told.err
    assert not any((study / "out").iterdir())  # nothing of the other landmarks is left


def test_an_input_is_never_replaced(study: Path) -> None:
    (study / "one_slab.nii.gz").write_bytes((study / "one.nii.gz").read_bytes())
    (study / "one_slab.mrk.json").write_bytes((study / "one.mrk.json").read_bytes())
    before = (study / "one_slab.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"one_slab\.nii\.gz: is one of the files to cut; choose another `out`"):
        planes(
            study / "planes.yaml", [study / "one.nii.gz", study / "one_slab.nii.gz"], study, landmarks=study,
            overwrite=True,
        )  # fmt: skip
    assert (study / "one_slab.nii.gz").read_bytes() == before


def test_an_image_that_cannot_be_read_any_more_leaves_no_slices(study: Path) -> None:
    given: dict[str, Any] = {"landmarks": study, "overwrite": True}
    images, out = [study / "one.nii.gz", study / "two.nii.gz"], study / "out"
    assert planes(study / "planes.yaml", images, out, **given).slices == 2
    whole = images[0].read_bytes()
    images[0].write_bytes(whole[: len(whole) // 2])
    result = planes(study / "planes.yaml", images, out, **given)
    assert len(result.failed) == 1 and not list(out.glob("one_*")) and not (out / "planes.json").exists()


def test_huge_slices_and_a_bad_out_are_refused(study: Path) -> None:
    (study / "huge.yaml").write_text(PLANES.replace("[16, 12]", "100000"))
    found = planes(study / "huge.yaml", [study / "one.nii.gz"], study / "out", landmarks=study)
    assert "would have 200000 x 200000 pixels; make size_mm smaller" in found.rows[0]["planes"]["oblique"]["reason"]
    assert found.slices == 1
    for where in (study / "planes.yaml", study / "planes.yaml" / "deep"):
        with pytest.raises(InputError, match=r"`out` .*planes.yaml.* is a file; give a folder"):
            planes(study / "planes.yaml", [study / "one.nii.gz"], where, landmarks=study)
    with pytest.raises(InputError, match=r"is no UTF-8 text; DEFINITION is a YAML file"):
        planes(study / "one.nii.gz", [study / "one.nii.gz"], study / "other", landmarks=study)


def test_what_cannot_be_is_refused_before_any_work(study: Path) -> None:
    slip = study / "slip.yaml"
    slip.write_text(PLANES.replace("[a, b, c]", "[a, b, besides]"))
    marked: dict[str, Any] = {"landmarks": study / "one.mrk.json"}
    with pytest.raises(InputError, match=r"no case has a landmark 'besides' \(did you mean 'beside'"):
        planes(slip, [study / "one.nii.gz"], study / "out", **marked)
    flat = study / "flat.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((9, 9), dtype=np.uint8)), str(flat))
    write_landmarks(named({n: p[:2] for n, p in POINTS.items()}), study / "flat.csv", case="flat")
    with pytest.raises(InputError, match="are 2D"):
        planes(study / "planes.yaml", [flat], study / "out", landmarks=study / "flat.csv", spacing=(1.0, 1.0))
    with pytest.raises(InputError, match=r"no ready definition.*brain-afids"):
        planes("brain-afid", [study / "one.nii.gz"], study / "out", **marked)
    assert not (study / "out").exists()


def test_one_bad_image_does_not_stop_the_others(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (study / "two.nii.gz").read_bytes()
    (study / "two.nii.gz").write_bytes(whole[: len(whole) // 2])  # the header is sound
    images = [study / "one.nii.gz", study / "two.nii.gz"]
    assert _run("planes", study / "planes.yaml", *images, "--landmarks", study, "--out", study / "out") == 2
    told = json.loads((study / "out" / "planes.json").read_text())["cases"]
    assert "failed" in told[1] and told[0]["planes"]["oblique"]["defined"]
    assert "1 of 2 images failed: two" in capsys.readouterr().err


def test_evaluate_measures_planes(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = study / "found"
    shifted = named({n: np.add(p, (0, 0, 2)) for n, p in POINTS.items()})
    for case in ("one", "two"):
        write_landmarks(shifted, found / f"{case}.mrk.json")
    out = study / "evaluation"
    call = ("evaluate", found, study / "cases.csv", "--out", out)
    assert _run(*call, "--planes", study / "planes.yaml") == 0
    assert "plane slab: median 0.00 degrees and 2.00 mm off" in capsys.readouterr().out
    rows = {(r["case"], r["plane"]): r for r in csv.DictReader((out / "planes.csv").open(newline=""))}
    assert float(rows["one", "slab"]["offset_mm"]) == pytest.approx(2)
    assert rows["two", "oblique"]["state"] == "no truth" and rows["two", "oblique"]["angle_deg"] == ""
    definition = read_definition(study / "planes.yaml", PlaneSet, "planes")
    oblique = find_planes(definition, named(POINTS))["oblique"]
    assert not isinstance(oblique, str)
    assert float(rows["one", "oblique"]["offset_mm"]) == pytest.approx(2 * abs(oblique.normal[2]), rel=1e-4)
    table = json.loads((out / "summary.json").read_text())["tables"]["scan planes"]
    assert [(r["plane"], r["measured"]) for r in table] == [("oblique", 1), ("slab", 1)]
    assert "<h2>Scan planes</h2>" in (out / "report.html").read_text(encoding="utf-8")
    assert _run(*call, "--overwrite") == 0
    assert not (out / "planes.csv").exists()
