"""Pictures by their content: white-is-0 and tiled TIFF, transparency, JPEG 2000, several pages, claims."""

import io
import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow

from anatomark.errors import InputError
from anatomark.io.images import find_images, image_grid, read_image

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 255, (40, 30)).astype(np.uint8)
DEEP = RNG.integers(0, 65535, (40, 30)).astype(np.uint16)


def tiff(path, pages, **own):
    """An uncompressed TIFF, each page one strip, or square tiles; ``own``: tags by number such as t262=0."""
    data, at = bytearray(b"II*\0" + b"\0" * 4), 4
    for array in pages:
        tile = own.get("tile", 0)
        if tile:
            rows, columns = (-(-n // tile) * tile for n in array.shape)
            padded = np.zeros((rows, columns), array.dtype)
            padded[: array.shape[0], : array.shape[1]] = array
            blocks = [
                padded[r : r + tile, c : c + tile].tobytes()
                for r in range(0, rows, tile)
                for c in range(0, columns, tile)
            ]
        else:
            blocks = [array.tobytes()]
        starts = []
        for block in blocks:
            starts.append(len(data))
            data += block
        lengths = [len(b) for b in blocks]
        tags = {256: array.shape[1], 257: array.shape[0], 258: array.dtype.itemsize * 8, 259: 1, 262: 1, 277: 1}
        tags |= (
            {322: tile, 323: tile, 324: starts, 325: lengths} if tile else {273: starts, 278: len(array), 279: lengths}
        )
        tags |= {int(k[1:]): v for k, v in own.items() if k != "tile"}
        entries = b""
        for tag, value in sorted(tags.items()):
            values = value if isinstance(value, list) else [value]
            where = struct.pack("<I", values[0])
            if len(values) > 1:
                where = struct.pack("<I", len(data))
                data += struct.pack(f"<{len(values)}I", *values)
            entries += struct.pack("<HHI", tag, 4, len(values)) + where
        struct.pack_into("<I", data, at, len(data))
        data += struct.pack("<H", len(tags)) + entries
        at = len(data)
        data += b"\0" * 4
    path.write_bytes(data)
    return path


def refused(path, words, spacing=None):
    with pytest.raises(InputError, match=words) as caught:
        read_image(path, spacing)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("array", [GREY, DEEP])
@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("white", [0, 1])
def test_tiff_keeps_its_values(tmp_path, array, tile, white):
    path = tiff(tmp_path / "a.tif", [array], tile=tile, t262=white)
    image = read_image(path, 0.1)
    assert image.array.dtype == array.dtype
    expected = array if white else np.iinfo(array.dtype).max - array
    np.testing.assert_array_equal(image.array[0], expected)
    refused(path, "no spacing.*`spacing`")
    assert image_grid(path, 0.1).shape == array.shape


def test_tiff_that_readers_do_not_agree_on(tmp_path):
    refused(tiff(tmp_path / "a.tif", [GREY, GREY[:10, :7]]), r"2 pages of several sizes \(30 x 40, 7 x 10\)", 0.1)
    assert read_image(tiff(tmp_path / "b.tif", [GREY, GREY[::-1]]), (0.1, 0.1, 2)).grid.shape == (2, 40, 30)
    refused(tiff(tmp_path / "c.tif", [DEEP], tile=16, t262=2, t277=3), "tiled TIFF of 3 x 16 bits", 0.1)
    refused(tiff(tmp_path / "d.tif", [GREY], t274=6), "stored rotated", 0.1)
    refused(tiff(tmp_path / "e.tif", [GREY], t279=1 << 30), "cut off", 0.1)
    looped = bytearray(tiff(tmp_path / "f.tif", [GREY]).read_bytes())
    looped[-4:] = looped[4:8]
    (tmp_path / "f.tif").write_bytes(looped)
    refused(tmp_path / "f.tif", "damaged", 0.1)  # its directory is followed by itself


SIGNED = DEEP.astype(np.int16)
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


@pytest.mark.parametrize(
    ("array", "tags", "right"),
    [
        (SIGNED, {"t262": 0, "t339": 2}, -1 - SIGNED),
        (SIGNED, {"t339": 2, "tile": 16}, SIGNED),
        (DEEP.astype(np.uint32) * 60_000, {"tile": 16}, DEEP.astype(np.uint32) * 60_000),
        (np.dstack([GREY, GREY[::-1]]), {"t258": [8, 8], "t277": 2, "t338": 2}, GREY),
        (COLOURS, {"t258": [8] * 3, "t262": 2, "t277": 3}, COLOURS),
    ],
)
def test_tiff_of_other_values(tmp_path, array, tags, right):
    image = read_image(tiff(tmp_path / "a.tif", [array], **tags), 0.1)
    np.testing.assert_array_equal(image.array, np.moveaxis(right, -1, 0) if right.ndim == 3 else right[None])


@pytest.mark.parametrize(
    ("array", "tags", "words"),
    [
        (np.dstack([GREY] * 5), {"t258": [8] * 5, "t277": 5}, "5 x 8 bits, photometric interpretation 1"),
        (COLOURS, {"t258": [8] * 3, "t262": 8, "t277": 3}, "photometric interpretation 8, which is not read"),
        (np.dstack([GREY, GREY]), {"t258": [8, 8], "t277": 2}, "2 x 8 bits"),
        (np.dstack([DEEP, DEEP]), {"t258": [16, 16], "t277": 2}, "2 x 16 bits"),
        (GREY.astype(np.int8), {"t339": 2, "tile": 16}, "tiled TIFF of signed 8 bits"),
        (GREY.astype(np.float32), {"t262": 0, "t339": 3}, "floats whose white is 0"),
        (np.stack([DEEP] * 3), {"t256": 30, "t257": 40, "t258": [16] * 3, "t262": 2, "t277": 3, "t284": 2}, "planar"),
    ],
)
def test_tiff_that_would_be_read_as_something_else(tmp_path, array, tags, words):
    refused(tiff(tmp_path / "a.tif", [array], **tags), words, 0.1)


@pytest.mark.parametrize("kind", ["LA", "tRNS"])
def test_grey_with_transparency(tmp_path, kind):
    alpha = Pillow.fromarray(RNG.integers(0, 255, GREY.shape).astype(np.uint8))
    picture = Pillow.fromarray(GREY)
    if kind == "LA":
        Pillow.merge("LA", [picture, alpha]).save(tmp_path / "a.png")
    else:
        picture.save(tmp_path / "a.png", transparency=7)
    image = read_image(tmp_path / "a.png", 0.1)
    np.testing.assert_array_equal(image.array[0], GREY)
    assert image.grid == image_grid(tmp_path / "a.png", 0.1)


@pytest.mark.parametrize("name", ["a.png", "a.jfif", "a.dat", "a.tif"])
def test_the_content_decides_not_the_name(tmp_path, name):
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(tmp_path / "a.jpg"))
    (tmp_path / name).write_bytes((tmp_path / "a.jpg").read_bytes())
    np.testing.assert_array_equal(read_image(tmp_path / name, 0.1).array, read_image(tmp_path / "a.jpg", 0.1).array)
    if name == "a.jfif":
        assert find_images([tmp_path]) == [tmp_path / "a.jfif", tmp_path / "a.jpg"]


def test_jpeg_2000_asks_for_its_spacing(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(tmp_path / "a.jp2"))
    refused(tmp_path / "a.jp2", "no spacing that can be believed.*`spacing`")
    assert read_image(tmp_path / "a.jp2", 0.1).grid.spacing.tolist() == [0.1, 0.1]
    assert find_images([tmp_path]) == [tmp_path / "a.jp2"]


def test_a_picture_that_claims_gigabytes(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", 60_000, 60_000, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    path = tmp_path / "a.png"
    path.write_bytes(start + chunk(b"IDAT", zlib.compress(bytes(60_000))) + chunk(b"IEND", b""))
    refused(path, "claims 3.6 GB", 0.1)
    buffer = io.BytesIO()
    Pillow.fromarray(GREY).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0")
    struct.pack_into(">2H", data, at + 5, 65_000, 65_000)
    (tmp_path / "a.jpg").write_bytes(data)
    refused(tmp_path / "a.jpg", "claims 4.2", 0.1)


def test_one_millimetre_of_another_format_is_not_believed(tmp_path):
    itk = sitk.GetImageFromArray(RNG.integers(0, 99, (3, 4, 5)).astype(np.int16))
    sitk.WriteImage(itk, str(tmp_path / "a.gipl"))
    refused(tmp_path / "a.gipl", "no spacing that can be believed.*ITK reads 1 mm.*`spacing`")
    assert image_grid(tmp_path / "a.gipl", 1).spacing.tolist() == [1, 1, 1]
    itk.SetSpacing((0.5, 1, 2))
    sitk.WriteImage(itk, str(tmp_path / "b.gipl"))
    np.testing.assert_allclose(image_grid(tmp_path / "b.gipl").spacing, [2, 1, 0.5])
    assert read_image(tmp_path / "b.gipl").meta["geometry"]["spacing"] == "as ITK reads it"
