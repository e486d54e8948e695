"""NRRD and MetaImage: places and values against SimpleITK, what is not stated is asked for, headers that lie."""

import bz2
import gzip
import locale
import os
import subprocess
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.images import image_geometry, image_grid, read_image, write_image

RNG = np.random.default_rng(4)
ARRAY = RNG.integers(0, 100, (3, 4, 5)).astype(np.int16)
INDEX = RNG.uniform(-1, 5, (10, 3))
FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NRRD = {"type": "short", "dimension": "3", "sizes": "5 4 3", "encoding": "raw", "endian": "little"}
PLACED = {
    "space": "left-posterior-superior", "space directions": "(1.1,0,0) (0,0.9,0) (0,0,1.7)",
    "space origin": "(-31,17,-44)",
}  # fmt: skip
META = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-31 17 -44", "ElementSpacing": "1.1 0.9 1.7",
    "DimSize": "5 4 3", "ElementType": "MET_SHORT",
}  # fmt: skip
FIRST = Grid.from_axes((3, 4, 5), [[0, 0, 1.1], [0, 0.9, 0], [1.7, 0, 0]], (-31, 17, -44))


def nrrd(path, fields, data=None):
    lines = "".join(f"{k}: {v}\n" for k, v in fields.items() if v is not None)
    path.write_bytes(f"NRRD0005\n{lines}\n".encode() + (ARRAY.tobytes() if data is None else data))
    return path


def meta(path, fields, data=None, file="LOCAL"):
    lines = "".join(f"{k} = {v}\n" for k, v in fields.items() if v is not None)
    path.write_bytes(f"{lines}ElementDataFile = {file}\n".encode() + (ARRAY.tobytes() if data is None else data))
    return path


def refused(path, words, spacing=None):
    with pytest.raises(InputError, match=words) as caught:
        read_image(path, spacing)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def notes(path):
    return " ".join(image_geometry(path)[1]["notes"])


def agree_with_itk(path):
    itk, image = sitk.ReadImage(str(path)), read_image(path)
    array = sitk.GetArrayFromImage(itk)
    assert image.array.dtype == array.dtype
    np.testing.assert_array_equal(image.array[0], array)
    expected = [itk.TransformContinuousIndexToPhysicalPoint(i.tolist()) for i in INDEX]
    np.testing.assert_allclose(image.grid.to_world(INDEX[:, ::-1]), expected, atol=1e-5)


rows = st.tuples(*[st.floats(-2, 2)] * 3)


@FEW
@given(
    st.tuples(rows, rows, rows),
    rows,
    st.sampled_from(["left-posterior-superior", "RAS", "LPS", "right-anterior-superior"]),
)
def test_places_agree_with_itk(tmp_path, axes, origin, space):
    axes = np.array(axes)
    if (
        min(np.linalg.norm(axes, axis=1)) < 0.1
        or abs(np.linalg.det(axes / np.linalg.norm(axes, axis=1)[:, None])) < 0.1
    ):
        return
    directions = " ".join("(" + ",".join(map(repr, a.tolist())) + ")" for a in axes)
    where = "(" + ",".join(map(repr, origin)) + ")"
    agree_with_itk(
        nrrd(tmp_path / "a.nrrd", {**NRRD, "space": space, "space directions": directions, "space origin": where})
    )
    lengths = np.linalg.norm(axes, axis=1)
    matrix = " ".join(map(repr, (axes / lengths[:, None]).ravel().tolist()))
    own = {"TransformMatrix": matrix, "Offset": " ".join(map(repr, origin))}
    agree_with_itk(meta(tmp_path / "a.mha", {**META, **own, "ElementSpacing": " ".join(map(repr, lengths.tolist()))}))


@pytest.mark.parametrize("code", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ["mha", "mhd", "nrrd", "nhdr"])
def test_values_agree_with_itk(tmp_path, code, packed, ending):
    itk = sitk.GetImageFromArray(ARRAY.astype(code))
    sitk.WriteImage(itk, str(tmp_path / f"a.{ending}"), useCompression=packed)
    agree_with_itk(tmp_path / f"a.{ending}")


