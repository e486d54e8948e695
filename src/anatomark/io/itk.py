"""SimpleITK's readers and writers: one by name, without what they print, whatever the locale."""

from __future__ import annotations

import locale
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.files import check_claim
from anatomark.io.geometry import Geometry, Opened, checked_size

if TYPE_CHECKING:
    import SimpleITK as sitk

UNKNOWN = "no reader knows it; it is damaged, or no image"
OTHERS = {
    ".gipl": "GiplImageIO", ".mrc": "MRCImageIO", ".rec": "MRCImageIO", ".vtk": "VTKImageIO", ".h5": "HDF5ImageIO",
    ".hdf5": "HDF5ImageIO", ".mnc": "MINCImageIO", ".pic": "BioRadImageIO", ".spr": "StimulateImageIO",
}  # fmt: skip
_lock = threading.Lock()
_silent = {"depth": 0, "stderr": -1}


def toolkit() -> Any:
    """SimpleITK without its warnings: loaded, in 0.1 s, where a file needs it."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def open_with(path: Path, reader: str) -> sitk.ImageFileReader:
    """ITK's reader of that name that has read the header. Raises InputError."""
    itk = toolkit().ImageFileReader()
    itk.SetFileName(str(path))
    itk.SetImageIO(reader)
    try:
        with quiet():
            itk.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read: {condensed(error)}") from None
    return itk


def read_with(reader: str, path: Path, dimensions: int | None = None) -> NDArray[Any]:
    """The voxels (z, y, x[, C]) or (y, x[, C]) by ITK's reader of that name; ``dimensions`` 3: always (z, y, x[, C]).
    Raises InputError."""
    itk = toolkit().ImageFileReader()
    itk.SetFileName(str(path))
    itk.SetImageIO(reader)
    try:
        with quiet():
            image = itk.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read: {condensed(error)}") from None
    array = toolkit().GetArrayFromImage(image)
    if np.iscomplexobj(array):
        raise InputError(f"{path}: holds complex numbers; give the magnitude image")
    channels = image.GetNumberOfComponentsPerPixel() > 1
    while image.GetDimension() > 3 and array.ndim > 3 + channels:
        array = array[0]
    return array[None] if dimensions == 3 and array.ndim - channels == 2 else array


def other_reader(path: Path) -> str | None:
    """The name of ITK's reader for a file's ending, of the formats that :func:`open_other` reads."""
    return OTHERS.get(Path(path.name.lower().removesuffix(".gz")).suffix)


def open_other(path: Path) -> Opened:
    """Read the header of another format that ITK knows, by its ending: offered any file, some readers of ITK end the
    process. They may make up a spacing, so that of 1 mm along all axes is not believed. Raises InputError."""
    reader = other_reader(path)
    if reader is None:
        raise InputError(f"{path}: cannot be read: {UNKNOWN}")
    itk = open_with(path, reader)
    size, n = itk.GetSize(), itk.GetDimension()
    d = len(checked_size(path, size))
    spacing = np.array(itk.GetSpacing()[:d])
    direction = np.array(itk.GetDirection()).reshape(n, n)[:d, :d]
    stated = not (spacing == 1).all()
    check_claim(path, int(np.prod([float(s) for s in size])) * itk.GetNumberOfComponents(), True)
    sources = dict.fromkeys(("spacing", "origin", "direction"), "as ITK reads it")
    missing = "ITK reads 1 mm, which it also does where a header says nothing"
    geometry = Geometry(
        tuple(size[:d]), direction * spacing, np.array(itk.GetOrigin()[:d]), (stated,) * d, sources, missing=missing
    )
    return Opened(geometry, lambda: read_with(reader, path))


@contextmanager
def point_locale() -> Iterator[None]:
    """Numbers with a decimal point in what ITK writes and reads, as long as it lasts."""
    before = locale.setlocale(locale.LC_NUMERIC)
    if before in ("C", "POSIX"):
        yield
        return
    locale.setlocale(locale.LC_NUMERIC, "C")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)


def is_sheared(grid: Grid) -> bool:
    """Whether the axes are not at right angles, which ITK's NIfTI writer does not keep."""
    direction = grid.axes / grid.spacing
    return bool(np.abs(direction.T @ direction - np.eye(grid.ndim)).max() > 1e-4)


def to_itk(image: Image, path: Path, picture: bool) -> sitk.Image:
    """An image as ITK's, to be written. Raises InputError where a picture cannot hold it."""
    array = image.array
    allowed = (np.uint8, np.uint16) if path.name.lower().endswith((".png", ".tif", ".tiff")) else (np.uint8,)
    if picture and (image.ndim != 2 or len(array) not in (1, 3) or array.dtype not in allowed):
        kinds = " or ".join(np.dtype(a).name for a in allowed)
        raise InputError(
            f"{path}: {path.suffix} holds 2D {kinds} with 1 or 3 channels, not {array.dtype} {array.shape}"
        )
    array = array.astype({"bool": np.uint8, "float16": np.float32}.get(array.dtype.name, array.dtype), copy=False)
    if len(array) == 1:
        itk = toolkit().GetImageFromArray(np.ascontiguousarray(array[0]))
    else:
        itk = toolkit().GetImageFromArray(np.ascontiguousarray(np.moveaxis(array, 0, -1)), isVector=True)
    if not picture:
        spacing = image.grid.spacing[::-1]
        direction: Array = image.grid.axes[:, ::-1] / spacing
        itk.SetSpacing(spacing.tolist())
        itk.SetDirection(direction.ravel().tolist())
        itk.SetOrigin(image.grid.origin.tolist())
    return itk


def condensed(error: Exception) -> str:
    """One line of SimpleITK's several: what follows 'ERROR:', without object addresses and source paths."""
    if "Unable to determine ImageIO reader" in str(error):
        return UNKNOWN
    if "Failed to change to Implicit Transfer Syntax" in str(error):  # what GDCM says of any compressed pixels
        return "its compressed pixels are damaged"
    text = re.split(r"(?:sitk::|ITK )ERROR:", str(error))[-1]
    text = re.sub(r"\w+\(0x[0-9a-f]+\):", "", text)
    return re.sub(r"\s+", " ", text).strip()[:200] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what C libraries print on their own off the terminal. Nests; safe in threads."""
    with _lock:
        _silent["depth"] += 1
        if _silent["depth"] == 1:
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
