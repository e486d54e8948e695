"""A case's image as the page draws it: NIfTI, in 2D one slice, packed without compression, which would take longer than
sending it over a machine's own network."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.frames import swap_lps_ras

KEPT = {"u1": 2, "i2": 4, "f4": 16, "u2": 512}  # types that are sent as they are, with NIfTI's code
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green, blue (ITU-R BT.601)
STRAIGHT = 1e-3  # the sine of the largest angle of a 2D image's axes to x and y
HEADER = np.dtype({
    "names": ["size", "dim", "datatype", "bitpix", "pixdim", "offset", "slope", "units", "sform_code", "srow", "magic"],
    "formats": ["<i4", ("<i2", 8), "<i2", "<i2", ("<f4", 8), "<f4", "<f4", "u1", "<i2", ("<f4", (3, 4)), "S4"],
    "offsets": [0, 40, 70, 72, 76, 108, 112, 123, 254, 280, 344],
    "itemsize": 352,
})  # fmt: skip


def nifti(image: Image) -> bytes:
    """The image as a NIfTI-1 file in RAS, one value a voxel, in its own type where that is one of ``KEPT``.

    3D: voxels in their places. 2D: a slice whose rows run upwards, at the origin, affine diag(spacing): (x, y) mm of
    the image frame, less the :func:`origin_of` the image, is (x, (rows - 1) * spacing - y) of the file. Raises
    InputError for a 2D image whose axes are turned.
    """
    if image.ndim == 2:
        image = upright(image)
        array, affine = _one_value(image)[::-1][None], np.eye(4)
        affine[[0, 1], [0, 1]] = image.grid.spacing[::-1]
    else:
        array, affine = _one_value(image), nifti_affine(image.grid)
    array = np.ascontiguousarray(_kept(array))
    header = np.zeros((), HEADER)
    header["size"], header["offset"], header["slope"], header["magic"] = 348, 352, 1, b"n+1"
    header["dim"] = [3, *array.shape[::-1], 1, 1, 1, 1]
    header["pixdim"] = [1, *np.linalg.norm(affine[:3, :3], axis=0), 1, 1, 1, 1]
    header["datatype"], header["bitpix"] = KEPT[array.dtype.str[1:]], 8 * array.itemsize
    header["units"], header["sform_code"], header["srow"] = 2, 1, affine[:3]  # mm; a scanner's frame
    return header.tobytes() + array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def packed(data: bytes) -> bytes:
    """``data`` as a gzip file, stored, not compressed."""
    packer = zlib.compressobj(0, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(data) + packer.flush()


def nifti_affine(grid: Grid) -> NDArray[np.float64]:
    """(4, 4) from NIfTI's index (i, j, k), the array's in reverse, to RAS mm."""
    affine = np.eye(4)
    affine[:3, :3] = swap_lps_ras(grid.axes.T[::-1]).T
    affine[:3, 3] = swap_lps_ras(grid.origin)
    return affine


def upright(image: Image) -> Image:
    """A 2D image with its columns along x and its rows along y, mirrored back where need be. Raises InputError where
    its axes are turned."""
    grid = image.grid.canonical()
    cosines = grid.axes / grid.spacing
    if not np.allclose(cosines, [[0, 1], [1, 0]], atol=STRAIGHT):
        raise InputError(
            f"{image.meta.get('path', 'the image')}: its axes are turned; the page shows upright 2D images"
        )
    return image.canonical()


def facts(grid: Grid, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the page wants to know of an image, along x, y[, z] of the file: ``size`` (voxels), ``spacing`` (mm),
    ``origin`` (world mm of the first voxel)."""
    grid = grid.canonical() if grid.ndim == 2 else grid
    return {
        "size": list(grid.shape[::-1]), "spacing": grid.spacing[::-1].tolist(), "origin": grid.origin.tolist(),
        "unit": "mm", "unit_known": True, "notes": list(notes),
    }  # fmt: skip


def _one_value(image: Image) -> NDArray[Any]:
    """(*shape) of the image's one channel; colour becomes grey."""
    if len(image.array) == 1:
        return image.array[0]
    grey = np.tensordot(GREY, image.array.astype(np.float32), 1)
    return grey.astype(image.array.dtype) if image.array.dtype.kind in "iu" else grey


def _kept(array: NDArray[Any]) -> NDArray[Any]:
    """The array in a type of ``KEPT``: whole numbers stay whole where they fit."""
    if array.dtype.str[1:] in KEPT:
        return array
    if array.dtype.kind in "iub":
        low, high = int(array.min()), int(array.max())
        for dtype in (np.uint8, np.int16, np.uint16):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return array.astype(dtype)
    limit = float(np.finfo(np.float32).max)
    return np.clip(array, -limit, limit).astype(np.float32)
