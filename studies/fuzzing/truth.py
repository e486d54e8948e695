"""Where an image's voxels lie, read by others than the package: nibabel, pydicom, and a few lines for text headers."""

from __future__ import annotations

import gzip
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from nibabel.freesurfer.mghformat import MGHHeader

from anatomark import Grid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNITS = {"": 1.0, "mm": 1.0, "um": 1e-3, "cm": 10.0, "m": 1e3}


@dataclass(frozen=True)
class Place:
    """``size`` along x, y[, z], ``axes`` (D, D) mm of a step along each, ``origin`` (D,) mm, LPS."""

    size: tuple[int, ...]
    axes: np.ndarray
    origin: np.ndarray


def apart(grid: Grid, place: Place) -> float:
    """The largest distance of a corner voxel in mm; infinite where the sizes differ. Relative to 1e6 mm beyond that, as
    numbers of 32 bits are."""
    if tuple(grid.shape[::-1]) != place.size:
        return float("inf")
    index = np.array(list(itertools.product(*[(0, n - 1) for n in place.size])), dtype=float)
    expected = index @ place.axes.T + place.origin
    far = max(1.0, float(np.abs(expected).max()) / 1e3)
    return float(np.linalg.norm(grid.to_world(index[:, ::-1]) - expected, axis=1).max() / far)


