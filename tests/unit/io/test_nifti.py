"""NIfTI, Analyze and MGH against nibabel (places) and SimpleITK (values, and what 3D Slicer takes)."""

import gzip
import itertools
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomark.errors import InputError
from anatomark.io.images import image_geometry, image_grid, read_image, squeeze_to_2d
from anatomark.io.nifti import slicer_takes

RNG = np.random.default_rng(1)
LPS = np.array([-1.0, -1.0, 1.0])
SIZE = (5, 4, 3)
ARRAY = RNG.integers(0, 100, SIZE).astype(np.int16)
CORNERS = np.array(list(itertools.product(*[(0, n - 1) for n in SIZE])))
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rotation(vector):
    angle = np.linalg.norm(vector)
    x, y, z = np.asarray(vector) / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def affine(vector=(0.2, -0.5, 0.3), spacing=(1.1, 0.9, 1.7), shear=0.0, offset=(-31.0, 17.0, -44.0), flip=1.0):
    made = np.eye(4)
    made[:3, :3] = rotation(vector) @ (np.eye(3) + shear * np.eye(3, k=1)) * np.array(spacing) * [1, 1, flip]
    made[:3, 3] = offset
    return made


def write(path, sform=None, qform=None, codes=(1, 1), maker=nib.Nifti1Image, array=ARRAY, **fields):
    image = maker(array, None)
    image.header.set_data_dtype(array.dtype)
    image.header.set_zooms((1.1, 0.9, 1.7, 1.0, 1.0)[: array.ndim])
    image.set_qform(qform, codes[1] if qform is not None else 0)
    image.set_sform(sform, codes[0] if sform is not None else 0)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def change(path, at, form, *values):
    """The file with other bytes in its header, which nibabel would not write."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, *values)
    path.write_bytes(data)
    return path


def corners_by(matrix):
    return (CORNERS @ matrix[:3, :3].T + matrix[:3, 3]) * LPS


def corners(path, **how):
    return image_grid(path, **how).to_world(CORNERS[:, ::-1])


def refused(path, words, **how):
    with pytest.raises(InputError, match=words) as caught:
        read_image(path, **how)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


vectors = st.tuples(*[st.floats(-3, 3)] * 3).filter(lambda v: np.linalg.norm(v) > 0.01)
spacings = st.tuples(*[st.floats(0.05, 20)] * 3)


@FEW
@given(
    vectors, spacings, st.floats(-0.5, 0.5), st.sampled_from([1.0, -1.0]), st.sampled_from([0, 1, 2, 4]), st.booleans()
)
def test_corners_agree_with_nibabel(tmp_path, vector, spacing, shear, flip, qcode, second):
    made = affine(vector, spacing, shear, flip=flip)
    maker = nib.Nifti2Image if second else nib.Nifti1Image
    path = write(tmp_path / "a.nii", made, made, (2, qcode), maker)
    np.testing.assert_allclose(corners(path), corners_by(nib.load(path).affine), atol=1e-3)
    np.testing.assert_allclose(read_image(path).array[0], ARRAY.transpose(2, 1, 0))
    alone = write(tmp_path / "q.nii", None, affine(vector, spacing, flip=flip))
    np.testing.assert_allclose(corners(alone), corners_by(nib.load(alone).affine), atol=1e-3)


@pytest.mark.parametrize("turn", [(0, 1, -1), (1, 1, 0), (1, 0, 1), (3, 4, 0)])
def test_half_turns_are_not_bent_by_rounding(tmp_path, turn):
    vector = np.array(turn) / np.linalg.norm(turn) * np.pi
    path = write(tmp_path / "a.nii", qform=affine(vector, spacing=(2.2, 1.5, 4.1)), codes=(0, 1))
    header = nib.load(path).header
    np.testing.assert_allclose(corners(path), corners_by(header.get_qform()), atol=1e-4)


@FEW
@given(vectors, st.floats(-0.2, 0.2), st.sampled_from([1, 2, 3, 4]), st.sampled_from([0.0, 0.01, 3.0]))
def test_the_form_that_slicer_takes_is_the_one_that_itk_takes(tmp_path, vector, shear, scode, shift):
    first, second = affine(vector, shear=shear if abs(shear) > 0.01 else 0.0), affine(offset=(shift, 1, 2))
    path = write(tmp_path / "a.nii", first, second, (scode, 1))
    forms = {"sform": nib.load(path).header.get_sform(), "qform": nib.load(path).header.get_qform()}
    itk = sitk.ReadImage(str(path))
    takes = forms[slicer_takes(forms, {"sform": scode, "qform": 1})]
    np.testing.assert_allclose(itk.GetOrigin(), takes[:3, 3] * LPS, atol=1e-4)


def test_two_forms_that_differ_are_said_and_can_be_chosen(tmp_path):
    sform, qform = affine(), affine(vector=(0.1, 0.1, 0.9), offset=(0, 0, 0))
    path = write(tmp_path / "a.nii.gz", sform, qform, (2, 1))
    facts = read_image(path).meta["geometry"]
    assert (facts["spacing"], facts["origin"], facts["direction"]) == ("sform", "sform", "sform")
    apart = np.linalg.norm(corners_by(sform) - corners_by(qform), axis=1).max()
    (note,) = facts["notes"]
    assert f"{apart:.3g} mm apart; the sform is used" in note
    assert "3D Slicer takes the qform: for landmarks placed there give `form` qform" in note
    np.testing.assert_allclose(corners(path), corners_by(sform), atol=1e-4)
    np.testing.assert_allclose(corners(path, form="qform"), corners_by(qform), atol=1e-4)
    np.testing.assert_allclose(corners(path, form="sform"), corners_by(sform), atol=1e-4)
    assert image_geometry(path, form="qform")[1]["direction"] == "qform"
    refused(path, "`form` 'both' is not known", form="both")
    assert read_image(write(tmp_path / "b.nii", sform, sform)).meta["geometry"]["notes"] == []
    only = write(tmp_path / "c.nii", sform)
    np.testing.assert_allclose(corners(only, form="qform"), corners_by(sform), atol=1e-4)
    assert image_geometry(only, form="qform")[1]["notes"] == ["its qform is not set; the sform is used"]


def test_a_qform_of_half_a_turn_is_that_of_nibabel(tmp_path):
    """Rounding in the header then turns the image by 3e-4, unless it is known for what it is."""
    for axis in np.random.default_rng(0).normal(size=(20, 3)):
        turn = axis / np.linalg.norm(axis) * np.pi
        path = write(tmp_path / "a.nii", None, affine(vector=turn, spacing=(5, 5, 5)))
        np.testing.assert_allclose(corners(path), corners_by(nib.load(path).affine), atol=1e-4)


def test_forms_that_differ_in_a_microscopic_image_are_said(tmp_path):
    sform, qform = affine(), affine(offset=(-31.0, 17.0, -43.0))  # 1 micron of voxels of 1
    path = write(tmp_path / "a.nii.gz", sform, qform, xyzt_units=3)
    assert any("up to 0.001 mm apart" in note for note in image_geometry(path)[1]["notes"])


def test_a_plane_that_lies_obliquely_stays_a_slice_in_space(tmp_path):
    flat = ARRAY[:, :, 0]
    lying, tilted = affine(vector=(0, 0, 1e-9)), affine()
    assert image_grid(write(tmp_path / "a.nii.gz", lying, array=flat)).ndim == 2
    image = read_image(write(tmp_path / "b.nii.gz", tilted, array=flat))
    assert image.grid.shape == (1, 4, 5)
    places = CORNERS * [1, 1, 0]
    np.testing.assert_allclose(
        image.grid.to_world(places[:, ::-1]), (places @ tilted[:3, :3].T + tilted[:3, 3]) * LPS, atol=1e-4
    )
    np.testing.assert_allclose(squeeze_to_2d(image).grid.spacing, (0.9, 1.1), atol=1e-5)
    np.testing.assert_array_equal(image.array[0, 0], flat.T)


def test_rounding_noise_is_accepted_and_shear_is_said(tmp_path):
    noisy = affine()
    noisy[:3, :3] += RNG.uniform(-2e-4, 2e-4, (3, 3))
    path = write(tmp_path / "a.nii", noisy)
    np.testing.assert_allclose(corners(path), corners_by(noisy), atol=1e-4)
    assert read_image(path).meta["geometry"]["notes"] == []
    *_, note = read_image(write(tmp_path / "b.nii", affine(shear=0.3))).meta["geometry"]["notes"]
    assert "not at right angles" in note


@pytest.mark.parametrize("value", [0.0, np.nan, -0.9, np.inf])
def test_a_spacing_that_is_none_is_asked_for(tmp_path, value):
    for name, codes in (("q.nii", (0, 1)), ("n.nii", (0, 0))):
        path = write(tmp_path / name, None, affine() if codes[1] else None)
        change(path, 84, "<f", value)  # pixdim[2]
        refused(path, "no spacing that can be believed along y.*`spacing`")
        grid = image_grid(path, (1.1, 0.8, 1.7))
        np.testing.assert_allclose(grid.spacing, [1.7, 0.8, 1.1], rtol=1e-5)
        refused(path, "the file says", spacing=(1.2, 0.8, 1.7))
    path = change(write(tmp_path / "s.nii", affine(), affine()), 84, "<f", value)
    np.testing.assert_allclose(corners(path), corners_by(affine()), atol=1e-4)
    notes = " ".join(read_image(path).meta["geometry"]["notes"])
    assert "its qform is unusable" in notes and "pixdim says" in notes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_places_that_are_no_numbers_are_refused(tmp_path, value):
    refused(change(write(tmp_path / "q.nii", None, affine()), 268, "<f", value), "unusable geometry: its qform")
    both = change(write(tmp_path / "b.nii", affine(), affine()), 284, "<f", value)
    refused(both, "its sform holds values that are not finite.*its qform is sound")
    np.testing.assert_allclose(corners(both, form="qform"), corners_by(affine()), atol=1e-4)
    singular = affine()
    singular[:3, 1] = singular[:3, 0]
    refused(write(tmp_path / "s.nii", singular), "singular")


def test_a_file_without_a_form_says_so_and_lies_where_slicer_has_it(tmp_path):
    path = write(tmp_path / "a.nii")
    facts = read_image(path).meta["geometry"]
    assert facts["direction"] == facts["origin"] == "not stated" and facts["spacing"] == "pixdim"
    assert "left and right are unknown" in facts["notes"][0]
    itk = sitk.ReadImage(str(path))
    expected = [itk.TransformIndexToPhysicalPoint(c.tolist()) for c in CORNERS]
    np.testing.assert_allclose(corners(path), expected, atol=1e-5)


def test_analyze_is_read_and_said(tmp_path):
    image = nib.AnalyzeImage(ARRAY, None)
    image.header.set_zooms((1.1, 0.9, 1.7))
    nib.save(image, tmp_path / "a.hdr")
    for name in ("a.hdr", "a.img"):
        read = read_image(tmp_path / name)
        np.testing.assert_array_equal(read.array[0], ARRAY.transpose(2, 1, 0))
        np.testing.assert_allclose(read.grid.spacing, [1.7, 0.9, 1.1], rtol=1e-6)
        assert "Analyze" in read.meta["geometry"]["notes"][0]
    (tmp_path / "a.img").unlink()
    refused(tmp_path / "a.hdr", r"a\.img, which holds its voxels, is not there")


def test_pairs_of_header_and_voxels(tmp_path):
    nib.save(nib.Nifti1Pair(ARRAY, affine()), tmp_path / "a.hdr")
    np.testing.assert_allclose(corners(tmp_path / "a.hdr"), corners_by(affine()), atol=1e-4)
    whole = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").write_bytes(whole[:-10])
    refused(tmp_path / "a.hdr", r"a\.img is cut off")


@pytest.mark.parametrize("ending", ["mgh", "mgz"])
def test_mgh(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    nib.save(nib.MGHImage(ARRAY, affine(shear=0.1)), path)
    np.testing.assert_allclose(corners(path), corners_by(nib.load(path).affine), atol=1e-3)
    image = read_image(path)
    np.testing.assert_array_equal(image.array[0], ARRAY.transpose(2, 1, 0))
    assert image.array.dtype == np.int16
    if ending == "mgh":
        refused(change(path, 28, ">h", 0), "no spacing.*goodRASFlag")
        assert image_grid(path, 2.0).spacing.tolist() == [2, 2, 2]


@pytest.mark.parametrize("code", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("scale", [(1, 0), (2, 0), (1, 3), (0.37, -1000.3), (np.nan, 0)])
def test_values_are_those_of_simpleitk(tmp_path, code, scale):
    path = write(tmp_path / "a.nii", affine(), affine(), array=ARRAY.astype(code))
    change(path, 112, "<2f", *scale)
    itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    array = read_image(path).array[0]
    assert array.dtype == itk.dtype
    np.testing.assert_array_equal(array, itk)


def test_units_and_dimensions(tmp_path):
    path = write(tmp_path / "a.nii", affine(), affine(), xyzt_units=3)
    np.testing.assert_allclose(corners(path), corners_by(affine()) / 1000, atol=1e-6)
    assert "micron" in read_image(path).meta["geometry"]["notes"][0]
    flat = sitk.GetImageFromArray(ARRAY[0])
    flat.SetSpacing((0.5, 0.25))
    flat.SetOrigin((3, 6))
    sitk.WriteImage(flat, str(tmp_path / "flat.nii"))
    np.testing.assert_allclose(image_grid(tmp_path / "flat.nii").affine, [[0, 0.5, 3], [0.25, 0, 6], [0, 0, 1]])
    two = np.stack([ARRAY] * 2, -1)[:, :, :, None]
    refused(write(tmp_path / "v.nii", affine(), array=two, intent_code=1007), "2 values a voxel")
    refused(write(tmp_path / "c.nii", affine(), array=ARRAY.astype(np.complex64)), "complex")


def test_colours(tmp_path):
    for names in ("RGB", "RGBA"):
        array = np.zeros(SIZE, np.dtype([(n, "u1") for n in names]))
        array["G"] = ARRAY
        nib.save(nib.Nifti1Image(array, affine()), tmp_path / "a.nii")
        read = read_image(tmp_path / "a.nii")
        assert read.array.shape == (3, 3, 4, 5)
        np.testing.assert_array_equal(read.array[1], ARRAY.transpose(2, 1, 0))


def test_nan_is_background(tmp_path):
    array = ARRAY.astype(np.float32) + 5
    array[2:, 1] = np.nan
    path = write(tmp_path / "a.nii.gz", affine(), array=array)
    image = read_image(path)
    assert "are NaN; they are read as" in image.meta["geometry"]["notes"][0]
    np.testing.assert_array_equal(image.array[0], np.nan_to_num(array, nan=np.nanmin(array)).transpose(2, 1, 0))
    refused(write(tmp_path / "b.nii", affine(), array=np.full(SIZE, np.nan, np.float32)), "NaN")


def test_headers_that_lie_are_refused_before_anything_is_read(tmp_path):
    path = write(tmp_path / "a.nii", affine(), array=ARRAY.astype(np.int32))
    whole = path.read_bytes()
    for at, form, values, words in (
        (72, "<h", (16,), "bitpix is 16, but datatype 8 has 32"),
        (72, "<h", (0,), "bitpix is 0"),
        (70, "<h", (999,), "datatype 999"),
        (42, "<h", (-3,), "claims a size of -3"),
        (42, "<3h", (30000, 30000, 30000), "cut off|claims"),
        (40, "<h", (0,), "0 dimensions"),
        (108, "<f", (np.nan,), "vox_offset"),
        (108, "<f", (1e9,), "cut off"),
    ):
        path.write_bytes(whole)
        refused(change(path, at, form, *values), words)
    path.write_bytes(whole[:-1])
    refused(path, "cut off")


def test_gzip_that_claims_and_holds_different_things(tmp_path):
    data = write(tmp_path / "a.nii", affine()).read_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(data) + b"rubbish")
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY.transpose(2, 1, 0))
    path.write_bytes(gzip.compress(data[:-1]))
    refused(path, "cut off")
    damaged = bytearray(gzip.compress(data))
    damaged[-6] ^= 1
    path.write_bytes(damaged)
    refused(path, "cut off or damaged")
    named = tmp_path / "b.nii"
    named.write_bytes(gzip.compress(data))
    assert read_image(named).grid.shape == SIZE[::-1]
    claim = bytearray(data)
    struct.pack_into("<3h", claim, 42, 20000, 20000, 100)
    path.write_bytes(gzip.compress(claim))
    refused(path, "claims 80 GB|claims")


def test_a_gzip_bomb_is_read_to_the_announced_size(tmp_path):
    data = write(tmp_path / "a.nii", affine()).read_bytes()
    packer = zlib.compressobj(9, wbits=31)
    pieces = [packer.compress(data)] + [packer.compress(bytes(1 << 22)) for _ in range(100)] + [packer.flush()]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(pieces))
    tracemalloc.start()
    image = read_image(tmp_path / "b.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(image.array[0], ARRAY.transpose(2, 1, 0))
    assert peak < 30e6  # of the 420 MB
