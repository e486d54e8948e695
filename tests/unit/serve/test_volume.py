"""Images as the page draws them."""

from __future__ import annotations

import gzip
import time
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.frames import swap_lps_ras
from anatomark.serve.volume import facts, nifti, packed

SPACING = np.array([0.7, 1.1, 2.3])


def image_of(grid: Grid, dtype: str = "int16", channels: int = 1) -> Image:
    values = np.random.default_rng(0).integers(0, 200, (channels, *grid.shape))
    return Image(values.astype(dtype), grid)


def read(image: Image, folder: Path) -> nibabel.Nifti1Image:
    file = folder / "x.nii.gz"
    file.write_bytes(packed(nifti(image)))
    return nibabel.load(file)


def test_voxels_lie_where_they_are_in_all_orders_of_axes(tmp_path: Path) -> None:
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        axes = np.zeros((3, 3))
        axes[list(order), range(3)] = SPACING * signs
        grid = Grid.from_axes((3, 4, 5), axes, (11.0, -7.0, 3.0))
        image = image_of(grid)
        file = read(image, tmp_path)
        for index in ((0, 0, 0), (2, 1, 4)):
            there = file.affine @ [*index[::-1], 1]
            np.testing.assert_allclose(there[:3], swap_lps_ras(grid.to_world(index)), atol=1e-5)
            assert np.asarray(file.dataobj)[index[::-1]] == image.array[(0, *index)]


def test_oblique_axes_are_kept(tmp_path: Path) -> None:
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    grid = Grid.from_axes((3, 4, 5), turn * SPACING, (100.0, -7.0, 3.0))
    there = read(image_of(grid), tmp_path).affine @ [4, 3, 2, 1]
    np.testing.assert_allclose(there[:3], swap_lps_ras(grid.to_world((2, 3, 4))), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "sent"),
    [("uint8", "uint8"), ("int16", "int16"), ("uint16", "uint16"), (">i2", "int16"), ("float32", "float32"),
     ("int32", "uint8"), ("int8", "uint8"), ("bool", "uint8"), ("float64", "float32"), ("int64", "uint8")],
)  # fmt: skip
def test_the_type_is_kept_where_the_page_draws_it(tmp_path: Path, given: str, sent: str) -> None:
    image = image_of(Grid.from_axes((3, 4, 5), np.eye(3)[:, ::-1], np.zeros(3)), "float32")
    image = Image((image.array % 100).astype(given), image.grid)
    file = read(image, tmp_path)
    assert file.get_data_dtype() == np.dtype(sent)
    np.testing.assert_array_equal(np.asarray(file.dataobj).T, image.array[0].astype(float))


def test_large_whole_numbers_become_floats(tmp_path: Path) -> None:
    grid = Grid.from_axes((1, 1, 2), np.eye(3)[:, ::-1], np.zeros(3))
    file = read(Image(np.array([[[[-70000, 5]]]]), grid), tmp_path)
    assert file.get_data_dtype() == np.float32 and np.asarray(file.dataobj).ravel().tolist() == [-70000, 5]


def test_a_2d_image_is_one_slice_with_rows_upwards(tmp_path: Path) -> None:
    grid = Grid.from_axes((3, 4), [[0, 0.5], [2.0, 0]], (10.0, 20.0))
    image = image_of(grid)
    file = read(image, tmp_path)
    np.testing.assert_array_equal(np.asarray(file.dataobj), image.array[0].T[:, ::-1, None])
    np.testing.assert_array_equal(file.affine, np.diag([0.5, 2.0, 1, 1]))
    said = facts(grid)
    assert (said["size"], said["spacing"], said["origin"]) == ([4, 3], [0.5, 2.0], [10.0, 20.0])


def test_a_mirrored_2d_image_stands_as_it_lies_in_its_world(tmp_path: Path) -> None:
    grid = Grid.from_axes((3, 4), [[0, -0.5], [2.0, 0]], (10.0, 20.0))
    image = image_of(grid)
    file = read(image, tmp_path)
    np.testing.assert_array_equal(np.asarray(file.dataobj), image.array[0][:, ::-1].T[:, ::-1, None])
    assert facts(grid)["origin"] == [8.5, 20.0]


def test_colour_becomes_grey_and_turned_2d_axes_are_refused(tmp_path: Path) -> None:
    grid = Grid.from_axes((3, 4), [[0, 1.0], [1.0, 0]], (0.0, 0.0))
    colour = Image(np.stack([np.full((3, 4), v, dtype=np.uint8) for v in (255, 0, 0)]), grid)
    assert set(np.asarray(read(colour, tmp_path).dataobj).ravel().tolist()) == {76}
    turned = Grid.from_axes((3, 4), [[-0.1, 0.995], [0.995, 0.1]], (0.0, 0.0))
    with pytest.raises(InputError, match="turned"):
        nifti(image_of(turned))


def test_a_whole_head_is_packed_at_once() -> None:
    image = Image(np.zeros((1, 256, 256, 256), np.int16), Grid.from_axes((256,) * 3, np.eye(3)[:, ::-1], np.zeros(3)))
    start = time.process_time()
    data = packed(nifti(image))
    assert time.process_time() - start < 1.0
    assert len(gzip.decompress(data)) == 352 + 2 * 256**3
