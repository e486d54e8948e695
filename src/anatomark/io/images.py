"""Images of every format that SimpleITK reads, as arrays on a grid in world mm."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.atomic import Where, atomic_path
from anatomark.io.frames import Spacing, spacing_for
from anatomark.io.integrity import NOT_FINITE, check_file

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".mha")
READ_ALSO = (".mhd", ".nhdr", ".hdr", ".gipl", ".gipl.gz", ".mrc")
PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ROWS = "0028|0010"  # every DICOM image has it
DICOM_SPACING = ("0028|0030", "0018|1164", "0018|2010")  # PixelSpacing, ImagerPixelSpacing, NominalScanned...

_lock = threading.Lock()
_silent = {"depth": 0, "stderr": -1}


def read_image(path: Where, spacing: Spacing = None) -> Image:
    """Read an image file, or a folder that holds one DICOM series.

    Returns an Image of the file's dtype, array (C, z, y, x) or (C, row, column), on its grid: LPS mm in 3D; in 2D
    x right, y down, mm. A picture whose channels are equal becomes grey (C = 1), transparency is dropped, MONOCHROME1
    DICOM is inverted (by ITK's reader); a third axis of length 1 is kept (see :func:`squeeze_to_2d`). ``meta``:
    ``path``, ``modality``.

    ``spacing``: mm along x, y[, z] (world order) or one number; needed for PNG, JPEG, BMP, TIFF and for DICOM without
    a pixel spacing; elsewhere it must agree with the file within 1 %. Raises InputError where the file is missing,
    damaged, 4D, without a spacing, constant, or holds NaN or infinity.
    """
    path = Path(path)
    reader, array, facts = _read_series(path) if path.is_dir() else _read_file(path)
    grid = _grid(path, reader, facts, spacing)
    array = np.moveaxis(array, -1, 0) if array.ndim > grid.ndim else array[None]
    if facts["picture"] and len(array) in (2, 4):
        array = array[:-1]
    if len(array) == 3 and np.array_equal(array[0], array[1]) and np.array_equal(array[0], array[2]):
        array = array[:1]
    image = Image(np.ascontiguousarray(array), grid, {"path": str(path), "modality": facts["modality"]})
    check_image(image, path)
    return image


def image_grid(path: Where, spacing: Spacing = None) -> Grid:
    """The grid of an image, from its header only where it is a file. Arguments and errors as :func:`read_image`."""
    path = Path(path)
    if path.is_dir():
        return read_image(path, spacing).grid
    check_file(path)
    reader, facts = _open(path)
    return _grid(path, reader, facts, spacing)


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
    """Write NIfTI, NRRD or MHA (with geometry), or a 2D picture (PNG, TIFF, JPEG, BMP: without), atomically.

    Raises InputError for an unknown ending, sheared axes, values the format cannot hold, or a disk that refuses.
    """
    path = Path(path)
    if not path.name.lower().endswith(VOLUMES + PICTURES):
        raise InputError(f"{path}: images are written as {', '.join(VOLUMES + PICTURES)}")
    itk = _to_itk(image, path)
    with atomic_path(path) as temporary:
        try:
            with quiet():
                sitk.WriteImage(itk, str(temporary), useCompression=path.name.lower().endswith((".nrrd", ".mha")))
            check_file(temporary)  # NIfTI's writer says nothing when the disk is full
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
        if not given.exists():
            raise InputError(f"{given}: no such file or folder")
        inside = _images_in(given) if given.is_dir() else [given]
        if not inside:
            raise InputError(f"{given}: holds no image ({', '.join(VOLUMES + PICTURES)}, DICOM)")
        found += inside
    return list(dict.fromkeys(found))


def _images_in(folder: Path) -> list[Path]:
    entries = [e for e in sorted(folder.iterdir()) if not e.name.startswith(".")]
    files = [e for e in entries if e.is_file() and e.name.lower().endswith(VOLUMES + PICTURES + READ_ALSO)]
    return sorted([*files, *_dicom_in(folder), *(found for e in entries if e.is_dir() for found in _dicom_in(e))])


def _dicom_in(folder: Path) -> list[Path]:
    """The folder itself where its DICOM files make one series of several files; single-file series one by one."""
    if not any(_is_dicom(e) for e in folder.iterdir() if e.is_file()):
        return []
    series = _series(folder)
    return [Path(names[0]) for names in series] if all(len(n) == 1 for n in series) else [_one_series(folder)]


def _one_series(folder: Path) -> Path:
    count = len(_series(folder))
    if count != 1:
        raise InputError(f"{folder}: holds {count or 'no'} DICOM series; an image folder holds exactly one")
    return folder


def _series(folder: Path) -> list[tuple[str, ...]]:
    with quiet():
        ids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        return [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), one) for one in ids]


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _open(path: Path) -> tuple[sitk.ImageFileReader, dict[str, Any]]:
    """A reader that has read the header, and the facts that matter."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read: {condensed(error)}") from None
    size = reader.GetSize()
    if len(size) > 3 and max(size[3:]) > 1:
        text = " x ".join(map(str, size))
        raise InputError(f"{path}: has {len(size)} dimensions ({text}); give one 2D image or 3D volume")
    with open(path, "rb") as file:
        picture = file.read(4).startswith(PICTURE_STARTS)
    tags = {k: reader.GetMetaData(k).strip() for k in reader.GetMetaDataKeys()} if reader.HasMetaDataKey(ROWS) else {}
    believed = not picture
    if tags and "0028|0008" not in tags and not any(tags.get(k) for k in DICOM_SPACING):
        believed = False  # a single-frame DICOM file without a pixel spacing: ITK's 1.0 is an invention
    return reader, {
        "picture": picture,
        "believed": believed,
        "modality": tags.get("0008|0060") or None,
    }


