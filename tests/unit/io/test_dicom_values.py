"""Grey values of DICOM files against the header's own arithmetic."""

import numpy as np
import pytest
from pydicom.sequence import Sequence

from anatomark.errors import InputError
from anatomark.io.images import image_geometry, read_image
from dicoms import item, write

DEEP = np.random.default_rng(6).integers(0, 4096, (6, 7)).astype(np.uint16)
ENHANCED_MR, MULTIFRAME = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.7.3"
TWELVE = {"BitsStored": 12, "HighBit": 11}
MONOCHROME1 = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": "900", "WindowWidth": "300"}


@pytest.mark.parametrize(
    ("array", "fields", "right"),
    [
        (DEEP, {"RescaleSlope": "2.5", "RescaleIntercept": "-1000"}, DEEP * 2.5 - 1000),
        (DEEP, {"RescaleSlope": "1", "RescaleIntercept": "-1024"}, DEEP - 1024.0),
        (DEEP, {"RescaleSlope": "0", "RescaleIntercept": "0"}, DEEP),
        (DEEP, MONOCHROME1 | TWELVE, 4095 - DEEP),
        (DEEP, MONOCHROME1, 65535 - DEEP),
        (DEEP.astype(np.int16) - 2048, TWELVE, DEEP - 2048.0),
        (DEEP | np.uint16(0xA000), TWELVE, DEEP),  # an overlay in the upper bits
        (DEEP, {"WindowCenter": "900", "WindowWidth": "300"}, DEEP),
    ],
)
def test_values_are_those_of_the_header(tmp_path, array, fields, right):
    write(tmp_path / "a.dcm", array, PixelSpacing=[1, 1], **fields)
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array[0, 0], right)


def frames(path, scales, sop=ENHANCED_MR):
    """Each frame holds ``DEEP`` with its own slope and intercept."""
    groups = [
        item(
            PlanePositionSequence=Sequence([item(ImagePositionPatient=[0, 0, -2.0 * k])]),
            PixelValueTransformationSequence=Sequence([item(RescaleSlope=s, RescaleIntercept=i)]),
        )
        for k, (s, i) in enumerate(scales)
    ]
    shared = item(
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[1, 1])]),
    )
    per_frame = {"PerFrameFunctionalGroupsSequence": Sequence(groups)}
    per_frame["SharedFunctionalGroupsSequence"] = Sequence([shared])
    return write(path, np.stack([DEEP] * len(scales)), sop, **per_frame)


def test_frames_that_are_scaled_each_on_its_own(tmp_path):
    scales = [(3.0, -10.0), (4.0, -20.0), (0.5, 100.0)]
    image = read_image(frames(tmp_path / "a.dcm", scales))
    for array, (slope, intercept) in zip(image.array[0], scales[::-1], strict=True):  # they come in their places' order
        np.testing.assert_allclose(array, DEEP * slope + intercept, rtol=1e-6)
    alike = read_image(frames(tmp_path / "b.dcm", [(2.0, -7.0)] * 3)).array
    np.testing.assert_array_equal(alike[0], [DEEP * 2.0 - 7] * 3)
    with pytest.raises(InputError, match="scaled in different ways"):
        read_image(frames(tmp_path / "c.dcm", scales, MULTIFRAME))


def test_values_that_are_left_as_they_are(tmp_path):
    signed = write(tmp_path / "a.dcm", DEEP.astype(np.int16), PixelSpacing=[1, 1], **MONOCHROME1)
    with pytest.raises(InputError, match="MONOCHROME1 values are signed"):
        read_image(signed)
    table = item(LUTDescriptor=[4096, 0, 16], ModalityLUTType="US", LUTData=np.arange(4096, dtype="<u2").tobytes())
    path = write(tmp_path / "b.dcm", DEEP, PixelSpacing=[1, 1], ModalityLUTSequence=Sequence([table]))
    assert "ModalityLUTSequence (0028,3000), is not applied" in image_geometry(path)[1]["notes"][0]
