import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.core.grid import Grid
from anatomark.core.shape import random_rotation
from anatomark.errors import InputError
from anatomark.io.transforms import write_affine, write_displacements


@pytest.mark.parametrize("ending", ["tfm", "txt", "h5", "mat"])
@pytest.mark.parametrize("d", [2, 3])
def test_write_read(tmp_path, ending, d):
    matrix = np.eye(d + 1)
    matrix[:d] += np.random.default_rng(0).normal(size=(d, d + 1))
    write_affine(matrix, tmp_path / f"a.{ending}")
    point = np.arange(d) * 3.7
    by_itk = sitk.ReadTransform(str(tmp_path / f"a.{ending}")).TransformPoint(point.tolist())
    np.testing.assert_allclose(by_itk, matrix[:d, :d] @ point + matrix[:d, d], atol=1e-12)


def test_refused(tmp_path):
    with pytest.raises(InputError, match="written as"):
        write_affine(np.eye(4), tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="last row"):
        write_affine(np.ones((4, 4)), tmp_path / "a.tfm")


@pytest.mark.parametrize("d", [2, 3])
def test_displacements_move_points_as_itk_does(tmp_path, d):
    rng = np.random.default_rng(1)
    grid = Grid.from_axes((5, 6, 7)[:d], (random_rotation(rng, d) * (1.5, 2.0, 2.5)[:d])[:, ::-1], rng.normal(0, 50, d))
    field = rng.normal(size=(*grid.shape, d))
    write_displacements(field, grid, tmp_path / "field.h5")
    transform = sitk.ReadTransform(str(tmp_path / "field.h5"))
    for index in ((0,) * d, (1, 2, 3)[:d], tuple(n - 1 for n in grid.shape)):
        point = grid.to_world(index)
        np.testing.assert_allclose(transform.TransformPoint(point.tolist()), point + field[index], atol=1e-9)
    between = grid.to_world([1.5] + [2.0] * (d - 1))
    wanted = between + (field[(1, 2, 2)[:d]] + field[(2, 2, 2)[:d]]) / 2
    np.testing.assert_allclose(transform.TransformPoint(between.tolist()), wanted, atol=1e-9)
    assert [p.name for p in tmp_path.iterdir()] == ["field.h5"]
    with pytest.raises(InputError, match=r"written as \.h5"):
        write_displacements(field, grid, tmp_path / "field.tfm")
    with pytest.raises(ValueError, match="does not fit"):
        write_displacements(field[1:], grid, tmp_path / "field.h5")
