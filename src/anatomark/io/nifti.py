"""NIfTI-1 and -2, Analyze 7.5: header and voxels as they lie in the file. (nibabel, 0.2 s of import, is what the tests
and the fuzzer hold this against.)"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.files import CUT_OFF, check_claim, check_regular, read_data, start_of
from anatomark.io.geometry import Geometry, Opened, checked_size
from anatomark.io.headers import NOT_STATED

FORMS = ("sform", "qform")
HEADER_SIZES: dict[bytes, tuple[Any, int]] = {struct.pack(o + "i", n): (o, n) for o in "<>" for n in (348, 540)}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
KINDS = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
    128: "u1", 2304: "u1",
}  # fmt: skip
COLOURS = {128: 3, 2304: 4}
COMPLEX = (32, 1792, 2048)
VECTORS = (1006, 1007)  # intents: the fifth axis holds a voxel's components
UNITS = {1: 1e3, 3: 1e-3}  # mm of a metre, of a micron
FIELDS = {  # name: (kind in NIfTI-1, its offset, kind in NIfTI-2, its offset), as nifti1.h and nifti2.h have them
    "dim": ("8i2", 40, "8i8", 16), "intent_code": ("i2", 68, "i4", 504), "datatype": ("i2", 70, "i2", 12),
    "bitpix": ("i2", 72, "i2", 14), "pixdim": ("8f4", 76, "8f8", 104), "vox_offset": ("f4", 108, "i8", 168),
    "scl_slope": ("f4", 112, "f8", 176), "scl_inter": ("f4", 116, "f8", 184), "xyzt_units": ("u1", 123, "i4", 500),
    "qform_code": ("i2", 252, "i4", 344), "sform_code": ("i2", 254, "i4", 348), "quatern": ("3f4", 256, "3f8", 352),
    "qoffset": ("3f4", 268, "3f8", 376), "srow": ("(3,4)f4", 280, "(3,4)f8", 400),
}  # fmt: skip
ROUNDING = {348: 3 * np.finfo(np.float32).eps, 540: 3 * np.finfo(np.float64).eps}  # of 1 - b^2 - c^2 - d^2
Header = np.void


def looks_like_nifti(start: bytes) -> bool:
    """Whether ``start`` begins as a NIfTI or Analyze header does."""
    return start[:4] in HEADER_SIZES


def open_nifti(path: Path, form: str | None = None) -> Opened:
    """Read the header of a NIfTI or Analyze file. ``form``: ``sform`` or ``qform`` is preferred where both are set;
    None is sform. Raises InputError where the header is damaged, holds no volume of numbers, or no place."""
    if form not in (None, *FORMS):
        raise InputError(f"{path}: `form` {form!r} is not known; it is sform or qform")
    header, kind, order = _header(path)
    data = path if "+" in kind else _data_file(path)
    dtype, channels = _dtype(path, header, order)
    size, channels = _size(path, header, channels)
    offset = _offset(path, header, data == path, kind)
    count = int(np.prod([*size, channels], dtype=np.int64))
    packed = start_of(data, 16)[1]
    check_claim(path, offset + count * dtype.itemsize, packed, data)
    colour = int(header["datatype"]) in COLOURS
    with np.errstate(all="ignore"):  # numbers beyond all bounds are refused, not warned of
        geometry = _flat(_geometry(path, header, size, form, kind), int(header["dim"][0]))

    def pixels() -> NDArray[Any]:
        values = read_data(data, 0, offset, count, dtype, 31 if packed else None)
        values = _scaled(values.astype(dtype.newbyteorder("="), copy=False), header)
        if channels == 1:
            return values.reshape(geometry.size[::-1])
        if colour:
            return values.reshape(*geometry.size[::-1], channels)
        return np.moveaxis(values.reshape(channels, *geometry.size[::-1]), 0, -1)

    return Opened(geometry, pixels)


def _header(path: Path) -> tuple[Header, str, str]:
    """The header's FIELDS, its kind (n+1, ni1, n+2, ni2, analyze) and byte order."""
    start, _ = start_of(path, 544)
    order, length = HEADER_SIZES.get(start[:4], ("", 0))
    named = path.name.lower().endswith((".nii", ".nii.gz"))
    if not order or len(start) < length:
        raise InputError(f"{path}: {CUT_OFF if order else 'is not a NIfTI file, although it is named so'}")
    magic = start[344:348] if length == 348 else start[4:8]
    kind = magic[:3].decode("latin-1")
    if kind not in ("n+1", "ni1", "n+2", "ni2"):
        kind = "analyze"
    if kind == "analyze" and (named or length == 540):
        raise InputError(f"{path}: is not a NIfTI file, although it is named so")
    kinds, offsets = zip(*(f[:2] if length == 348 else f[2:] for f in FIELDS.values()), strict=True)
    dtype = np.dtype({"names": [*FIELDS], "formats": kinds, "offsets": offsets, "itemsize": length})
    return np.frombuffer(start[:length], dtype.newbyteorder(order))[0], kind, order


