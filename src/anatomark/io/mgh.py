"""FreeSurfer's volumes, MGH: the header by nibabel, voxels as they lie in the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.errors import InputError
from anatomark.io.files import CUT_OFF, check_claim, read_data, start_of
from anatomark.io.geometry import Geometry, Opened, checked_size
from anatomark.io.headers import NOT_STATED
from anatomark.io.nifti import LPS, check_affine

START = b"\0\0\0\x01"
KINDS = {0: "u1", 1: "i4", 3: "f4", 4: "i2", 10: "u2"}


def looks_like_mgh(path: Path, start: bytes) -> bool:
    """Whether it is a FreeSurfer volume; four bytes alone are too few to know it by."""
    return start[:4] == START and path.name.lower().endswith((".mgh", ".mgz", ".mgh.gz"))


def open_mgh(path: Path) -> Opened:
    """Read the header of a FreeSurfer volume. Raises InputError where it is cut off or damaged."""
    from nibabel.freesurfer.mghformat import MGHHeader

    start, packed = start_of(path, 284)
    if len(start) < 284:
        raise InputError(f"{path}: {CUT_OFF}")
    oriented = struct.unpack(">h", start[28:30])[0] > 0
    header = MGHHeader(start, check=False)
    if int(header["type"]) not in KINDS:
        raise InputError(f"{path}: its type {int(header['type'])} is not read; save it as float with mri_convert")
    dtype = np.dtype(">" + KINDS[int(header["type"])])
    size = checked_size(path, [int(n) for n in header["dims"]])
    count = int(np.prod(size, dtype=np.int64))
    check_claim(path, 284 + count * dtype.itemsize, packed)
    with np.errstate(all="ignore"):
        affine = np.array(header.get_affine(), dtype=np.float64)
    check_affine(path, affine, "matrix")
    sources = {"spacing": "delta", "origin": "Pxyz_c", "direction": "Mdc"}
    notes, missing = [], ""
    if not oriented:
        sources, missing = dict.fromkeys(sources, NOT_STATED), "goodRASFlag is not set"
        notes = ["states no place and no sides (goodRASFlag); it is placed as FreeSurfer does, coronal"]
    world = LPS @ affine
    geometry = Geometry(size, world[:3, :3], world[:3, 3], (oriented,) * 3, sources, notes, [], missing)

    def pixels() -> NDArray[Any]:
        values = read_data(path, 0, 284, count, dtype, 31 if packed else None)
        return values.astype(dtype.newbyteorder("="), copy=False).reshape(size[::-1])

    return Opened(geometry, pixels)
