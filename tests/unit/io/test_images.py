import itertools
import locale
import os
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.images import find_images, image_grid, read_image, squeeze_to_2d, write_image

RNG = np.random.default_rng(0)
LPS = np.diag([-1.0, -1.0, 1.0])


def refused(path, words, spacing=None):
    with pytest.raises(InputError, match=words) as caught:
        read_image(path, spacing)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def volume(shape=(4, 5, 6), dtype=np.int16):
    return RNG.integers(0, 100, shape).astype(dtype)


def picture(path, array, vector=False):
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(path))
    return path


def oblique_directions():
    a = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3.0
    b = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1.0]])
    return [a, b, a * [1, 1, -1], a @ b]


def all_directions():
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            yield np.eye(3)[:, order] * signs
    yield from oblique_directions()


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_52_orientations_agree_with_simpleitk_and_nibabel(tmp_path, ending):
    array = volume()  # (z, y, x)
    spacing, origin = np.array([3.0, 6.0, 1.5]), np.array([-11.0, 7.5, 20.25])
    indices = RNG.uniform(-2, 8, (20, 3))  # x, y, z
    for n, direction in enumerate(all_directions()):
        path = tmp_path / f"{n}{ending}"
        if ending == ".nii.gz":
            affine = np.eye(4)
            affine[:3, :3], affine[:3, 3] = LPS @ direction * spacing, LPS @ origin
            nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
        else:
            itk = sitk.GetImageFromArray(array)
            itk.SetDirection(direction.ravel().tolist())
            itk.SetSpacing(spacing.tolist())
            itk.SetOrigin(origin.tolist())
            sitk.WriteImage(itk, str(path))
        image = read_image(path)
        assert image.array.dtype == array.dtype
        np.testing.assert_array_equal(image.array[0], array)
        world = image.grid.to_world(indices[:, ::-1])
        reference = sitk.ReadImage(str(path))
        expected = [reference.TransformContinuousIndexToPhysicalPoint(i.tolist()) for i in indices]
        np.testing.assert_allclose(world, expected, atol=1e-6, rtol=0)
        if ending == ".nii.gz":
            ras = nib.affines.apply_affine(nib.load(path).affine, indices)
            np.testing.assert_allclose(world, ras @ LPS, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_write_read(tmp_path, ending, dtype):
    grid = Grid.from_axes((4, 5, 6), (oblique_directions()[0] * [0.5, 1.5, 3.0])[:, ::-1], (1.0, -2.0, 3.0))
    image = Image(volume(dtype=dtype)[None], grid)
    write_image(image, tmp_path / f"a{ending}")
    back = read_image(tmp_path / f"a{ending}")
    assert back.array.dtype == image.array.dtype
    np.testing.assert_array_equal(back.array, image.array)
    np.testing.assert_allclose(back.grid.affine, grid.affine, atol=1e-6)
    assert image_grid(tmp_path / f"a{ending}") == back.grid
    assert os.listdir(tmp_path) == [f"a{ending}"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_sheared_axes_are_written_and_read(tmp_path, ending):
    axes = np.array([[0.1, 0, 1.1], [0.3, 0.9, 0], [2.5, 0.1, 0]])
    image = Image(volume()[None], Grid.from_axes((4, 5, 6), axes, (1.0, -2.0, 3.0)))
    write_image(image, tmp_path / f"a{ending}")
    back = read_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(back.array, image.array)
    np.testing.assert_allclose(back.grid.affine, image.grid.affine, atol=1e-6)


def test_write_read_2d_picture(tmp_path):
    image = Image(volume((1, 7, 9), np.uint8), Grid.from_axes((7, 9), [[0, 0.2], [0.3, 0]], (0, 0)))
    for name in ("a.png", "a.bmp", "a.tif"):
        write_image(image, tmp_path / name)
        back = read_image(tmp_path / name, (0.2, 0.3))
        np.testing.assert_array_equal(back.array, image.array)
        assert back.grid == image.grid


def test_writing_refuses(tmp_path, monkeypatch):
    grid = Grid.from_axes((4, 5, 6), np.eye(3) + 0.3 * np.eye(3, k=1), (0, 0, 0))
    image = Image(volume()[None], grid)
    for name, words in (("a.xyz", "written as"), ("a.png", "2D")):
        with pytest.raises(InputError, match=words):
            write_image(image, tmp_path / name)

    def half_written(itk, path, **_):  # NIfTI's writer reports success on a full disk
        Path(path).write_bytes(b"")

    monkeypatch.setattr(sitk, "WriteImage", half_written)
    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be written whole; is the disk full"):
        write_image(Image(volume()[None], Grid.from_axes((4, 5, 6), np.eye(3), (0, 0, 0))), tmp_path / "a.nii.gz")
    assert os.listdir(tmp_path) == []


def test_picture_needs_a_spacing(tmp_path):
    array = volume((40, 30), np.uint8)
    for ending in ("png", "jpg", "bmp", "tif"):
        path = picture(tmp_path / f"a.{ending}", array)
        refused(path, "no spacing.*`spacing`")
        grid = read_image(path, (0.1, 0.2)).grid
        assert grid.shape == (40, 30)
        np.testing.assert_allclose(grid.to_world([3, 2]), [0.2, 0.6])  # row 3, column 2
        assert read_image(path, 0.1).grid == image_grid(path, [0.1])
        refused(path, "positive", -1)
        refused(path, "3 spacings", (1, 1, 1))


def test_header_dpi_is_not_believed(tmp_path):
    itk = sitk.GetImageFromArray(volume((40, 30), np.uint8))
    itk.SetSpacing((0.254, 0.254))
    sitk.WriteImage(itk, str(tmp_path / "a.tif"))
    refused(tmp_path / "a.tif", "no spacing")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", 0.1).grid.spacing, 0.1)


def test_channels(tmp_path):
    grey = volume((9, 8), np.uint8)
    equal = read_image(picture(tmp_path / "e.png", np.stack([grey] * 3, -1), True), 1)
    np.testing.assert_array_equal(equal.array, grey[None])
    colour = volume((9, 8, 3), np.uint8)
    assert read_image(picture(tmp_path / "c.png", colour, True), 1).array.shape == (3, 9, 8)
    with_alpha = np.concatenate([colour, np.full((9, 8, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(
        read_image(picture(tmp_path / "a.png", with_alpha, True), 1).array, np.moveaxis(colour, -1, 0)
    )
    grey_alpha = np.stack([grey, np.full_like(grey, 255)], -1)
    np.testing.assert_array_equal(read_image(picture(tmp_path / "g.png", grey_alpha, True), 1).array[0], grey)
    deep = picture(tmp_path / "d.png", grey_alpha.astype(np.uint16), True)
    refused(deep, "16 bits with transparency.*without transparency", 1)


def exif(orientation):
    return b"II*\0" + struct.pack("<IHHHIIHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def test_rotated_pictures_are_refused(tmp_path):
    jpeg = picture(tmp_path / "a.jpg", volume((16, 16), np.uint8)).read_bytes()
    for orientation in (1, 6):
        block = b"Exif\0\0" + exif(orientation)
        (tmp_path / "b.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:])
        if orientation == 1:
            assert read_image(tmp_path / "b.jpg", 1).array.shape == (1, 16, 16)
        else:
            refused(tmp_path / "b.jpg", r"rotated.*orientation 6.*auto-orient", 1)
    png = picture(tmp_path / "a.png", volume((16, 16), np.uint8)).read_bytes()
    chunk = b"eXIf" + exif(8)
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "b.png").write_bytes(png[:33] + whole + png[33:])
    refused(tmp_path / "b.png", "rotated", 1)


def test_spacing_given_for_a_volume_must_agree(tmp_path):
    itk = sitk.GetImageFromArray(volume())
    itk.SetSpacing((1.0, 2.0, 3.0))
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(itk, str(path))
    assert read_image(path, (1.0, 2.0, 3.005)).grid.spacing.tolist() == [3.0, 2.0, 1.0]
    refused(path, r"1;2;3 mm, but 1;2;2 was given", (1, 2, 2))
    refused(path, "was given", 1)


def test_trailing_axis_of_length_one(tmp_path):
    itk = sitk.GetImageFromArray(volume((1, 5, 6)))
    itk.SetSpacing((0.5, 0.25, 7.0))
    itk.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    itk.SetOrigin((9, 9, 9))
    sitk.WriteImage(itk, str(tmp_path / "a.nii.gz"))
    image = read_image(tmp_path / "a.nii.gz", (0.5, 0.25))
    assert image.ndim == 3
    flat = squeeze_to_2d(image)
    assert flat.array.shape == (1, 5, 6)
    np.testing.assert_allclose(flat.grid.to_world([2, 1]), [0.5, 0.5])
    assert squeeze_to_2d(flat) is flat
    with pytest.raises(InputError, match="2D, but the image is 3D"):
        squeeze_to_2d(Image(volume()[None], Grid.from_axes((4, 5, 6), np.eye(3), (0, 0, 0))))


def test_4d(tmp_path):
    nib.save(nib.Nifti1Image(volume((4, 5, 6, 2)), np.eye(4)), tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", r"4 dimensions \(4 x 5 x 6 x 2\)")
    one = sitk.JoinSeries([sitk.GetImageFromArray(volume())])
    sitk.WriteImage(one, str(tmp_path / "b.mha"))
    assert read_image(tmp_path / "b.mha").array.shape == (1, 4, 5, 6)


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "mha", "nrrd", "png", "jpg", "bmp", "tif", "dcm"])
def test_cut_off_files(tmp_path, ending, capfd):
    array = volume((60, 70), np.uint8) if ending in ("png", "jpg", "bmp", "tif") else volume((3, 60, 70))
    array = array[:1] if ending == "dcm" else array
    whole = picture(tmp_path / f"a.{ending}", array).read_bytes()
    for keep in (0.9, 0.5, 0.02):
        path = tmp_path / f"cut.{ending}"
        path.write_bytes(whole[: int(len(whole) * keep)])
        refused(path, r"cut off|cannot be read|not a NIfTI", 1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_sound_nifti_of_every_kind_passes(tmp_path, order, dtype):
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(order + dtype)
    array = volume()
    image = nib.Nifti1Image(array, np.eye(4), header)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, tmp_path / name)
        back = read_image(tmp_path / name)
        np.testing.assert_array_equal(back.array[0], array.transpose(2, 1, 0))
        assert back.array.dtype == np.dtype(dtype)


def test_gzip_in_two_members_passes(tmp_path):
    import gzip

    nib.save(nib.Nifti1Image(volume(), np.eye(4)), tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]))
    assert read_image(tmp_path / "b.nii.gz").grid.shape == (6, 5, 4)


def test_bad_files(tmp_path):
    refused(tmp_path / "missing.nii.gz", "no such file")
    (tmp_path / "text.nii.gz").write_text("this is a text\n" * 100)
    refused(tmp_path / "text.nii.gz", "not a NIfTI file")
    (tmp_path / "text.mha").write_text("this is a text\n" * 100)
    refused(tmp_path / "text.mha", "no reader knows it")
    (tmp_path / "empty.nrrd").write_bytes(b"")
    refused(tmp_path / "empty.nrrd", "is empty")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "no DICOM series")


@pytest.mark.parametrize(
    ("value", "words"), [(-np.inf, "NaN or infinite"), (np.inf, "NaN or inf"), (None, "constant.*7")]
)
def test_infinite_and_constant(tmp_path, value, words):
    array = volume(dtype=np.float32)
    if value is None:
        array[:] = 7
    else:
        array[1, 2, 3] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii.gz"))
    refused(tmp_path / "a.nii.gz", words)


def write_dicom(path, array, **tags):
    itk = sitk.GetImageFromArray(array)
    itk.SetSpacing((0.5, 0.25, 2.0)[: array.ndim])
    for key, text in tags.items():
        itk.SetMetaData(key.strip("_").replace("_", "|"), text)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(f"{path}.dcm")
    before = locale.setlocale(locale.LC_ALL)
    writer.Execute(itk)
    locale.setlocale(locale.LC_ALL, before)  # GDCM's writer leaves the program in another one
    Path(f"{path}.dcm").rename(path)


def write_series(folder, positions, uid="1.2.3"):
    folder.mkdir()
    data = volume((len(positions), 5, 6))
    for n, z in enumerate(positions):
        tags = {
            "_0008_0060": "CT", "_0008_0016": "1.2.840.10008.5.1.4.1.1.2", "_0008_0018": f"{uid}.{n}",
            "_0020_000e": uid, "_0020_000d": "1.2.9", "_0020_0032": f"1\\2\\{z}",
            "_0020_0037": "1\\0\\0\\0\\1\\0", "_0020_0013": str(n), "_0028_0030": "0.25\\0.5",
        }  # fmt: skip
        write_dicom(folder / f"im{n:02}", data[n : n + 1], **tags)
    return data


def test_dicom_series(tmp_path):
    data = write_series(tmp_path / "s", [10, 12, 14, 16])
    image = read_image(tmp_path / "s")
    np.testing.assert_array_equal(image.array[0], data)
    np.testing.assert_allclose(image.grid.to_world([3, 0, 0]), [1, 2, 16])
    np.testing.assert_allclose(image.grid.spacing, [2, 0.25, 0.5])
    assert image.meta["modality"] == "CT"
    assert image_grid(tmp_path / "s") == image.grid
    assert find_images([tmp_path / "s"]) == [tmp_path / "s"]
    assert find_images([tmp_path]) == [tmp_path / "s"]


def test_dicom_series_with_a_gap(tmp_path):
    write_series(tmp_path / "s", [10, 12, 16, 18])
    refused(tmp_path / "s", "2 to 4 mm apart")


def test_dicom_single_file(tmp_path):
    array = volume((1, 5, 6), np.uint16)
    base = {"_0008_0060": "DX", "_0008_0016": "1.2.840.10008.5.1.4.1.1.7"}
    write_dicom(tmp_path / "p.dcm", array, **base, _0028_0030="0.25\\0.5")
    plain = read_image(tmp_path / "p.dcm")
    np.testing.assert_array_equal(plain.array[0], array)
    assert plain.grid.spacing.tolist()[1:] == [0.25, 0.5]
    data = (tmp_path / "p.dcm").read_bytes()
    (tmp_path / "n.dcm").write_bytes(data.replace(b"MONOCHROME2 ", b"MONOCHROME1 "))
    inverted = read_image(tmp_path / "n.dcm")
    assert inverted.array.dtype == plain.array.dtype
    np.testing.assert_array_equal(inverted.array[0], 65535 - array)
    (tmp_path / "u.dcm").write_bytes(data.replace(b"\x28\x00\x30\x00", b"\x28\x00\x31\x00"))
    refused(tmp_path / "u.dcm", "no spacing")
    assert squeeze_to_2d(read_image(tmp_path / "u.dcm", 0.1)).grid.spacing.tolist() == [0.1, 0.1]


@pytest.mark.parametrize("columns", [2, 8])
def test_other_formats_are_not_taken_for_dicom_without_a_preamble(tmp_path, columns):
    itk = sitk.GetImageFromArray(volume((4, 5, columns), np.int16))
    itk.SetSpacing((0.5, 0.5, 2.0))
    sitk.WriteImage(itk, str(tmp_path / "a.mrc"))
    read = read_image(tmp_path / "a.mrc")
    np.testing.assert_array_equal(read.array[0], sitk.GetArrayFromImage(itk))
    np.testing.assert_allclose(read.grid.spacing, (2.0, 0.5, 0.5))


def test_find_images(tmp_path):
    for name in ("b.png", "a.png"):
        picture(tmp_path / name, volume((9, 8), np.uint8))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".tmp-a.png").write_text("x")
    assert find_images([tmp_path, tmp_path / "a.png"]) == [tmp_path / "a.png", tmp_path / "b.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        find_images([tmp_path / "empty"])
    with pytest.raises(InputError, match="no such file or folder"):
        find_images([tmp_path / "nowhere"])
    folder = tmp_path / "two"
    write_series(folder, [0, 1, 2])
    write_series(tmp_path / "other", [0, 1, 2], uid="1.2.4")
    for path in (tmp_path / "other").iterdir():
        path.rename(folder / f"other{path.name}")
    with pytest.raises(InputError, match="2 DICOM series"):
        find_images([folder])