def _data_file(path: Path) -> Path:
    """The file with the voxels beside a header of its own."""
    stem = path.name[: path.name.lower().rindex(".hdr")] if ".hdr" in path.name.lower() else path.stem
    names = [f"{stem}{e}" for e in (".img", ".img.gz", ".IMG")]
    found = next((path.with_name(n) for n in names if path.with_name(n).exists()), None)
    if found is None:
        raise InputError(f"{path}: {names[0]}, which holds its voxels, is not there")
    check_regular(found)
    return found


def _dtype(path: Path, header: Header, order: str) -> tuple[np.dtype[Any], int]:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in COMPLEX:
        raise InputError(f"{path}: holds complex numbers; give the magnitude image")
    if code not in KINDS:
        raise InputError(f"{path}: its datatype {code} is not read; save it as int16 or float32")
    dtype, channels = np.dtype(order + KINDS[code]), COLOURS.get(code, 1)
    if bits != dtype.itemsize * channels * 8:
        raise InputError(
            f"{path}: its header is damaged: bitpix is {bits}, but datatype {code} has "
            f"{dtype.itemsize * channels * 8} bits a voxel"
        )
    return dtype, channels


def _size(path: Path, header: Header, channels: int) -> tuple[tuple[int, ...], int]:
    dim = [int(n) for n in header["dim"]]
    if not 2 <= dim[0] <= 7:
        raise InputError(f"{path}: its header claims {dim[0]} dimensions; it is damaged, or no image")
    size = dim[1 : 1 + dim[0]]
    if int(header["intent_code"]) in VECTORS and dim[0] == 5 and size[3] == 1 and channels == 1:
        channels = size.pop()
    if channels < 1:
        raise InputError(f"{path}: its header claims {channels} components a voxel; it is damaged")
    return checked_size(path, size), channels


def _offset(path: Path, header: Header, single: bool, kind: str) -> int:
    value, least = float(header["vox_offset"]), {"n+1": 352, "n+2": 544}.get(kind, 0) if single else 0
    if value == 0:
        return least
    if not np.isfinite(value) or value != int(value) or not max(least - 4, 0) <= value < 2**40:
        raise InputError(f"{path}: its header is damaged: vox_offset is {value:g}")
    return int(value)


