"""DICOM files as they are compressed: what is read comes back, what is not is refused by name."""

import io

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from anatomark.errors import InputError
from anatomark.io.images import read_image
from dicoms import write

RNG = np.random.default_rng(2)
Y, X = np.mgrid[:20, :24]
SMOOTH = (120 + 80 * np.sin(X / 5) + 50 * np.cos(Y / 6)).astype(np.uint8)
EIGHT = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
UIDS = {"JPEG": "1.2.840.10008.1.2.4.50", "JPEG2000": "1.2.840.10008.1.2.4.90"}


def refused(path, words):
    with pytest.raises(InputError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def stored(path, array, syntax, frames=None, **fields):
    """A file of another transfer syntax; ``frames``: its compressed pixels."""
    made = pydicom.dcmread(write(path, array, PixelSpacing=[0.9, 1.1], SpacingBetweenSlices=2.0, **fields))
    if frames is not None:
        made.PixelData = encapsulate(frames)
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.save_as(path)
    return path


def encoded(array, kind):
    out = io.BytesIO()
    Pillow.fromarray(array).save(out, kind, **({"quality": 95} if kind == "JPEG" else {"no_jp2": True}))
    return out.getvalue()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint8"])
@pytest.mark.parametrize("syntax", ["JPEG", "JPEG2000", "RLE", "deflated"])
def test_compressed_without_loss(tmp_path, syntax, dtype):
    path = tmp_path / "a.dcm"
    array = RNG.integers(0, 200, (20, 24)).astype(dtype) - np.array(100 if dtype == "int16" else 0, dtype)
    if syntax in ("JPEG", "JPEG2000"):  # ITK writes the lossless kind
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor(syntax)
        writer.Execute(sitk.GetImageFromArray(array[None]))
        assert "Lossless" in pydicom.dcmread(path).file_meta.TransferSyntaxUID.name
    else:
        write(path, array, PixelSpacing=[1, 1], **(EIGHT if dtype == "uint8" else {}))
        made = pydicom.dcmread(path)
        if syntax == "RLE":
            made.compress(RLELossless)
        made.file_meta.TransferSyntaxUID = RLELossless if syntax == "RLE" else DeflatedExplicitVRLittleEndian
        made.save_as(path)
    np.testing.assert_array_equal(read_image(path).array[0, 0], array)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10])
    refused(path, "cannot be read")


@pytest.mark.parametrize("kind", UIDS)
def test_compressed_frames(tmp_path, kind):
    frames = np.stack([SMOOTH, SMOOTH[::-1]])
    path = stored(tmp_path / "a.dcm", frames, UIDS[kind], [encoded(f.copy(), kind) for f in frames], **EIGHT)
    image = read_image(path)
    np.testing.assert_allclose(image.array[0].astype(int), frames, atol=4 if kind == "JPEG" else 0)
    np.testing.assert_allclose(image.grid.spacing, (2, 0.9, 1.1))


def test_what_no_reader_unpacks_is_refused_by_name(tmp_path):
    bare = [b"\0" * 100]
    for number, name in (("102", r"MPEG-4 AVC/H.264"), ("201", "High-Throughput JPEG 2000"), ("94", "JPIP")):
        refused(stored(tmp_path / "a.dcm", SMOOTH, f"1.2.840.10008.1.2.4.{number}", bare, **EIGHT), f"syntax {name}")
    refused(stored(tmp_path / "b.dcm", SMOOTH, UIDS["JPEG"], bare, **EIGHT), "compressed pixels are damaged")
    bomb = stored(tmp_path / "c.dcm", np.zeros((9000, 9000), np.uint16), DeflatedExplicitVRLittleEndian)
    assert bomb.stat().st_size < 200_000
    refused(bomb, "unpacks to more than 0.134 GB")
