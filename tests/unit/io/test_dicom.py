"""DICOM files that pydicom writes: every class with every spacing tag, series and multi-frame files on one line."""

import zlib

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.sequence import Sequence

from anatomark.errors import InputError
from anatomark.io.images import find_images, image_geometry, image_grid, read_image, squeeze_to_2d
from dicoms import item, write

RNG = np.random.default_rng(2)
ENHANCED_CT, NM = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.20"
US_VOLUME, MULTIFRAME = "1.2.840.10008.5.1.4.1.1.6.2", "1.2.840.10008.5.1.4.1.1.7.3"
XRAYS = {
    "CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1", "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "IO": "1.2.840.10008.5.1.4.1.1.1.3", "XA": "1.2.840.10008.5.1.4.1.1.12.1", "RF": "1.2.840.10008.5.1.4.1.1.12.2",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}  # fmt: skip
AXIAL = [1, 0, 0, 0, 1, 0]
OBLIQUE = [0.6, 0.8, 0, 0, 0, -1]
FEW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def volume(count=5):
    return RNG.integers(0, 1000, (count, 6, 7)).astype(np.int16)


def series(folder, positions, array=None, change=None, **fields):
    """A file for each position, named so that their order says nothing; ``change`` (number) gives other fields."""
    folder.mkdir()
    array = volume(len(positions)) if array is None else array
    order = np.random.default_rng(3).permutation(len(positions))
    for n, position in enumerate(positions):
        own = {"ImagePositionPatient": None if position is None else list(map(float, position))}
        own |= {"ImageOrientationPatient": AXIAL, "PixelSpacing": [0.9, 1.1], "InstanceNumber": n + 1}
        own |= {"SliceThickness": 2.5, **fields, **(change(n) if change else {})}
        write(folder / f"im{order[n]:02}.dcm", own.pop("array", array[n]), **own)
    return array


def places(count=5, step=(0, 0, 2.5), start=(-20, -30, 100)):
    return np.array(start) + np.arange(count)[:, None] * np.array(step)


def refused(path, words, spacing=None):
    with pytest.raises(InputError, match=words) as caught:
        read_image(path, spacing)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def geometry(path):
    return image_geometry(path)[1]


# ---------------------------------------------------------------------- one picture


@pytest.mark.parametrize("modality", XRAYS)
@pytest.mark.parametrize("tag", ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"])
def test_a_picture_has_the_spacing_that_it_states(tmp_path, modality, tag):
    array = volume(1)[0]
    path = write(tmp_path / "a.dcm", array, XRAYS[modality], Modality=modality, **{tag: [0.9, 1.1]})
    image = read_image(path)
    assert squeeze_to_2d(image).grid.spacing.tolist() == [0.9, 1.1]
    np.testing.assert_array_equal(image.array[0, 0], array)
    assert tag in image.meta["geometry"]["spacing"] and image.meta["modality"] == modality
    assert image_grid(path, (1.1, 0.9)) == image.grid == image_grid(path)
    refused(path, "says spacing 1.1;0.9 mm, but 0.5;0.5 was given", 0.5)


@pytest.mark.parametrize("modality", XRAYS)
@pytest.mark.parametrize("value", [None, [0, 0], [-1, 1], [1e400, 1]])
def test_a_picture_without_a_spacing_asks(tmp_path, modality, value):
    path = write(tmp_path / "a.dcm", volume(1)[0], XRAYS[modality], Modality=modality)
    if value is not None:
        write(path, volume(1)[0], XRAYS[modality], PixelSpacing=[str(v) for v in value])
    refused(path, "no spacing that can be believed.*`spacing`")
    assert image_grid(path, (0.2, 0.3)).spacing.tolist()[1:] == [0.3, 0.2]


def test_two_spacings_are_both_said_and_either_can_be_chosen(tmp_path):
    both = {"PixelSpacing": [0.9, 1.1], "ImagerPixelSpacing": [1.8, 2.2]}
    path = write(tmp_path / "a.dcm", volume(1)[0], XRAYS["DX"], **both)
    (note,) = geometry(path)["notes"]
    assert "PixelSpacing (0028,0030) says 1.1;0.9 mm" in note and "ImagerPixelSpacing (0018,1164) 2.2;1.8" in note
    assert image_grid(path).spacing.tolist()[1:] == [0.9, 1.1]
    np.testing.assert_allclose(image_grid(path, (2.2, 1.8)).spacing[1:], [1.8, 2.2])
    np.testing.assert_allclose(image_grid(path, (1.1, 0.9)).spacing[1:], [0.9, 1.1])
    refused(path, "was given", 1.0)
    alone = write(tmp_path / "b.dcm", volume(1)[0], XRAYS["DX"], ImagerPixelSpacing=[1.8, 2.2])
    assert "at the detector" in geometry(alone)["notes"][0]


def test_ultrasound_regions(tmp_path):
    region = {
        "PhysicalUnitsXDirection": 3,
        "PhysicalUnitsYDirection": 3,
        "PhysicalDeltaX": 0.02,
        "PhysicalDeltaY": 0.03,
    }
    fields = {"Modality": "US", "SequenceOfUltrasoundRegions": Sequence([item(**region)])}
    path = write(tmp_path / "a.dcm", volume(1)[0], XRAYS["OT"], **fields)
    np.testing.assert_allclose(image_grid(path).spacing[1:], [0.3, 0.2])
    fields["SequenceOfUltrasoundRegions"].append(item(**{**region, "PhysicalDeltaX": 0.05}))
    refused(write(path, volume(1)[0], XRAYS["OT"], **fields), "different spacings")


def test_what_is_no_image_is_refused(tmp_path):
    path = write(tmp_path / "a.dcm", volume(1)[0], PixelSpacing=[1, 1])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refused(path, "cut off|cannot be read")
    for tag, value in ((b"\x28\0\x10\0US\2\0", b"\0\0"), (b"\x28\0\x11\0US\2\0", b"\xff\xff")):
        at = whole.index(tag) + len(tag)
        path.write_bytes(whole[:at] + value + whole[at + 2 :])
        refused(path, "no image|cut off")


# ---------------------------------------------------------------------- series


numbers = st.floats(-3, 3)


@FEW
@given(st.tuples(numbers, numbers), st.floats(0.3, 6), st.sampled_from([AXIAL, OBLIQUE]), st.sampled_from([1, -1]))
def test_every_slice_lies_where_it_says(tmp_path_factory, sideways, step, orientation, sign):
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    by = sideways[0] * row + sideways[1] * column + sign * step * np.cross(row, column)
    positions = places(step=by)
    folder = tmp_path_factory.mktemp("dicom") / "s"
    array = series(folder, positions, ImageOrientationPatient=orientation)
    image = read_image(folder)
    for n, position in enumerate(positions):
        index = n if sign > 0 else len(positions) - 1 - n
        np.testing.assert_array_equal(image.array[0, index], array[n])
        for r, c in ((0, 0), (5, 0), (0, 6), (5, 6)):
            where = position + c * 1.1 * row + r * 0.9 * column
            np.testing.assert_allclose(image.grid.to_world([index, r, c]), where, atol=1e-3)
    sheared = any("sheared" in note for note in image.meta["geometry"]["notes"])
    assert sheared == (4 * np.linalg.norm(sideways) > 0.01)
    assert image_grid(folder) == image.grid


def test_a_series_whose_slices_do_not_fit_is_refused_by_name(tmp_path):
    places5 = list(places())
    series(tmp_path / "none", [None] * 5)
    refused(tmp_path / "none", r"along z \(slice positions \(0020,0032\) are missing.*`spacing`")
    series(tmp_path / "one", [*places5[:2], None, *places5[3:]])
    refused(tmp_path / "one", r"slice im0\d.dcm has no position")
    series(tmp_path / "same", [places5[0]] * 5)
    refused(tmp_path / "same", "all 5 slices lie at one place")
    series(tmp_path / "gap", [*places5[:2], *places(6)[3:]])
    refused(tmp_path / "gap", "2.5 to 5 mm apart; is a slice missing, or twice")
    series(tmp_path / "twice", [*places5, places5[2]])
    refused(tmp_path / "twice", "0 to 2.5 mm apart")
    series(tmp_path / "beside", [*places5[:2], places5[2] + [1, 0, 0], *places5[3:]])
    refused(tmp_path / "beside", r"slice im0\d.dcm lies 1 mm beside the line")
    turned = {"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}
    series(tmp_path / "turned", places5, change=lambda n: turned if n == 3 else {})
    refused(tmp_path / "turned", r"slice im0\d.dcm has another orientation")
    series(tmp_path / "spacing", places5, change=lambda n: {"PixelSpacing": [0.9, 1.4]} if n == 3 else {})
    refused(tmp_path / "spacing", r"slice im0\d.dcm has a pixel spacing of 1.4;0.9 mm, the others 1.1;0.9")
    small = volume(1)[0, :4]
    series(tmp_path / "size", places5, change=lambda n: {"array": small} if n == 3 else {})
    refused(tmp_path / "size", r"slice im0\d.dcm is 7 x 4, the others 7 x 6")
    series(tmp_path / "skew", places5, ImageOrientationPatient=[1, 0, 0, 1, 1, 0])
    refused(tmp_path / "skew", "no two directions at right angles")


def test_a_series_without_positions_takes_the_spacing_that_is_given(tmp_path):
    array = series(tmp_path / "s", [None] * 5)
    image = read_image(tmp_path / "s", (1.1, 0.9, 2.5))
    np.testing.assert_allclose(image.grid.spacing, [2.5, 0.9, 1.1])
    np.testing.assert_array_equal(image.array[0], array)  # by the slices' numbers
    refused(tmp_path / "s", "was given", (2, 0.9, 2.5))


def test_rounded_positions_are_accepted_within_the_tolerance(tmp_path):
    positions = places(7, step=(0, 0, 2 / 3))
    series(tmp_path / "s", np.round(positions, 1))
    read = image_grid(tmp_path / "s")
    for n in range(7):
        assert np.abs(read.to_world([n, 0, 0]) - positions[n]).max() < 0.1


def test_values_that_slices_scale_differently(tmp_path):
    change = lambda n: {"RescaleSlope": 1 + 0.5 * n, "RescaleIntercept": -10}  # noqa: E731
    array = series(tmp_path / "s", places(), change=change)
    expected = array * (1 + 0.5 * np.arange(5)[:, None, None]) - 10
    np.testing.assert_allclose(read_image(tmp_path / "s").array[0], expected)


def test_files_without_a_preamble(tmp_path):
    folder = tmp_path / "s"
    array = series(folder, places(), preamble=False)
    assert all(f.read_bytes()[128:132] != b"DICM" for f in folder.iterdir())
    assert find_images([folder]) == [folder]
    np.testing.assert_array_equal(read_image(folder).array[0], array)


def test_dicomdir(tmp_path):
    from pydicom.fileset import FileSet

    array = series(tmp_path / "s", places(), PatientID="1", StudyDate="20200101", StudyTime="000000", StudyID="1")
    made = FileSet()
    for file in sorted((tmp_path / "s").iterdir()):
        again = pydicom.dcmread(file)
        again.SeriesNumber = 1
        made.add(again)
    made.write(tmp_path / "disc")
    for path in (tmp_path / "disc", tmp_path / "disc" / "DICOMDIR"):
        np.testing.assert_array_equal(read_image(path).array[0], array)
    (found,) = find_images([tmp_path / "disc"])
    np.testing.assert_array_equal(read_image(found).array[0], array)
    next(f for f in found.iterdir()).unlink()
    refused(tmp_path / "disc" / "DICOMDIR", "lists .* which is not there")


# ---------------------------------------------------------------------- several frames in one file


def enhanced(path, positions, sop=ENHANCED_CT, of="Patient", **shared):
    array = volume(len(positions))
    plane, volume_frame = ("PlanePositionSequence", "PlaneOrientationSequence"), of == "Volume"
    names = ("PlanePositionVolumeSequence", "PlaneOrientationVolumeSequence") if volume_frame else plane
    groups = {
        names[1]: Sequence([item(**{f"ImageOrientation{of}": AXIAL})]),
        "PixelMeasuresSequence": Sequence([item(PixelSpacing=[0.9, 1.1], SliceThickness=2.5)]),
        **shared,
    }
    frames = []
    for position in positions:
        place = {} if position is None else {f"ImagePosition{of}": list(map(float, position))}
        frames.append(item(**{names[0]: Sequence([item(**place)])}))
    write(
        path, array, sop, SharedFunctionalGroupsSequence=Sequence([item(**groups)]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )  # fmt: skip
    return array


@pytest.mark.parametrize("step", [(0, 0, 2.5), (0.3, 0.67, 2.4), (0, 0, -2.5)])
@pytest.mark.parametrize("of", ["Patient", "Volume"])
def test_enhanced_frames_lie_where_they_say(tmp_path, step, of):
    positions = places(step=step)
    array = enhanced(tmp_path / "a.dcm", positions, US_VOLUME if of == "Volume" else ENHANCED_CT, of)
    image = read_image(tmp_path / "a.dcm")
    order = np.argsort(positions[:, 2])
    for index, n in enumerate(order):
        np.testing.assert_array_equal(image.array[0, index], array[n])
        np.testing.assert_allclose(image.grid.to_world([index, 0, 0]), positions[n], atol=1e-3)
        far = positions[n] + [6 * 1.1, 5 * 0.9, 0]
        np.testing.assert_allclose(image.grid.to_world([index, 5, 6]), far, atol=1e-3)


def test_enhanced_frames_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.dcm"
    enhanced(path, [*places(2), *places(5)[3:]])
    refused(path, "2.5 to 5 mm apart")
    enhanced(path, [*places(2), None, *places(5)[3:]])
    refused(path, "slice frame 3 has no position")
    enhanced(path, [places(1)[0]] * 4)
    refused(path, "all 4 slices lie at one place")
    enhanced(path, places(), PixelMeasuresSequence=Sequence([item(SliceThickness=2.5)]))
    refused(path, "no spacing that can be believed along x, y")


def test_frames_of_other_classes(tmp_path):
    array, path = volume(), tmp_path / "a.dcm"
    placed = {"ImagePositionPatient": [-20, -30, 100], "ImageOrientationPatient": AXIAL, "PixelSpacing": [0.9, 1.1]}
    for step in (2.5, -2.5):
        write(path, array, NM, SpacingBetweenSlices=step, **placed)
        image = read_image(path)
        index = 4 if step > 0 else 0
        np.testing.assert_allclose(image.grid.to_world([index, 0, 0]), [-20, -30, 100 + 4 * step], atol=1e-3)
        np.testing.assert_array_equal(image.array[0, index], array[4])
    write(path, array, MULTIFRAME, GridFrameOffsetVector=[0, 2, 4, 6, 8], FrameIncrementPointer=0x3004000C, **placed)
    np.testing.assert_allclose(image_grid(path).to_world([4, 5, 6]), [-20 + 6.6, -30 + 4.5, 108], atol=1e-3)
    write(path, array, MULTIFRAME)
    refused(path, "no spacing that can be believed")
    np.testing.assert_allclose(image_grid(path, (1, 2, 3)).spacing, [3, 2, 1])
    write(path, array, MULTIFRAME, PixelSpacing=[0.9, 1.1])
    refused(path, "along z")
    np.testing.assert_allclose(image_grid(path, (1.1, 0.9, 3)).spacing, [3, 0.9, 1.1])


# ---------------------------------------------------------------------- damaged files beside sound ones


def test_a_damaged_file_beside_others_is_an_image_of_its_own(tmp_path):
    for name in ("a", "b"):
        series(tmp_path / name, places(3))
    file = sorted((tmp_path / "b").iterdir())[1]
    file.write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.dcm").write_bytes(file.read_bytes())
    found = find_images([tmp_path])
    assert found == [tmp_path / "a", tmp_path / "b", tmp_path / "c" / "x.dcm"]
    read_image(found[0])
    refused(found[1], file.name)
    refused(found[2], "x.dcm")


def test_several_series_below_a_folder_cost_one_image(tmp_path):
    (tmp_path / "all").mkdir()
    series(tmp_path / "all" / "a", places(3))
    for uid in ("1.2.3", "1.2.4"):
        series(tmp_path / uid, places(3), SeriesInstanceUID=uid)
    (tmp_path / "all" / "two").mkdir()
    for n, file in enumerate([*(tmp_path / "1.2.3").iterdir(), *(tmp_path / "1.2.4").iterdir()]):
        file.rename(tmp_path / "all" / "two" / f"{n}.dcm")
    assert find_images([tmp_path / "all"]) == [tmp_path / "all" / "a", tmp_path / "all" / "two"]
    refused(tmp_path / "all" / "two", "2 DICOM series")


def test_a_deflated_file_that_unpacks_without_end_is_refused(tmp_path):
    series(tmp_path / "s", places(1))
    file = next((tmp_path / "s").iterdir())
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array[0, 0], read_image(file).array[0, 0])
    data = (tmp_path / "a.dcm").read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(150)) + packer.flush()
    (tmp_path / "b.dcm").write_bytes(data[:start] + bomb)
    refused(tmp_path / "b.dcm", "unpacks to more than")


@pytest.mark.parametrize("more", [b"\xf4\xf5\x72\xc6UN\0\0\0\0\0\xe0", b"\xee\x01\x5d\x74OB\0\0\0\0\0\xf0"])
def test_a_value_beyond_the_file_is_refused_before_memory_is_taken_for_it(tmp_path, more):
    path = write(tmp_path / "a.dcm", volume(1)[0], PixelSpacing=[1, 1])
    read_image(path)
    path.write_bytes(path.read_bytes() + more + bytes(100))
    refused(path, "ends beyond it")