def _scaled(values: NDArray[Any], header: Header) -> NDArray[Any]:
    """Whole numbers that are scaled become float32, as ITK has it."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return values
    inter = inter if np.isfinite(inter) else 0.0
    if (slope, inter) == (1.0, 0.0):
        return values
    out = np.float64 if values.dtype == np.float64 else np.float32
    return (values * np.float64(slope) + np.float64(inter)).astype(out)


def _flat(geometry: Geometry, dimensions: int) -> Geometry:
    """Of a file of two dimensions the plane, in the 2D frame; one that lies obliquely in space stays a single slice."""
    out_of_plane = np.abs(geometry.axes[2, :2]) > 1e-4 * np.linalg.norm(geometry.axes[:, :2], axis=0)
    if dimensions > 2 or out_of_plane.any():
        return geometry
    geometry.axes, geometry.origin = geometry.axes[:2, :2], geometry.origin[:2]
    geometry.size, geometry.stated = geometry.size[:2], geometry.stated[:2]
    return geometry


def _geometry(path: Path, header: Header, size: tuple[int, ...], form: str | None, kind: str) -> Geometry:
    """The geometry by the form that counts: the sform where it is set, else the qform, unless ``form`` prefers the
    other. Where neither is, the axes are those of ITK and 3D Slicer, and that is said."""
    size = (*size, 1)[:3]
    unit = UNITS.get(int(header["xyzt_units"]) & 7, 1.0) if kind != "analyze" else 1.0
    pixdim = np.array(header["pixdim"][1:4], dtype=np.float64)
    sound = np.isfinite(pixdim) & (pixdim > 0)
    if int(header["dim"][0]) == 2 and not sound[2]:
        pixdim[2], sound[2] = 1.0, True
    codes = {f: 0 if kind == "analyze" else int(header[f"{f}_code"]) for f in FORMS}
    steps = np.where(sound, pixdim, 1.0)
    forms: dict[str, Array] = {}
    if codes["sform"] > 0:
        forms["sform"] = np.vstack([np.array(header["srow"], dtype=np.float64), [0.0, 0.0, 0.0, 1.0]])
    if codes["qform"] > 0:
        forms["qform"] = _qform(header, steps)
    order = [f for f in (form, *FORMS) if f in forms]
    if not order:
        return _without_form(size, steps * unit, sound, kind)
    used, other = order[0], next((f for f in order if f != order[0]), None)
    affine, notes = forms[used], []
    if form and form != used:
        notes.append(f"its {form} is not set; the {used} is used")
    sound_other = f"; its {other} is sound: `form` {other} takes it" if other and _fine(forms[other]) else ""
    check_affine(path, affine, used, sound_other)
    stated = np.ones(3, dtype=bool) if used == "sform" else sound
    if other:
        notes += _disagreement(forms, used, other, size, codes, sound, unit)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if used == "sform" and not (sound & (abs(pixdim / lengths - 1) <= 0.01)).all():
        said, own = (";".join(f"{v:g}" for v in s) for s in (pixdim, lengths))
        notes.append(f"pixdim says a spacing of {said}, the sform {own}, which is used; 3D Slicer takes pixdim")
    if used == "sform" and not other and (bent := _bent(affine, size) * unit) > 0.1:
        notes.append(
            f"its axes are not at right angles, by {bent:.2g} mm at the farthest corner; ITK, and 3D Slicer with it, "
            "does not read them as they are"
        )
    if unit != 1:
        notes.append(f"its unit is the {'metre' if unit > 1 else 'micron'}; its numbers were made mm")
    world = LPS @ affine
    sources = {"spacing": used if used == "sform" else "pixdim", "origin": used, "direction": used}
    missing = "" if sound.all() else f"pixdim is {';'.join(f'{v:g}' for v in pixdim)}"
    return Geometry(size, world[:3, :3] * unit, world[:3, 3] * unit, tuple(stated), sources, notes, [], missing)


def _qform(header: Header, steps: Array) -> Array:
    """Index (x, y, z) to RAS mm by quaternion, offset and ``steps``. NaN where they make no rotation."""
    b, c, d = np.array(header["quatern"], dtype=np.float64)
    affine = np.full((4, 4), np.nan)
    rest = 1 - (b * b + c * c + d * d)
    if abs(rest) < ROUNDING[header.dtype.itemsize]:  # as nibabel: a turn of 180 degrees
        rest = 0.0
    if rest > -1e-3:  # rounding; nibabel allows less
        a, b, c, d = np.array([np.sqrt(max(rest, 0.0)), b, c, d]) / np.sqrt(max(rest, 0.0) + b * b + c * c + d * d)
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        steps = steps * np.array([1.0, 1.0, -1.0 if float(header["pixdim"][0]) < 0 else 1.0])
        affine[:3, :3] = rotation * steps
        affine[:3, 3] = header["qoffset"]
        affine[3] = [0.0, 0.0, 0.0, 1.0]
    return affine


def _fine(affine: Array) -> bool:
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        return bool(
            np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.min() > 0
            and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-9
        )  # fmt: skip


def check_affine(path: Path, affine: Array, used: str, remedy: str = "") -> None:
    """Raise InputError, calling the affine ``used``, where it is not finite or singular."""
    if not _fine(affine):
        reason = "is singular" if np.isfinite(affine).all() else "holds values that are not finite, or no rotation"
        raise InputError(f"{path}: has an unusable geometry: its {used} {reason}{remedy}")


def _disagreement(
    forms: dict[str, Array],
    used: str,
    other: str,
    size: tuple[int, ...],
    codes: dict[str, int],
    sound: NDArray[np.bool_],
    unit: float,
) -> list[str]:
    """A line where the two forms place the corners of the image differently."""
    if not _fine(forms[other]) or (other == "qform" and not sound.all()):
        return [f"its {other} is unusable; the {used} is used"]
    apart = corners_apart(forms["sform"], forms["qform"], size) * unit
    step = float(np.linalg.norm(forms[used][:3, :3], axis=0).min()) * unit
    if apart <= max(min(0.01, 0.1 * step), 0.01 * step):
        return []
    slicer = slicer_takes(forms, codes)
    how = f"`form` {other}, in a manifest the column form,"
    remedy = f"for landmarks placed there give {how[:-1]}" if slicer != used else f"{how} takes the other"
    return [
        f"its sform and qform place the image up to {apart:.3g} mm apart; the {used} is used"
        f"{' as by nibabel, FSL and SPM' if used == 'sform' else ''}, 3D Slicer takes the {slicer}: {remedy}"
    ]


def slicer_takes(forms: dict[str, Array], codes: dict[str, int]) -> str:
    """Which of two forms that differ ITK 5.4 reads, and 3D Slicer with it: the sform only where its code is 1 (scanner)
    and its axes are at right angles to 1e-4 (itkNiftiImageIO.cxx, SetImageIOOrientationFromNIfTI)."""
    with np.errstate(all="ignore"):
        axes = forms["sform"][:3, :3] / np.linalg.norm(forms["sform"][:3, :3], axis=0)
        right_angles = np.abs(axes @ axes.T - np.eye(3)).max() <= 1e-4
    return "sform" if codes["sform"] == 1 and right_angles else "qform"


def corners_apart(a: Array, b: Array, size: tuple[int, ...]) -> float:
    """The largest distance of a corner voxel's positions by two affines."""
    index = np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1).reshape(-1, 3)
    with np.errstate(all="ignore"):
        moved = index @ (a - b)[:3, :3].T + (a - b)[:3, 3]
        return float(np.linalg.norm(moved, axis=1).max())


