"""DICOM: the places of all slices, by pydicom, held against one affine in mm; voxels by ITK's reader (GDCM)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.errors import InputError
from anatomark.io.dicom_files import (
    PLAIN,
    is_directory_file,
    listed_series,
    one_line,
    one_series,
    read_header,
    transfer_syntax,
)
from anatomark.io.dicom_spacing import pixel_spacing
from anatomark.io.dicom_values import check_values, frame_scales, rescaled
from anatomark.io.files import check_claim
from anatomark.io.geometry import Geometry, Opened
from anatomark.io.headers import NOT_STATED
from anatomark.io.itk import quiet, read_with

TOLERANCE_MM, TOLERANCE = 0.1, 0.1  # of a slice's place: mm, and parts of the step, the smaller; at least 0.001 mm
US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
POSITION, ORIENTATION = "ImagePositionPatient (0020,0032)", "ImageOrientationPatient (0020,0037)"


@dataclass
class Slice:
    """One frame: in which file (and which of its frames), where, and mm between its columns and rows."""

    name: str
    file: Path
    frame: int
    size: tuple[int, int]  # columns, rows
    position: Array | None
    orientation: Array | None  # direction along a row, then down a column
    spacing: tuple[float, float] | None  # x, y


def open_dicom(path: Path) -> Opened:
    """Read the headers of a DICOM file, of the one series of a folder, or of that which a DICOMDIR lists. Raises
    InputError where slices do not make one volume, naming the slice that does not fit."""
    try:
        with quiet():
            return _open(path, _headers(path))
    except InputError:
        raise
    except Exception as error:  # a value that is no number, a sequence without items
        raise InputError(f"{path}: cannot be read: damaged DICOM ({one_line(error)})") from None


def _headers(path: Path) -> dict[Path, Any]:
    if path.is_dir():
        return one_series(path)
    if not is_directory_file(path):
        return {path: read_header(path)}
    series = listed_series(path)
    if len(series) != 1:
        raise InputError(f"{path}: lists {len(series) or 'no'} DICOM series; give the folder of one")
    return series[0]


def _open(path: Path, headers: dict[Path, Any]) -> Opened:
    files = list(headers)
    first = headers[files[0]]
    if len(files) > 1:
        files = sorted(files, key=lambda f: (_whole(headers[f].get("InstanceNumber"), 0), f.name))
    spacings = {f: pixel_spacing(headers[f]) for f in files}
    remarks: dict[str, None] = {}
    for file in files:
        _check_size(path, file, headers[file])
        remarks |= dict.fromkeys(check_values(file, headers[file]))
    scales = {f: scale for f in files if (scale := frame_scales(f, headers[f]))}
    slices = [s for f in files for s in _slices(f, headers[f], spacings[f].values)]
    _check_alike(path, slices)
    order, geometry = _placed(path, slices, headers[files[0]])
    if str(first.get("SOPClassUID")) == US_VOLUME:
        geometry.sources |= {
            "origin": "ImagePositionVolume (0020,9301)",
            "direction": "ImageOrientationVolume (0020,9302)",
        }
        geometry.notes.append("its places are those of the ultrasound volume, not of the patient")
    geometry.sources["spacing"] = spacings[files[0]].source
    geometry.notes[:0] = [*spacings[files[0]].notes, *remarks]
    geometry.others = [(*o, *np.linalg.norm(geometry.axes, axis=0)[2:]) for o in spacings[files[0]].others]
    geometry.missing = geometry.missing or spacings[files[0]].missing

    def pixels() -> NDArray[Any]:
        read = [read_with("GDCMImageIO", file, dimensions=3) for file in files]
        read = [rescaled(a, scales[f]) if f in scales else a for f, a in zip(files, read, strict=True)]
        depths = [len(a) for a in read]
        if sum(depths) != len(slices):
            raise InputError(f"{path}: has {sum(depths)} frames, but announces {len(slices)}")
        whole = read[0] if len(read) == 1 else np.concatenate(read)  # of the widest type
        return whole if order == list(range(len(slices))) else whole[order]

    return Opened(geometry, pixels, str(first.get("Modality") or "").strip() or None)


def _whole(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def _vector(value: Any, count: int) -> Array | None:
    """``count`` finite numbers, or None."""
    try:
        values = np.array([float(v) for v in value], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None


def _check_size(path: Path, file: Path, header: Any) -> None:
    frames, samples = _whole(header.get("NumberOfFrames") or 1, 0), _whole(header.get("SamplesPerPixel") or 1, 0)
    rows, columns, bits = (_whole(header.get(k), 0) for k in ("Rows", "Columns", "BitsAllocated"))
    if min(rows, columns, frames, samples) < 1 or not 1 <= bits <= 64:
        raise InputError(
            f"{path}: cannot be read: {file.name} holds no image, or is damaged ({columns} columns, {rows} rows, "
            f"{frames} frames, {bits} bits)"
        )
    syntax = transfer_syntax(file, header)
    if samples > 1 and "YBR" in str(header.get("PhotometricInterpretation")):
        bits = bits // 2  # with fewer colours than pixels
    check_claim(path, rows * columns * frames * samples * bits // 8, syntax not in PLAIN, file)


def _slices(file: Path, header: Any, spacing: tuple[float, float] | None) -> list[Slice]:
    """The frames of a file, each by its own functional groups, those shared by all, or the file's own fields."""
    count = _whole(header.get("NumberOfFrames") or 1, 1)
    each = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    shared = (list(header.get("SharedFunctionalGroupsSequence") or []) or [{}])[0]
    if each and len(each) != count:
        raise InputError(f"{file}: has {count} frames, but functional groups of {len(each)}")
    names = [file.name] if count == 1 else [f"frame {n + 1}" for n in range(count)]
    plain = _plain_positions(header, count) if not each else [None] * count
    orientation = _vector(_top(header, "ImageOrientationPatient"), 6)
    slices = []
    for n in range(count):
        groups = (each[n] if each else {}, shared)
        measured = _in_group(groups, "PixelMeasuresSequence", "PixelSpacing")
        own = _vector(measured, 2)
        fits = own is not None and own.min() > 0
        position = _vector(
            _in_group(groups, "PlanePositionSequence", "ImagePositionPatient")
            or _in_group(groups, "PlanePositionVolumeSequence", "ImagePositionVolume"), 3
        )  # fmt: skip
        turned = _vector(
            _in_group(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
            or _in_group(groups, "PlaneOrientationVolumeSequence", "ImageOrientationVolume"), 6
        )  # fmt: skip
        slices.append(
            Slice(
                names[n], file, n, (int(header.Columns), int(header.Rows)),
                plain[n] if position is None else position,
                orientation if turned is None else turned,
                (float(own[1]), float(own[0])) if fits and own is not None else spacing,
            )
        )  # fmt: skip
    return slices


def _in_group(groups: tuple[Any, Any], sequence: str, name: str) -> Any:
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(name) is not None:
            return items[0].get(name)
    return None


def _top(header: Any, name: str) -> Any:
    """A field of the file itself, or of a nuclear medicine image's detector."""
    if header.get(name) is not None:
        return header.get(name)
    detectors = header.get("DetectorInformationSequence")
    return detectors[0].get(name) if detectors else None


def _plain_positions(header: Any, count: int) -> list[Array | None]:
    """Of frames without groups: the first one's position, and the others' by the distances that are stated (RT dose,
    nuclear medicine: PS3.3 C.8.8.3.2, C.8.4.15), along the normal."""
    first, turned = (
        _vector(_top(header, "ImagePositionPatient"), 3),
        _vector(_top(header, "ImageOrientationPatient"), 6),
    )
    if count == 1:
        return [first]
    offsets = _vector(header.get("GridFrameOffsetVector"), count)
    between = _vector([header.get("SpacingBetweenSlices")], 1)
    if offsets is None and between is not None and between[0] != 0:
        offsets = between[0] * np.arange(count)
    if offsets is None or first is None or turned is None:
        return [None] * count
    normal = np.cross(turned[:3], turned[3:])
    return [first + (offset - offsets[0]) * normal for offset in offsets]


def _check_alike(path: Path, slices: list[Slice]) -> None:
    """Raise InputError, naming the slice, where one differs from most in size or spacing, or has no position."""
    sizes = [s.size for s in slices]
    common = max(set(sizes), key=sizes.count)
    if other := next((s for s in slices if s.size != common), None):
        own, most = (f"{c} x {r}" for c, r in (other.size, common))
        raise InputError(f"{path}: slice {other.name} is {own}, the others {most}")
    spacings = [s.spacing for s in slices]
    most_common = max(set(spacings), key=spacings.count)
    for s in slices:
        if s.spacing == most_common:
            continue
        if s.spacing is None or most_common is None:
            raise InputError(f"{path}: some slices state a pixel spacing, others such as {s.name} do not")
        if np.abs((np.array(s.spacing) - most_common) * common).max() > TOLERANCE_MM:
            own, most = (";".join(f"{v:g}" for v in both) for both in (s.spacing, most_common))
            raise InputError(f"{path}: slice {s.name} has a pixel spacing of {own} mm, the others {most}")
    without = [s for s in slices if s.position is None]
    if 0 < len(without) < len(slices):
        raise InputError(f"{path}: slice {without[0].name} has no position (0020,0032)")


def _directions(path: Path, slices: list[Slice]) -> tuple[Array, bool]:
    """(3, 2) the direction along a row and down a column, and whether they are stated. Raises InputError where they
    are not directions, or differ."""
    if all(s.orientation is None for s in slices):
        return np.eye(3)[:, :2], False
    if bare := next((s for s in slices if s.orientation is None), None):
        raise InputError(f"{path}: slice {bare.name} has no orientation (0020,0037)")
    stated = [s.orientation for s in slices if s.orientation is not None]
    rounded = [tuple(np.round(o, 3)) for o in stated]
    common = stated[rounded.index(max(set(rounded), key=rounded.count))]
    reach = max(n * v for n, v in zip(slices[0].size, slices[0].spacing or (1.0, 1.0), strict=True))
    for s, orientation in zip(slices, stated, strict=True):
        if np.abs(orientation - common).max() * reach > max(TOLERANCE_MM, 1e-3 * reach):
            raise InputError(f"{path}: slice {s.name} has another orientation (0020,0037) than the others")
    row, column = common[:3], common[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(np.array(lengths) - 1).max() > 0.01 or abs(row @ column) > 0.01:
        raise InputError(f"{path}: its orientation (0020,0037) is no two directions at right angles; it is damaged")
    return np.stack([row / lengths[0], column / lengths[1]], 1), True


def _placed(path: Path, slices: list[Slice], header: Any) -> tuple[list[int], Geometry]:
    """The order of the slices along their normal, and the one affine of all."""
    directions, oriented = _directions(path, slices)
    normal = np.cross(directions[:, 0], directions[:, 1])
    spacing = slices[0].spacing
    steps = directions * np.array(spacing or (1.0, 1.0))
    size = (*slices[0].size, len(slices))
    flat_stated = (spacing is not None,) * 2
    sources = {"spacing": "", "origin": POSITION, "direction": ORIENTATION if oriented else NOT_STATED}
    positions = [s.position for s in slices if s.position is not None]
    order, notes, missing = list(range(len(slices))), [], ""
    if len(slices) == 1:
        thickness = _vector([header.get("SliceThickness")], 1)
        step = normal * (thickness[0] if thickness is not None and thickness[0] > 0 else 1.0)
        origin, stated = (positions or [np.zeros(3)])[0], True
        sources["origin"] = POSITION if positions else NOT_STATED
    elif not positions:
        between = _vector([header.get("SpacingBetweenSlices")], 1) if len({s.file for s in slices}) == 1 else None
        stated = between is not None and between[0] > 0
        step, origin = normal * (between[0] if stated and between is not None else 1.0), np.zeros(3)
        sources["origin"] = NOT_STATED
        missing = "" if stated else "slice positions (0020,0032) are missing, so the step is unknown"
        notes = ["states no slice positions (0020,0032); the slices are taken in the order of their numbers, from 0"]
    else:
        if not oriented:
            raise InputError(f"{path}: its slices have no orientation (0020,0037)")
        order, step, origin, notes = _one_line(path, slices, np.array(positions), normal)
        stated = True
        between = _vector([header.get("SpacingBetweenSlices")], 1)
        length = float(np.linalg.norm(step))
        if between is not None and abs(abs(between[0]) / abs(float(step @ normal)) - 1) > 0.01:
            notes.append(
                f"SpacingBetweenSlices (0018,0088) says {abs(between[0]):g} mm, the slices' positions {length:.4g}, "
                "which are used"
            )
    axes = np.column_stack([steps, step])
    return order, Geometry(size, axes, origin, (*flat_stated, stated), sources, notes, [], missing)


def _one_line(
    path: Path, slices: list[Slice], positions: Array, normal: Array
) -> tuple[list[int], Array, Array, list[str]]:
    """Order along the normal, step and origin of slices that lie on one line at equal steps, which may be oblique."""
    order = [int(n) for n in np.argsort(positions @ normal, kind="stable")]
    places = positions[order]
    depths = places @ normal
    if np.ptp(depths) < 1e-3:
        raise InputError(f"{path}: all {len(slices)} slices lie at one place (a time series, no volume)")
    step = (places[-1] - places[0]) / (len(places) - 1)
    residuals = np.linalg.norm(places - (places[0] + np.arange(len(places))[:, None] * step), axis=1)
    limit = max(min(TOLERANCE_MM, TOLERANCE * abs(float(step @ normal))), 1e-3)
    between = np.diff(depths)
    if residuals.max() > limit or between.min() < 1e-4:
        worst = slices[order[int(residuals.argmax())]].name
        if np.ptp(between) > limit or between.min() < 1e-4:
            raise InputError(
                f"{path}: the DICOM slices lie {between.min():.4g} to {between.max():.4g} mm apart; "
                "is a slice missing, or twice?"
            )
        raise InputError(f"{path}: slice {worst} lies {residuals.max():.3g} mm beside the line of the others")
    sideways = float(np.linalg.norm(step - (step @ normal) * normal))
    notes = []
    if sideways * (len(places) - 1) > 1e-2:
        notes.append(
            f"its slices are shifted by {sideways:.3g} mm each (gantry tilt, or drift); the voxels' grid is sheared"
        )
    return order, step, places[0], notes