def _read_file(path: Path) -> tuple[Any, NDArray[Any], dict[str, Any]]:
    check_file(path, values=True)
    reader, facts = _open(path)
    try:
        with quiet():
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read: {condensed(error)}") from None
    array = sitk.GetArrayFromImage(image)
    if np.iscomplexobj(array):
        raise InputError(f"{path}: holds complex numbers; give the magnitude image")
    while image.GetDimension() > 3 and array.ndim > 3 + (image.GetNumberOfComponentsPerPixel() > 1):
        array = array[0]
    return reader, array, facts


def _read_series(folder: Path) -> tuple[Any, NDArray[Any], dict[str, Any]]:
    names = _series(_one_series(folder))[0]
    _, facts = _open(Path(names[0]))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        with quiet():
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{folder}: cannot be read: {condensed(error)}") from None
    if len(names) > 1:
        _check_gaps(folder, reader, len(names))
    return image, sitk.GetArrayFromImage(image), facts


def _check_gaps(folder: Path, reader: sitk.ImageSeriesReader, count: int) -> None:
    """Slices at unequal distances (one missing, say) would put every landmark beyond the gap in a wrong place."""
    key = "0020|0032"
    if not all(reader.HasMetaDataKey(n, key) for n in range(count)):
        return
    places = np.array([[float(v) for v in reader.GetMetaData(n, key).split("\\")] for n in range(count)])
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    if steps.max() - steps.min() > max(0.05 * np.median(steps), 1e-3):
        raise InputError(
            f"{folder}: the DICOM slices lie {steps.min():g} to {steps.max():g} mm apart; is a slice missing, or twice?"
        )


def _grid(path: Path, source: Any, facts: dict[str, Any], given: Spacing) -> Grid:
    """Grid from a SimpleITK reader or image (size, spacing, direction, origin in x, y, z order)."""
    n, d = len(source.GetSize()), min(len(source.GetSize()), 3)
    size = source.GetSize()[:d]
    spacing = np.array(source.GetSpacing()[:d])
    direction = np.array(source.GetDirection()).reshape(n, n)[:d, :d]
    flat = 2 if d == 3 and size[2] == 1 else d  # the thickness of a single slice is nobody's business
    if given is not None:
        values = np.array(spacing_for(given, flat if np.size(given) < 3 else d, str(path)))
        if facts["believed"] and (np.abs(values / spacing[: len(values)] - 1) > 0.01).any():
            own, said = (";".join(f"{v:g}" for v in s) for s in (spacing[: len(values)], values))
            raise InputError(f"{path}: the file says spacing {own} mm, but {said} was given; leave the spacing out")
        if not facts["believed"]:
            spacing[: len(values)] = values
    elif not facts["believed"]:
        raise InputError(
            f"{path}: has no spacing that can be believed; give mm per pixel with `spacing`, or in the manifest's "
            "column spacing"
        )
    if facts["picture"]:
        direction, origin = np.eye(d), np.zeros(d)
    else:
        origin = np.array(source.GetOrigin()[:d])
    try:
        return Grid.from_axes(size[::-1], (direction * spacing)[:, ::-1], origin)
    except ValueError as error:
        raise InputError(f"{path}: has an unusable geometry: {error}") from None


def _to_itk(image: Image, path: Path) -> sitk.Image:
    array, picture = image.array, path.name.lower().endswith(PICTURES)
    allowed = (np.uint8, np.uint16) if path.name.lower().endswith((".png", ".tif", ".tiff")) else (np.uint8,)
    if picture and (image.ndim != 2 or len(array) not in (1, 3) or array.dtype not in allowed):
        kinds = " or ".join(np.dtype(a).name for a in allowed)
        raise InputError(
            f"{path}: {path.suffix} holds 2D {kinds} with 1 or 3 channels, not {array.dtype} {array.shape}"
        )
    array = array.astype({"bool": np.uint8, "float16": np.float32}.get(array.dtype.name, array.dtype), copy=False)
    if len(array) == 1:
        itk = sitk.GetImageFromArray(np.ascontiguousarray(array[0]))
    else:
        itk = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(array, 0, -1)), isVector=True)
    if not picture:
        spacing = image.grid.spacing[::-1]
        direction: Array = image.grid.axes[:, ::-1] / spacing
        if np.abs(direction.T @ direction - np.eye(image.ndim)).max() > 1e-4:
            raise InputError(f"{path}: the image's axes are not at right angles; resample it before writing")
        itk.SetSpacing(spacing.tolist())
        itk.SetDirection(direction.ravel().tolist())
        itk.SetOrigin(image.grid.origin.tolist())
    return itk


def condensed(error: Exception) -> str:
    """One line of SimpleITK's several: what follows 'ERROR:', without object addresses and source paths."""
    if "Unable to determine ImageIO reader" in str(error):
        return "no reader knows it; it is damaged, or no image"
    text = re.split(r"(?:sitk::|ITK )ERROR:", str(error))[-1]
    text = re.sub(r"\w+\(0x[0-9a-f]+\):", "", text)
    return re.sub(r"\s+", " ", text).strip()[:200] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ITK's warnings, and what its C libraries print on their own, off the terminal. Nests; safe in threads."""
    with _lock:
        _silent["depth"] += 1
        if _silent["depth"] == 1:
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
            _silent["stderr"] = _hide_stderr()
    try:
        yield
    finally:
        with _lock:
            _silent["depth"] -= 1
            if _silent["depth"] == 0 and _silent["stderr"] >= 0:
                os.dup2(_silent["stderr"], 2)
                os.close(_silent["stderr"])


def _hide_stderr() -> int:
    """A copy of the real stderr's descriptor, which now leads nowhere; -1 where the process has none."""
    try:
        kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except OSError:
        return -1
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return kept
