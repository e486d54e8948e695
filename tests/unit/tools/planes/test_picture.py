"""The picture of a scan plane: which landmarks are drawn, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.model.config import checked
from anatomark.pictures.style import PREDICTION, TRUTH
from anatomark.tools.planes.geometry import Plane, find_planes
from anatomark.tools.planes.picture import plane_picture
from anatomark.tools.planes.schema import PlaneSet
from points import named


def _near(pixels: np.ndarray, colour: str) -> np.ndarray:
    """(N, 2) rows and columns of the pixels of a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere(np.abs(pixels[..., :3].astype(int) - wanted).max(-1) < 12)


@pytest.mark.parametrize(("slab", "shown"), [(0, False), (0, True), (12, True)])
def test_filled_in_the_plane_and_rings_near_it(tmp_path: Path, slab: float, shown: bool) -> None:
    beside = 5.0 if slab or not shown else 1.5
    marks = named({"in": (0, 20, -10), "beside": (beside, -20, 15), "far": (30, 0, 0)})
    plane = {"through": ["in"], "normal": "left", "centre": {"in": 1}, "size_mm": [100, 80], "slab_mm": slab}
    found = find_planes(checked(PlaneSet, {"planes": {"it": plane}}, "test"), marks)["it"]
    assert isinstance(found, Plane)
    grid = Grid.centred((90, 110, 90), np.eye(3)[:, ::-1], (0, 0, 0))
    image = Image(np.full((1, *grid.shape), 7, dtype=np.uint8), grid)
    file = tmp_path / "plane.png"
    file.write_bytes(plane_picture(found.cut(image), found, marks, "case  it"))
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    height, width = pixels.shape[:2]
    assert width / height == pytest.approx(100 / 80, rel=0.01)
    middle = _near(pixels, PREDICTION).mean(0)  # the point in the plane is the picture's middle
    assert np.allclose(middle, (height / 2, width / 2), atol=2)
    rings = _near(pixels, TRUTH)
    assert bool(len(rings)) is shown
    if shown:  # 40 mm anterior, which is left, and 25 mm above
        assert np.allclose(rings.mean(0), (height * (0.5 - 25 / 80), width * (0.5 - 40 / 100)), atol=2)