def test_other_ways_to_hold_the_values(tmp_path):
    for encoding, data in (("gzip", gzip.compress(ARRAY.tobytes())), ("bzip2", bz2.compress(ARRAY.tobytes()))):
        path = nrrd(tmp_path / "a.nrrd", {**NRRD, **PLACED, "encoding": encoding}, data)
        np.testing.assert_array_equal(read_image(path).array[0], ARRAY)
        refused(nrrd(path, {**NRRD, **PLACED, "encoding": encoding}, data[:-12]), "cut off")
    path = nrrd(path, {**NRRD, **PLACED, "endian": "big", "byte skip": "3"}, b"xyz" + ARRAY.astype(">i2").tobytes())
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY)
    path = nrrd(path, {**NRRD, **PLACED, "byte skip": "-1"}, b"xyz" + ARRAY.tobytes())
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY)
    for n, plane in enumerate(ARRAY):
        (tmp_path / f"s{n + 1:02}.raw").write_bytes(plane.tobytes())
    path = nrrd(tmp_path / "p.nhdr", {**NRRD, **PLACED, "data file": "s%02d.raw 1 3 1"}, b"")
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY)
    path = nrrd(tmp_path / "l.nhdr", {**NRRD, **PLACED, "data file": "LIST\ns01.raw\ns02.raw\ns03.raw"}, b"")
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY)
    path = nrrd(tmp_path / "r.nhdr", {**NRRD, **PLACED, "data file": "s%02d.raw 3 1 -1"}, b"")
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY[::-1])
    path = meta(tmp_path / "p.mhd", META, b"", "s%02d.raw 1 3 1")
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY)
    big = {**META, "BinaryDataByteOrderMSB": "True", "CompressedData": "True"}
    path = meta(tmp_path / "b.mha", big, zlib.compress(ARRAY.astype(">i2").tobytes()))
    np.testing.assert_array_equal(read_image(path).array[0], ARRAY)


@pytest.mark.parametrize("code", ["int16", "uint8", "float32", "int64"])
def test_values_written_as_text(tmp_path, code):
    array = (ARRAY * (0.5 if code == "float32" else 1)).astype(code)
    words, digits = " ".join(map(str, array.ravel())).encode(), array.astype(f">{array.dtype.str[1:]}").tobytes().hex()
    kinds = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT", "int64": "MET_LONG_LONG"}
    fields = {**NRRD, **PLACED, "type": {"float32": "float"}.get(code, code), "endian": "big"}
    lines = "\n".join(digits[i : i + 36] for i in range(0, len(digits), 36)).encode()
    for path in (
        nrrd(tmp_path / "a.nrrd", {**fields, "encoding": "ascii"}, words),
        nrrd(tmp_path / "t.nrrd", {**fields, "encoding": "text"}, words.replace(b" ", b"\n") + b"\n"),
        nrrd(tmp_path / "h.nrrd", {**fields, "encoding": "hex"}, lines),
        meta(tmp_path / "a.mha", {**META, "BinaryData": "False", "ElementType": kinds[code]}, words),
    ):
        image = read_image(path)
        np.testing.assert_array_equal(image.array[0], array)
        assert image.array.dtype == code and image.array.dtype.isnative
        data = path.read_bytes()
        path.write_bytes(data[:-8])
        refused(path, "is cut off")
        path.write_bytes(data[:-8] + b"nothing-")
        refused(path, "other text than numbers of its type")


def test_text_that_is_no_value_of_its_type(tmp_path):
    text = {**NRRD, **PLACED, "encoding": "ascii"}
    for wrong in (b"70000", b"1.5", b"0" * 100_000, b"nan"):
        refused(nrrd(tmp_path / "a.nrrd", text, b" ".join([wrong, *[b"1"] * 59])), "other text than numbers")
    refused(nrrd(tmp_path / "b.nrrd", text, b"1 2 3"), "cut off")


