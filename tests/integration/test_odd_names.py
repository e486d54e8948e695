"""Names of files that are not UTF-8: said in one line, whatever is read, written or printed; the others are done."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from anatomark import Landmarks, read_landmarks, write_image, write_landmarks
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.atomic import write_json
from anatomark.io.transforms import write_affine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
ODD = os.fsdecode(b"b\xff\xfe")
IMAGE = Image(
    np.random.default_rng(0).integers(0, 99, (1, 6, 7, 8)).astype(np.int16),
    Grid.from_axes((6, 7, 8), np.eye(3)[:, ::-1], (0, 0, 0)),
)


def test_one_such_image_costs_one_case(tmp_path):
    write_image(IMAGE, tmp_path / "a.nii.gz")
    (tmp_path / f"{ODD}.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "marks").mkdir()
    for name in ("a", ODD):
        write_landmarks(Landmarks(("p",), [[3.0, 3.0, 3.0]]), tmp_path / "marks" / f"{name}.mrk.json")
    arguments = ["crop", tmp_path / "a.nii.gz", tmp_path / f"{ODD}.nii.gz", "--landmarks", tmp_path / "marks"]
    done = subprocess.run(
        [sys.executable, "-m", "anatomark", *arguments, "--out", tmp_path / "out"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 2 and b"not UTF-8" in done.stderr and b"our fault" not in done.stderr
    assert (tmp_path / "out" / "a.nii.gz").exists()
    cases = json.loads((tmp_path / "out" / "crops.json").read_text())["cases"]
    assert [c["state"] for c in cases] == ["written", "failed"] and cases[1]["case"] == "b\\udcff\\udcfe"


def test_nothing_of_the_kind_is_written_by_itk(tmp_path):
    with pytest.raises(InputError, match="not UTF-8"):
        write_image(IMAGE, tmp_path / f"{ODD}.nii.gz")
    with pytest.raises(InputError, match="not UTF-8"):
        write_affine(np.eye(4), tmp_path / f"{ODD}.tfm")
    assert list(tmp_path.iterdir()) == []


def test_our_own_files_may_be_called_so_and_hold_such_names(tmp_path):
    file = tmp_path / f"{ODD}.mrk.json"
    write_landmarks(Landmarks(("p",), [[1.0, 2.0, 3.0]]), file)
    assert read_landmarks(file).names == ("p",)
    write_json(tmp_path / "a.json", {"path": str(file), "é": "€"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["é"] == "€"
