import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.core.grid import Grid
from anatomark.core.shape import random_rotation
from anatomark.errors import InputError
from anatomark.io.transforms import read_affine, write_affine, write_displacements


@pytest.mark.parametrize("ending", ["tfm", "txt", "h5", "mat"])
@pytest.mark.parametrize("d", [2, 3])
def test_write_read(tmp_path, ending, d):
    matrix = np.eye(d + 1)
    matrix[:d] += np.random.default_rng(0).normal(size=(d, d + 1))
    write_affine(matrix, tmp_path / f"a.{ending}")
    np.testing.assert_allclose(read_affine(tmp_path / f"a.{ending}"), matrix, atol=1e-12)
    point = np.arange(d) * 3.7
    by_itk = sitk.ReadTransform(str(tmp_path / f"a.{ending}")).TransformPoint(point.tolist())
    np.testing.assert_allclose(by_itk, matrix[:d, :d] @ point + matrix[:d, d], atol=1e-12)


def test_chain_of_linear_transforms_with_centres(tmp_path):
    turn = sitk.Euler3DTransform((10.0, 20.0, 30.0), 0.1, 0.2, 0.3, (1.0, 2.0, 3.0))
    chain = sitk.CompositeTransform([turn, sitk.TranslationTransform(3, (5.0, 6.0, 7.0))])
    sitk.WriteTransform(chain, str(tmp_path / "a.tfm"))
    point = (4.0, -3.0, 2.0)
    np.testing.assert_allclose(
        (read_affine(tmp_path / "a.tfm") @ [*point, 1])[:3], chain.TransformPoint(point), atol=1e-10
    )


def test_refused(tmp_path):
    sitk.WriteTransform(
        sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64)), str(tmp_path / "d.h5")
    )
    (tmp_path / "text.tfm").write_text("hello")
    for name, words in (("d.h5", "not linear"), ("text.tfm", "no readable ITK transform"), ("x.tfm", "no such file")):
        with pytest.raises(InputError, match=words) as caught:
            read_affine(tmp_path / name)
        assert "\n" not in str(caught.value)
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