def test_a_spacing_that_is_not_stated_is_asked_for(tmp_path):
    for path in (
        nrrd(tmp_path / "a.nrrd", NRRD),
        nrrd(tmp_path / "n.nrrd", {**NRRD, "spacings": "nan nan nan"}),
        meta(tmp_path / "a.mha", {**META, "ElementSpacing": None}),
        meta(tmp_path / "z.mha", {**META, "ElementSpacing": "0 -1 inf"}),
    ):
        refused(path, "no spacing that can be believed.*`spacing`")
        np.testing.assert_allclose(image_grid(path, (1.1, 0.9, 1.7)).spacing, [1.7, 0.9, 1.1])
    part = nrrd(tmp_path / "p.nrrd", {**NRRD, "spacings": "1.1 0.9 nan"})
    refused(part, "believed along z")
    np.testing.assert_allclose(image_grid(part, (1.1, 0.9, 1.7)).spacing, [1.7, 0.9, 1.1])
    refused(part, "the file says", (1.1, 0.5, 1.7))
    assert "no sides" in notes(nrrd(tmp_path / "s.nrrd", {**NRRD, "spacings": "1 2 3"}))
    assert "no place" in notes(meta(tmp_path / "o.mha", {**META, "Offset": None}))
    assert image_geometry(nrrd(tmp_path / "f.nrrd", {**NRRD, **PLACED}))[1]["notes"] == []


def test_units(tmp_path):
    space = {"space dimension": "3", "space directions": "(380,0,0) (0,380,0) (0,0,380)", "space origin": "(1000,0,0)"}
    path = nrrd(tmp_path / "a.nrrd", {**NRRD, **space, "space units": '"microns" "microns" "microns"'})
    np.testing.assert_allclose(image_grid(path).affine[:3, 3], [1, 0, 0])
    np.testing.assert_allclose(image_grid(path).spacing, 0.38)
    assert "microns" in notes(path)
    path = nrrd(tmp_path / "b.nrrd", {**NRRD, "spacings": "380 380 380", "units": '"um" "um" "um"'})
    np.testing.assert_allclose(image_grid(path).spacing, 0.38)
    path = meta(tmp_path / "a.mha", {**META, "DistanceUnits": "um"})
    np.testing.assert_allclose(image_grid(path).spacing, [1.7e-3, 0.9e-3, 1.1e-3])
    refused(meta(path, {**META, "DistanceUnits": "furlong"}), "'furlong' is not known")


def test_values_of_several_components(tmp_path):
    two = np.stack([ARRAY, ARRAY + 1], -1)
    sitk.WriteImage(sitk.GetImageFromArray(two, isVector=True), str(tmp_path / "a.mha"))
    refused(tmp_path / "a.mha", "2 values a voxel")
    vector = {**NRRD, "dimension": "4", "sizes": "2 5 4 3", "kinds": "vector domain domain domain"}
    vector |= {**PLACED, "space directions": "none " + PLACED["space directions"]}
    refused(nrrd(tmp_path / "a.nrrd", vector, two.tobytes()), "2 values a voxel")
    three = np.stack([ARRAY, ARRAY + 1, ARRAY + 2])
    path = nrrd(tmp_path / "c.nrrd", {**vector, "sizes": "3 5 4 3"}, np.moveaxis(three, 0, -1).tobytes())
    np.testing.assert_array_equal(read_image(path).array, three)