def place_of(path: Path) -> Place | None:
    """What the file itself states, by its content; None where it states nothing or is read by nobody here."""
    if path.is_dir():
        return _dicom(sorted(path.iterdir()))
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[128:132] == b"DICM":
        return _dicom([path])
    if data.startswith(b"NRRD000"):
        return _nrrd(data)
    if data[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c"):
        return _nifti(data, path)
    if data[:4] == b"\0\0\0\1" and ".mg" in path.name:
        header = MGHHeader(data[:284], check=False)
        affine = LPS @ header.get_affine()
        return Place(_three(header["dims"][:3]), affine[:3, :3], affine[:3, 3]) if header["goodRASFlag"] > 0 else None
    return _metaimage(data) if b"ElementDataFile" in data[:60_000] else None


def _three(size: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in size)


def _nifti(data: bytes, path: Path) -> Place | None:
    """By nibabel: the sform where it is set, else the qform, in mm by the header's unit."""
    order = "<" if data[0] else ">"
    kind = nib.Nifti1Header if data[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") else nib.Nifti2Header
    size = 348 if kind is nib.Nifti1Header else 540
    if size == 348 and data[344:347] not in (b"n+1", b"ni1"):
        return None
    header = kind(data[:size], endianness=order, check=False)
    if int(header["sform_code"]) > 0:
        affine = header.get_sform()
    elif int(header["qform_code"]) > 0:
        affine = header.get_qform()
    else:
        steps = np.array(header["pixdim"][1:4], dtype=float)
        if not (steps > 0).all():
            return None
        affine = LPS @ np.diag([*steps, 1.0])
    unit = {1: 1e3, 3: 1e-3}.get(int(header["xyzt_units"]) & 7, 1.0)
    world, d = (LPS @ affine)[:3] * unit, int(header["dim"][0])
    d = 2 if d == 2 else 3
    return Place(_three(header["dim"][1 : 1 + d]), world[:d, :d], world[:d, 3])


def _rows(data: bytes, separator: bytes) -> dict[str, str] | None:
    """``name separator value`` of a header; None where a name stands twice."""
    found: dict[str, str] = {}
    for line in data.split(b"\n"):
        name, sign, value = line.partition(separator)
        key = name.decode("latin-1").strip().lower()
        if sign and not line.startswith(b"#"):
            if key in found:
                return None
            found[key] = value.decode("latin-1").strip()
    return found


def _metaimage(data: bytes) -> Place | None:
    head = re.split(rb"(ElementDataFile[^\n]*\n?)", data, maxsplit=1)
    rows = _rows(head[0], b"=")
    if rows is None:
        return None
    size = [int(float(n)) for n in rows["dimsize"].split()]
    n = len(size)
    d = min(n, 3)

    def numbers(names: str, default: np.ndarray) -> np.ndarray:
        text = next((rows[k] for k in names.split() if k in rows), None)
        return default if text is None else np.array([float(v) for v in text.split()])

    unit = UNITS[rows.get("distanceunits", "").lower()]
    spacing = numbers("elementspacing elementsize", np.full(n, np.nan))
    direction = numbers("transformmatrix rotation orientation", np.eye(n).ravel()).reshape(n, n).T
    origin = numbers("offset position origin", np.zeros(n))
    axes = (direction / np.linalg.norm(direction, axis=0) * spacing)[:d, :d]
    return Place(tuple(size[:d]), axes * unit, origin[:d] * unit) if np.isfinite(axes).all() else None


def _nrrd(data: bytes) -> Place | None:
    rows = _rows(re.split(rb"\r?\n\r?\n", data, maxsplit=1)[0].replace(b"\r", b""), b":")
    if rows is None:
        return None
    size = tuple(int(float(n)) for n in rows["sizes"].split())
    if "space directions" not in rows:
        spacing = np.array([float(v) for v in rows["spacings"].split()])
        return Place(size, np.diag(spacing), np.zeros(len(size))) if (spacing > 0).all() and not _axis(rows) else None
    vectors = re.findall(r"\(([^)]*)\)", rows["space directions"])
    axes = np.array([[float(v) for v in text.split(",")] for text in vectors]).T
    origin = (
        [float(v) for v in rows["space origin"].strip("()").split(",")] if "space origin" in rows else [0.0] * len(axes)
    )
    space, signs = rows.get("space", "").lower().strip('"'), np.ones(len(axes))
    words = space.split("-") if "-" in space else list(space)
    if len(axes) == 3 and len(words) == 3:
        signs = np.array([-1.0 if w[:1] in "rai" and w[:1] else 1.0 for w in words])
    units = [UNITS[u.strip('"').lower()] for u in rows.get("space units", '"" ' * len(axes)).split()]
    scale = (signs * units)[:, None]
    return Place(size, axes * scale, np.array(origin) * scale[:, 0]) if axes.shape[0] == axes.shape[1] else None


def _axis(rows: dict[str, str]) -> bool:
    return any(k in rows for k in ("axis mins", "units", "axismins"))


def _dicom(files: list[Path]) -> Place | None:
    """By the positions of the first and the last slice along their normal; a single picture by its pixel spacing."""
    slices, size, spacing, way = [], None, None, None
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        if "Rows" not in header:
            continue
        size = (int(header.Columns), int(header.Rows))
        groups = header.get("PerFrameFunctionalGroupsSequence") or [header]
        shared = (header.get("SharedFunctionalGroupsSequence") or [header])[0]
        for group in groups:
            plane = (group.get("PlanePositionSequence") or [group])[0]
            turned = (group.get("PlaneOrientationSequence") or shared.get("PlaneOrientationSequence") or [header])[0]
            measures = (group.get("PixelMeasuresSequence") or shared.get("PixelMeasuresSequence") or [header])[0]
            slices.append(plane.get("ImagePositionPatient"))
            way, spacing = turned.get("ImageOrientationPatient"), measures.get("PixelSpacing")
    if size is None:
        return None
    if spacing is None or way is None or any(p is None for p in slices):
        return None
    row, column = np.array(way[:3], dtype=float), np.array(way[3:], dtype=float)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    places = np.array(sorted(([float(v) for v in p] for p in slices), key=lambda p: float(np.dot(p, normal))))
    step = normal
    if len(places) > 1:
        step = (places[-1] - places[0]) / (len(places) - 1)
    axes = np.column_stack([row * float(spacing[1]), column * float(spacing[0]), step])
    return Place((*size, len(places)), axes, places[0])
