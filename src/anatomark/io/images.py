"""Images as arrays on a grid in world mm: what a header states is believed, what it does not state is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io import dicom_files
from anatomark.io.atomic import Where, atomic_path
from anatomark.io.dicom import open_dicom
from anatomark.io.files import check_name, check_unpacked_size, start_of
from anatomark.io.frames import Spacing
from anatomark.io.geometry import Opened
from anatomark.io.itk import condensed, is_sheared, open_other, other_reader, point_locale, quiet, to_itk, toolkit
from anatomark.io.metaimage import looks_like_metaimage, open_metaimage
from anatomark.io.mgh import looks_like_mgh, open_mgh
from anatomark.io.nifti import looks_like_nifti, open_nifti, write_sheared
from anatomark.io.nrrd import looks_like_nrrd, open_nrrd
from anatomark.io.pictures import open_picture, picture_reader
from anatomark.io.reader_process import CannotStart, geometry_in_process, read_in_process

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".mha")
READ_ALSO = (
    ".mhd", ".nhdr", ".hdr", ".gipl", ".gipl.gz", ".mrc", ".mgh", ".mgz", ".jfif", ".jpe", ".jp2", ".j2k",
)  # fmt: skip
READERS = {"nrrd": open_nrrd, "metaimage": open_metaimage, "dicom": open_dicom, "mgh": open_mgh, "other": open_other}
NOT_FINITE = "holds NaN or infinite values; replace them (e.g. by the background's value) first"


def read_image(path: Where, spacing: Spacing = None, form: str | None = None, *, apart: bool = False) -> Image:
    """Read an image file, or a folder that holds one DICOM series.

    Returns an Image of the file's dtype, array (C, z, y, x) or (C, row, column), on its grid: LPS mm in 3D; in 2D
    x right, y down, mm. A picture whose channels are equal becomes grey (C = 1), transparency is dropped, white-is-0
    TIFF and MONOCHROME1 DICOM are inverted, NaN becomes the least finite value; a third axis of length 1 is kept (see
    :func:`squeeze_to_2d`). ``meta``: ``path``, ``modality``, ``geometry`` (the header's fields that ``spacing``,
    ``origin`` and ``direction`` were read from, and ``notes``: lines for the user).

    ``spacing``: mm along x, y[, z] (world order) or one number; needed where the file states none; elsewhere it must
    agree with the file within 1 %, or chooses among those that the file states. ``form``: of a NIfTI file the sform
    (default) or the qform, where both are set. ``apart``: where a C library reads the format, in a process of its own
    within limits of time and memory, so that no file can end this one: for work on many images. Raises InputError where
    the file is missing, damaged, 4D, without a spacing, constant, of two or more than four values a voxel, or holds
    infinity.
    """
    path = Path(path)
    if _reads_apart(path, apart):
        try:
            return read_in_process(path, spacing, form)
        except CannotStart:
            pass
    return image_of(path, open_image(path, form), spacing)


def image_of(path: Path, opened: Opened, spacing: Spacing) -> Image:
    """The image of a file whose header was read, as :func:`read_image`."""
    grid = opened.geometry.grid(path, spacing)
    array = opened.pixels()
    array = np.moveaxis(array, -1, 0) if array.ndim > grid.ndim else array[None]
    if array.shape[1:] != grid.shape:
        shape, own = (" x ".join(map(str, s[::-1])) for s in (array.shape[1:], grid.shape))
        raise InputError(f"{path}: holds {shape} voxels, but its header says {own}; it is damaged")
    array = _grey_or_colour(path, array, opened)
    facts = opened.geometry.facts()
    array = _without_nan(array, facts["notes"])
    meta = {"path": str(path), "modality": opened.modality, "geometry": facts}
    image = Image(np.ascontiguousarray(array), grid, meta)
    check_image(image, path)
    return image


def image_grid(path: Where, spacing: Spacing = None, form: str | None = None, *, apart: bool = False) -> Grid:
    """The grid of an image, from its header only. Arguments and errors as :func:`read_image`."""
    return image_geometry(path, spacing, form, apart=apart)[0]


def image_geometry(
    path: Where, spacing: Spacing = None, form: str | None = None, *, apart: bool = False
) -> tuple[Grid, dict[str, Any]]:
    """As :func:`image_grid`, and the ``geometry`` of :func:`read_image`."""
    path = Path(path)
    if _reads_apart(path, apart):
        try:
            return geometry_in_process(path, spacing, form)
        except CannotStart:
            pass
    opened = open_image(path, form)
    return opened.geometry.grid(path, spacing), opened.geometry.facts()


def open_image(path: Path, form: str | None = None) -> Opened:
    """Read the header of a file by what it holds, not by its name. Raises InputError."""
    path, kind, start = _recognised(path)
    if kind == "picture":
        return open_picture(path, picture_reader(start))
    return open_nifti(path, form) if kind == "nifti" else READERS[kind](path)


def _reads_apart(path: Path, apart: bool) -> bool:
    """Whether a file is read in a process of its own: by those readers of ITK that end it easily always, by other C
    libraries where it is asked for, by our own code never."""
    kind = _recognised(path)[1]
    return other_reader(path) is not None if kind == "other" else apart and kind in ("dicom", "picture")


def _recognised(path: Path) -> tuple[Path, str, bytes]:
    """The file with the header, its kind (picture, dicom, nifti, nrrd, metaimage, mgh, other), and how it begins."""
    if os.path.isdir(path):  # a name that can be none is no folder
        return path, "dicom", b""
    beside = path.name.lower().removesuffix(".gz")
    if beside.endswith(".img"):  # the voxels of a header that lies beside it
        header = path.with_name(path.name[: len(beside) - 4] + ".hdr")
        path = header if header.exists() else path
    start, packed = start_of(path)
    if not packed and picture_reader(start):
        kind = "picture"
    elif not packed and looks_like_nrrd(start):
        kind = "nrrd"
    elif not packed and looks_like_metaimage(start):
        kind = "metaimage"
    elif not packed and dicom_files.looks_like_dicom(start) and (start[128:132] == b"DICM" or not other_reader(path)):
        kind = "dicom"
    elif looks_like_mgh(path, start):
        kind = "mgh"
    elif looks_like_nifti(start) or path.name.lower().endswith((".nii", ".nii.gz", ".hdr")):
        kind = "nifti"
    else:
        kind = "other"
    return path, kind, start


def _grey_or_colour(path: Path, array: NDArray[Any], opened: Opened) -> NDArray[Any]:
    """(C, ...) with C = 1 or 3. Raises InputError for other numbers of values a voxel."""
    if (opened.picture and len(array) in (2, 4)) or (len(array) == 4 and array.dtype == np.uint8):
        array = array[:-1]  # transparency
    if len(array) not in (1, 3):
        raise InputError(f"{path}: holds {len(array)} values a voxel; give an image of one of them")
    if len(array) == 3 and np.array_equal(array[0], array[1]) and np.array_equal(array[0], array[2]):
        array = array[:1]
    return array


def _without_nan(array: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """NaN, by which programs mark what lies outside a mask, becomes the least finite value."""
    if array.dtype.kind != "f" or not np.isnan(array.min()):
        return array
    missing = np.isnan(array)
    if missing.all():
        return array
    least = array[~missing].min()
    notes.append(f"{missing.mean():.2%} of its values are NaN; they are read as {least:g}, the least of the others")
    return np.where(missing, least, array)


def check_image(image: Image, path: Where) -> None:
    """Raise InputError where the image holds NaN or infinity, or one value only."""
    low, high = image.array.min(), image.array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{path}: {NOT_FINITE}")
    if low == high:
        raise InputError(f"{path}: is constant (every value is {low:g}); there is nothing to find in it")


def squeeze_to_2d(image: Image) -> Image:
    """A 3D image whose slowest axis has length 1, as the 2D image (C, row, column) in the image frame: x right,
    y down, mm, origin at the first pixel's centre. A 2D image comes back as it is. Raises InputError for others."""
    return image if image.ndim == 2 else Image(image.array[:, 0], squeeze_grid(image.grid), image.meta)


