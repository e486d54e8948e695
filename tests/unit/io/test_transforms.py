import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.errors import InputError
from anatomark.io.transforms import read_affine, write_affine


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
