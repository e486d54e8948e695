"""The public data of ANATOMARK_DATA, read by the front doors; skipped where the folder is absent."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from anatomark.cases.manifest import read_manifest
from anatomark.io.images import read_image
from anatomark.io.landmarks import read_landmarks, write_landmarks

DATA = Path(os.environ.get("ANATOMARK_DATA", Path(__file__).parents[4] / "shared" / "data"))
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="no real data here; set ANATOMARK_DATA"),
]


def test_every_skulls_markups_round_trip(tmp_path):
    paths = sorted((DATA / "mouse_skull").glob("*.mrk.json"))
    assert len(paths) == 22
    for path in paths:
        write_landmarks(read_landmarks(path), tmp_path / path.name)
        assert json.loads((tmp_path / path.name).read_text()) == json.loads(path.read_text())


def test_skulls_manifest():
    manifest = read_manifest(DATA / "mouse_skull" / "cases.csv")
    assert (len(manifest.split("train")), len(manifest.split("val"))) == (16, 6)
    case = manifest.cases[0]
    image, landmarks = case.image(), case.landmarks
    assert len(landmarks) == 45
    assert image.grid.contains(landmarks.points).all()


def test_brains_fcsv_round_trip_and_grid(tmp_path):
    nib = pytest.importorskip("nibabel")
    path = DATA / "brain" / "Colin27_afids.fcsv"
    landmarks = read_landmarks(path)
    assert landmarks.descriptions[0] == "AC"
    np.testing.assert_allclose(landmarks["1"], [-0.547527528125, -4.007721875, -5.85731125])
    write_landmarks(landmarks, tmp_path / "a.fcsv")
    assert (tmp_path / "a.fcsv").read_text().split() == path.read_text().split()
    image = read_image(DATA / "brain" / "Colin27_T1w.nii.gz")
    affine = nib.load(DATA / "brain" / "Colin27_T1w.nii.gz").affine
    corner = np.array(image.grid.shape) - 1
    ras = affine @ [*corner[::-1], 1]
    np.testing.assert_allclose(image.grid.to_world(corner), ras[:3] * [-1, -1, 1], atol=1e-6)


def test_cephalogram_is_grey_with_the_users_spacing():
    image = read_image(DATA / "cephalogram" / "images" / "001.jpg", 0.1)
    assert image.array.shape == (1, 2400, 1935)
    np.testing.assert_allclose(image.grid.spacing, 0.1)


@pytest.mark.parametrize(
    "name", ["abdomen_ct_3mm.nii.gz", "lung_ct.mha", "brain_t1_anisotropic.nrrd", "head_t1_1.6mm.nii.gz"]
)
def test_other_volumes(name):
    assert read_image(DATA / "other" / name).ndim == 3