def _bent(affine: Array, size: tuple[int, ...]) -> float:
    """How far a corner lies, mm, from where the nearest axes at right angles would have it."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, v = np.linalg.svd(affine[:3, :3] / lengths)
    straight = affine.copy()
    straight[:3, :3] = u @ v * lengths
    return corners_apart(affine, straight, size)


def _without_form(size: tuple[int, ...], steps: Array, sound: NDArray[np.bool_], kind: str) -> Geometry:
    what = "is an Analyze 7.5 file, which states" if kind == "analyze" else "sets neither sform nor qform and states"
    note = (
        f"{what} no place and no sides: left and right are unknown; it is placed as 3D Slicer does, the first voxel at "
        "0, x to the left, y to the back, z up"
    )
    sources = {"spacing": "pixdim", "origin": NOT_STATED, "direction": NOT_STATED}
    missing = "" if sound.all() else "pixdim is no positive number"
    return Geometry(size, np.diag(steps), np.zeros(3), tuple(sound), sources, [note], [], missing)


def write_sheared(image: Image, path: Path) -> None:
    """Write a 3D image whose axes are not at right angles: the sform alone can hold them. Raises InputError where it
    holds several values a voxel."""
    from nibabel.nifti1 import Nifti1Image

    if image.ndim != 3 or len(image.array) != 1:
        raise InputError(f"{path}: the image's axes are not at right angles; resample it before writing")
    array = image.array[0]
    array = array.astype({"bool": np.uint8, "float16": np.float32}.get(array.dtype.name, array.dtype), copy=False)
    affine = image.grid.affine[:, [2, 1, 0, 3]]
    made = Nifti1Image(array.transpose(2, 1, 0), LPS @ affine, dtype=array.dtype)
    made.set_sform(LPS @ affine, 1)
    made.set_qform(None, 0)
    made.to_filename(path)