def test_headers_that_lie_are_refused(tmp_path):
    path = tmp_path / "a.nrrd"
    long = {**NRRD, **PLACED, "content": "A" * 100_000}
    np.testing.assert_array_equal(read_image(nrrd(path, long)).array[0], ARRAY)  # ITK ends the process on it
    for own, words in (
        ({"type": "A" * 10_000}, "type 'AAAA"), ({"dimension": "-1"}, "dimension is -1"),
        ({"sizes": "5 4"}, "sizes '5 4'"),
        ({"sizes": "5 4 -3"}, "damaged"), ({"sizes": "5 4 99999999999999999999"}, "damaged"),
        ({"sizes": "5 4 inf"}, "whole"),
        ({"sizes": "5 4 4"}, "cut off"), ({"sizes": "90000 90000 90000"}, "cut off|claims"),
        ({"endian": None}, "endian"),
        ({"space origin": "(nan,0,0)"}, "unusable geometry"), ({"space origin": "(0,0)"}, "space origin"),
        ({"space directions": "(1,0,0) (1,0,0) (0,0,1)"}, "singular"), ({"encoding": "magic"}, "encoding 'magic'"),
        ({"data file": "gone.raw"}, "gone.raw, which holds its voxels, is not there"),
    ):  # fmt: skip
        refused(nrrd(path, {**NRRD, **PLACED, **own}), words)
    path = tmp_path / "a.mha"
    for own, words in (
        ({"NDims": "-1"}, "NDims is -1"), ({"NDims": "99"}, "NDims is 99"), ({"DimSize": "5 4"}, "DimSize '5 4'"),
        ({"DimSize": "5 4 0"}, "damaged"), ({"DimSize": "5 4 4"}, "cut off"),
        ({"DimSize": "90000 90000 90000"}, "cut|claims"),
        ({"ElementType": "MET_OTHER"}, "MET_OTHER"), ({"Offset": "0 0 nan"}, "unusable"),
        ({"Offset": "a b c"}, "Offset"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "singular|unusable"), ({"TransformMatrix": "1 0 0"}, "9 numbers"),
    ):  # fmt: skip
        refused(meta(path, {**META, **own}), words)
    path.write_bytes(b"ObjectType = Image\nNDims = 3\n")
    refused(path, "no ElementDataFile")
    refused(meta(tmp_path / "d.mhd", META, b"", "gone.raw"), "gone.raw, which holds its voxels, is not there")
    (tmp_path / "short.raw").write_bytes(ARRAY.tobytes()[:-1])
    refused(meta(tmp_path / "d.mhd", META, b"", "short.raw"), "short.raw is cut off")


def test_what_is_no_regular_file_is_refused(tmp_path):
    for name in ("x.nii", "x.mha", "x.png", "x.dcm"):
        os.mkfifo(tmp_path / name)
        refused(tmp_path / name, "is no regular file")
    (tmp_path / "zero.nrrd").symlink_to("/dev/zero")
    refused(tmp_path / "zero.nrrd", "is no regular file")
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.nii")
    with open(os.fsencode(strange), "wb") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"\\udcff.nii: the file's name is not UTF-8"):
        read_image(strange)


@pytest.fixture
def comma_locale(tmp_path_factory, monkeypatch):
    """A locale with decimal commas, made where the machine has none."""
    folder, before = tmp_path_factory.mktemp("locale"), locale.setlocale(locale.LC_ALL)
    try:
        subprocess.run(
            ["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")], check=True, capture_output=True
        )
        monkeypatch.setenv("LOCPATH", str(folder))
        locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    except (OSError, subprocess.CalledProcessError, locale.Error):
        pytest.skip("no locale with decimal commas can be made here")
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_under_a_comma_locale(tmp_path, comma_locale, ending):
    assert locale.localeconv()["decimal_point"] == ","
    for path in (nrrd(tmp_path / "a.nrrd", {**NRRD, **PLACED}), meta(tmp_path / "a.mha", META)):
        np.testing.assert_allclose(read_image(path).grid.affine, FIRST.affine)
    write_image(Image(ARRAY[None], FIRST), tmp_path / f"w{ending}")
    assert locale.localeconv()["decimal_point"] == ","
    np.testing.assert_allclose(read_image(tmp_path / f"w{ending}").grid.affine, FIRST.affine, atol=1e-5)
    if ending != ".nii.gz":
        header = (tmp_path / f"w{ending}").read_bytes().split(b"\n\n")[0][:900]
        assert b"1.7" in header and b"1,7" not in header


@pytest.mark.parametrize("name", ["A" * 5000, "a\0b", "../" * 2000 + "x"])
def test_a_name_that_can_be_none_is_a_file_that_is_not_there(tmp_path, name):
    (tmp_path / "a.mhd").write_text(
        f"NDims = 2\nDimSize = 3 4\nElementType = MET_UCHAR\nElementSpacing = 1 1\nElementDataFile = {name}\n"
    )
    head = "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 3 4\nencoding: raw\nspacings: 1 1\n"
    (tmp_path / "a.nhdr").write_text(f"{head}data file: {name}\n")
    for path in (tmp_path / "a.mhd", tmp_path / "a.nhdr"):
        with pytest.raises(InputError, match="which holds its voxels, is not there") as caught:
            read_image(path)
        assert len(str(caught.value)) < 500
    for path in (tmp_path / name, name):
        with pytest.raises(InputError):
            read_image(path)