def squeeze_grid(grid: Grid) -> Grid:
    """The grid of :func:`squeeze_to_2d`. Raises InputError where the slowest axis is longer than 1."""
    if grid.ndim == 2:
        return grid
    if grid.shape[0] != 1:
        size = " x ".join(str(n) for n in reversed(grid.shape))
        raise InputError(f"the landmarks are 2D, but the image is 3D ({size} voxels)")
    _, rows, columns = grid.spacing
    return Grid.from_axes(grid.shape[1:], [[0.0, columns], [rows, 0.0]], (0.0, 0.0))


def write_image(image: Image, path: Where) -> None:
    """Write NIfTI, NRRD or MHA (with geometry), or a 2D picture (PNG, TIFF, JPEG, BMP: without), atomically. Sheared
    axes are written to NIfTI by the sform alone.

    Raises InputError for an unknown ending, values the format cannot hold, or a disk that refuses.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(VOLUMES + PICTURES):
        raise InputError(f"{path}: images are written as {', '.join(VOLUMES + PICTURES)}")
    check_name(path)
    picture = name.endswith(PICTURES)
    by_nibabel = name.endswith((".nii", ".nii.gz")) and is_sheared(image.grid)
    itk = None if by_nibabel else to_itk(image, path, picture)
    with atomic_path(path) as temporary:
        try:
            if itk is None:
                write_sheared(image, temporary)
            else:
                with quiet(), point_locale():
                    toolkit().WriteImage(itk, str(temporary), useCompression=name.endswith((".nrrd", ".mha")))
            image_grid(temporary, 1.0 if picture else None)  # NIfTI's writer says nothing when the disk is full
            if name.endswith(".gz"):
                check_unpacked_size(temporary, image.array.nbytes)
        except InputError:
            raise InputError(f"{path}: cannot be written whole; is the disk full?") from None
        except RuntimeError as error:
            reason = condensed(error).replace(temporary.name, path.name)
            raise InputError(f"{path}: cannot be written (is the disk full?): {reason}") from None


def find_images(paths: Iterable[Where]) -> list[Path]:
    """The images among files and folders, in order: a file as it is; a folder's image files by name; a folder with a
    DICOM series, given or lying directly in a given folder, as one image. Raises InputError where a path is missing,
    or a folder holds no image or several DICOM series."""
    found: list[Path] = []
    for given in map(Path, paths):
        if not os.path.exists(given):
            raise InputError(f"{given}: no such file or folder")
        inside = _images_in(given) if given.is_dir() else [given]
        if not inside:
            raise InputError(f"{given}: holds no image ({', '.join(VOLUMES + PICTURES)}, DICOM)")
        found += inside
    return list(dict.fromkeys(found))


def _images_in(folder: Path) -> list[Path]:
    try:
        entries = [e for e in sorted(folder.iterdir()) if not e.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from None
    files = [e for e in entries if os.path.isfile(e) and e.name.lower().endswith(VOLUMES + PICTURES + READ_ALSO)]
    dicom = [image for e in entries if os.path.isdir(e) for image in dicom_files.images_in(e)]
    return sorted(dict.fromkeys([*files, *dicom_files.images_in(folder, given=True), *dicom]))
