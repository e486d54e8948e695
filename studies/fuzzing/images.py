"""Sound image files of every format, of random size, type, byte order and geometry: what is then damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1PairHeader
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

Rng = np.random.Generator
Maker = Callable[[Path, Rng], Path]
KINDS = ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def numbers(rng: Rng, size: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Values of an image, of that type; ``size`` x first."""
    return rng.integers(0, 100, size[::-1]).astype(dtype)


def sizes(rng: Rng, d: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(2, 9, d))


def axes(rng: Rng, d: int, sheared: bool = False) -> np.ndarray:
    """(D, D): along the axes with flips, or turned, or sheared as well; 0.1 to 5 mm."""
    directions = np.eye(d)[:, rng.permutation(d)] * rng.choice([-1.0, 1.0], d)
    if rng.random() < 0.5:
        directions = np.linalg.qr(rng.normal(size=(d, d)))[0]
    if sheared and rng.random() < 0.3:
        directions = directions + rng.uniform(-0.2, 0.2, (d, d))
        directions /= np.linalg.norm(directions, axis=0)
    return directions * rng.uniform(0.1, 5, d)


def affine(rng: Rng, sheared: bool = False) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = axes(rng, 3, sheared), rng.uniform(-200, 200, 3)
    return made


def nifti(folder: Path, rng: Rng) -> Path:
    """NIfTI-1 or -2, one file or two, each form set or not, alike or not, in mm, microns or metres."""
    order, two = rng.choice(["<", ">"]), rng.random() < 0.2
    maker = nib.Nifti2Header if rng.random() < 0.2 else Nifti1PairHeader if two else nib.Nifti1Header
    header = maker(endianness=str(order))
    size = sizes(rng, 3) if rng.random() < 0.9 else (*sizes(rng, 3), 1)
    dtype = np.dtype(str(order) + str(rng.choice(KINDS)))
    header.set_data_dtype(dtype)
    header.set_data_shape(size)
    one = affine(rng, sheared=True)
    other = one if rng.random() < 0.7 else affine(rng)
    header.set_qform(other, int(rng.choice([0, 1, 1, 2])), strip_shears=True)
    header.set_sform(one, int(rng.choice([0, 1, 1, 2, 4])))
    header["xyzt_units"] = int(rng.choice([2, 2, 2, 2, 1, 3, 0, 10]))
    if rng.random() < 0.2:
        header["scl_slope"], header["scl_inter"] = rng.uniform(0.5, 2), rng.uniform(-5, 5)
    data = numbers(rng, size, dtype).tobytes()
    if two and maker is Nifti1PairHeader:
        header["vox_offset"] = 0
        (folder / "a.img").write_bytes(data)
        (folder / "a.hdr").write_bytes(header.binaryblock)
        return folder / "a.hdr"
    header["vox_offset"] = len(header.binaryblock) + 4
    return packed(folder, "a.nii", header.binaryblock + bytes(4) + data, rng)


def packed(folder: Path, name: str, data: bytes, rng: Rng) -> Path:
    """The bytes as a file, half of them gzipped."""
    if rng.random() < 0.5:
        name, data = f"{name}.gz", gzip.compress(data)
    (folder / name).write_bytes(data)
    return folder / name


def mgh(folder: Path, rng: Rng) -> Path:
    size = sizes(rng, 3)
    data = numbers(rng, size, np.dtype(str(rng.choice(["u1", "i2", "i4", "f4"])))).transpose()
    path = folder / str(rng.choice(["a.mgh", "a.mgz"]))
    nib.MGHImage(np.ascontiguousarray(data), affine(rng)).to_filename(path)
    return path


def nrrd(folder: Path, rng: Rng) -> Path:
    """With directions in one of several spaces, or spacings alone; raw, gzip or bzip2; one file or two."""
    words = {"u1": "uchar", "i1": "int8", "i2": "short", "u2": "uint16", "i4": "int", "u4": "uint", "f4": "float"}
    kind, d = str(rng.choice([*words])), int(rng.choice([2, 3, 3]))
    order = str(rng.choice(["<", ">"]))
    size, encoding = sizes(rng, d), str(rng.choice(["raw", "gzip", "bzip2"]))
    data = numbers(rng, size, np.dtype(order + kind)).tobytes()
    data = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}[encoding](data)
    lines = ["NRRD0004", "# made up", f"type: {words[kind]}", f"dimension: {d}", f"sizes: {' '.join(map(str, size))}"]
    lines += [f"encoding: {encoding}", f"endian: {'little' if order == '<' else 'big'}"]
    if rng.random() < 0.8:
        vectors = axes(rng, d, sheared=True).T
        space = str(rng.choice(["left-posterior-superior", "RAS", "left-anterior-superior", "LPS"]))
        lines += [f"space: {space}"] if d == 3 else ["space dimension: 2"]
        lines += ["space directions: " + " ".join(f"({','.join(map(repr, map(float, v)))})" for v in vectors)]
        if rng.random() < 0.9:
            lines += [f"space origin: ({','.join(repr(float(v)) for v in rng.uniform(-99, 99, d))})"]
        if rng.random() < 0.2:
            lines += ["space units: " + " ".join(['"um"'] * d)]
    else:
        lines += ["spacings: " + " ".join(repr(float(v)) for v in rng.uniform(0.1, 5, d))]
    lines += ["kinds: " + " ".join(["domain"] * d)] if rng.random() < 0.5 else []
    if rng.random() < 0.2:
        (folder / "a.data").write_bytes(data)
        (folder / "a.nhdr").write_text("\n".join([*lines, "data file: a.data"]) + "\n")
        return folder / "a.nhdr"
    (folder / "a.nrrd").write_bytes("\n".join(lines).encode() + b"\n\n" + data)
    return folder / "a.nrrd"


def metaimage(folder: Path, rng: Rng) -> Path:
    """One file or two, compressed or not, with geometry or with parts of it left out."""
    words = {"u1": "MET_UCHAR", "i1": "MET_CHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT",
             "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}  # fmt: skip
    kind, d, big = str(rng.choice([*words])), int(rng.choice([2, 3, 3])), rng.random() < 0.3
    size, wrapped = sizes(rng, d), rng.random() < 0.3
    data = numbers(rng, size, np.dtype((">" if big else "<") + kind)).tobytes()
    made = axes(rng, d)
    spacing = np.linalg.norm(made, axis=0)
    text = {name: " ".join(repr(float(v)) for v in values) for name, values in {
        "TransformMatrix": (made / spacing).T.ravel(), "Offset": rng.uniform(-99, 99, d), "ElementSpacing": spacing,
    }.items() if rng.random() < 0.9}  # fmt: skip
    local = rng.random() < 0.8
    data = zlib.compress(data) if wrapped else data
    fields = {"ObjectType": "Image", "NDims": d, "BinaryData": "True", "BinaryDataByteOrderMSB": big,
              "CompressedData": wrapped, **text, "DimSize": " ".join(map(str, size)), "ElementType": words[kind],
              **({"DistanceUnits": "um"} if rng.random() < 0.1 else {}),
              "ElementDataFile": "LOCAL" if local else "a.raw"}  # fmt: skip
    header = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    path = folder / ("a.mha" if local else "a.mhd")
    path.write_bytes(header + (data if local else b""))
    if not local:
        (folder / "a.raw").write_bytes(data)
    return path


def _dicom(path: Path, array: np.ndarray, rng: Rng, sop: str, syntax: Any, **fields: Any) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, sop
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    made = FileDataset(
        str(path),
        {},
        file_meta=meta,
        preamble=bytes(128),
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
    )
    made.SOPClassUID, made.SOPInstanceUID = sop, meta.MediaStorageSOPInstanceUID
    made.Modality, made.PatientName, made.StudyInstanceUID, made.SeriesInstanceUID = "CT", "X", "1.2.3", "1.2.4"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = array.shape[-2:]
    if array.ndim == 3:
        made.NumberOfFrames = len(array)
    made.BitsAllocated = made.BitsStored = 8 * array.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, 0
    for name, value in fields.items():
        setattr(made, name, value)
    made.PixelData = (array.astype(">u2") if syntax == ExplicitVRBigEndian else array).tobytes()
    made["PixelData"].VR = "OW"
    if syntax == RLELossless:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.compress(RLELossless)
    elif syntax == JPEGBaseline8Bit:
        coded = io.BytesIO()
        Pillow.fromarray((array[0] if array.ndim == 3 else array).astype(np.uint8)).save(coded, "JPEG")
        made.BitsAllocated = made.BitsStored = 8
        made.HighBit = 7
        made.PixelData = encapsulate([coded.getvalue()])
        made["PixelData"].is_undefined_length = True
    made.save_as(path, enforce_file_format=True)


def dicom(folder: Path, rng: Rng) -> Path:
    """One picture: a slice, or an X-ray with one of several spacing fields."""
    syntax = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGBaseline8Bit,
              "1.2.840.10008.1.2.1.99"][rng.integers(6)]  # fmt: skip
    field = str(rng.choice(["PixelSpacing", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"]))
    fields: dict[str, Any] = {field: [round(float(v), 4) for v in rng.uniform(0.1, 2, 2)]}
    sop = "1.2.840.10008.5.1.4.1.1.1"
    if rng.random() < 0.5:
        sop, fields = "1.2.840.10008.5.1.4.1.1.2", {"PixelSpacing": next(iter(fields.values())), **_place(rng)}
    array = numbers(rng, sizes(rng, 2), np.dtype("u2"))
    _dicom(folder / "a.dcm", array, rng, sop, syntax, **fields)
    return folder / "a.dcm"


def _place(rng: Rng) -> dict[str, Any]:
    turned = axes(rng, 3)
    turned /= np.linalg.norm(turned, axis=0)
    return {
        "ImageOrientationPatient": [f"{v:.10f}" for v in turned[:, :2].T.ravel()],
        "ImagePositionPatient": [f"{v:.6f}" for v in rng.uniform(-99, 99, 3)],
    }


def series(folder: Path, rng: Rng) -> Path:
    """A folder of slices on one line, perhaps an oblique one."""
    (folder / "s").mkdir()
    place = _place(rng)
    turned = np.array([float(v) for v in place["ImageOrientationPatient"]])
    step = np.cross(turned[:3], turned[3:]) * rng.uniform(0.5, 4)
    step = step + turned[:3] * rng.choice([0, 0, 0.3])
    spacing = [round(float(v), 4) for v in rng.uniform(0.1, 2, 2)]
    size, count = sizes(rng, 2), int(rng.integers(2, 6))
    for n in rng.permutation(count):
        at = np.array([float(v) for v in place["ImagePositionPatient"]]) + n * step
        array = numbers(rng, size, np.dtype("u2"))
        _dicom(
            folder / "s" / f"{rng.integers(10**6)}_{n}.dcm", array, rng, "1.2.840.10008.5.1.4.1.1.2",
            ExplicitVRLittleEndian, PixelSpacing=spacing, InstanceNumber=int(n) + 1,
            ImagePositionPatient=[f"{v:.6f}" for v in at],
            ImageOrientationPatient=place["ImageOrientationPatient"],
        )  # fmt: skip
    return folder / "s"


def enhanced(folder: Path, rng: Rng) -> Path:
    """Several frames in one file, each with groups of its own."""
    place, count = _place(rng), int(rng.integers(2, 5))
    turned = np.array([float(v) for v in place["ImageOrientationPatient"]])
    step = np.cross(turned[:3], turned[3:]) * rng.uniform(0.5, 4)
    frames = []
    for n in range(count):
        at, frame = Dataset(), Dataset()
        start = np.array([float(v) for v in place["ImagePositionPatient"]])
        at.ImagePositionPatient = [f"{v:.6f}" for v in start + n * step]
        frame.PlanePositionSequence = pydicom.Sequence([at])
        frames.append(frame)
    way, measures, shared = Dataset(), Dataset(), Dataset()
    way.ImageOrientationPatient = place["ImageOrientationPatient"]
    measures.PixelSpacing = [round(float(v), 4) for v in rng.uniform(0.1, 2, 2)]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = (
        pydicom.Sequence([way]),
        pydicom.Sequence([measures]),
    )
    array = numbers(rng, (*sizes(rng, 2), count), np.dtype("u2"))
    _dicom(
        folder / "e.dcm", array, rng, "1.2.840.10008.5.1.4.1.1.2.1", ExplicitVRLittleEndian,
        PerFrameFunctionalGroupsSequence=pydicom.Sequence(frames),
        SharedFunctionalGroupsSequence=pydicom.Sequence([shared]),
    )  # fmt: skip
    return folder / "e.dcm"


def picture(folder: Path, rng: Rng) -> Path:
    """PNG, JPEG, BMP, TIFF and JPEG 2000 of the modes and compressions that Pillow writes."""
    kinds: dict[str, list[str]] = {
        "png": ["L", "RGB", "RGBA", "LA", "P", "I;16", "1"], "jpg": ["L", "RGB", "CMYK"], "bmp": ["L", "RGB", "P", "1"],
        "tif": ["L", "RGB", "I;16", "F", "1", "RGBA"], "jp2": ["L", "RGB", "I;16"],
    }  # fmt: skip
    ending = str(rng.choice([*kinds]))
    mode = str(rng.choice(kinds[ending]))
    size = tuple(int(n) for n in rng.integers(8, 40, 2))
    if mode in ("I;16", "F"):
        made = Pillow.fromarray(numbers(rng, size, np.dtype({"I;16": "u2", "F": "f4"}[mode])))
    else:
        made = Pillow.fromarray(rng.integers(0, 255, (*size[::-1], 3)).astype(np.uint8)).convert(mode)
    more: dict[str, Any] = {}
    if ending == "tif":
        more = {"compression": str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]))}
        if rng.random() < 0.2:
            more |= {"save_all": True, "append_images": [made.copy()]}
    path = folder / f"a.{ending}"
    made.save(path, **more)
    return path


def other(folder: Path, rng: Rng) -> Path:
    """The formats of ITK's rarer readers, as ITK writes them."""
    path = folder / str(rng.choice(["a.gipl", "a.vtk", "a.mrc", "a.h5", "a.hdf5", "a.gipl.gz"]))
    itk = sitk.GetImageFromArray(numbers(rng, sizes(rng, 3), np.dtype(str(rng.choice(["u1", "i2", "f4"])))))
    itk.SetSpacing(rng.uniform(0.2, 3, 3).tolist())
    itk.SetOrigin(rng.uniform(-50, 50, 3).tolist())
    sitk.WriteImage(itk, str(path))
    return path


def bomb(folder: Path, rng: Rng) -> Path:
    """A small file that unpacks to far more than its header, or anybody, can want."""
    zeros, blocks = bytes(1 << 20), 400
    size = (40, 40, 40) if rng.random() < 0.5 else (700, 700, 700)
    which = str(rng.choice(["nii.gz", "nrrd", "bz2", "mha", "png", "dcm"]))
    name = {"bz2": "a.nrrd"}.get(which, f"a.{which}")
    if which == "nii.gz":
        header = nib.Nifti1Header()
        header.set_data_dtype(np.uint8)
        header.set_data_shape(size)
        header.set_sform(np.eye(4), 1)
        header["vox_offset"] = 352
        start = gzip.compress(header.binaryblock + bytes(4))
        data = start + gzip.compress(zeros) * blocks
    elif which in ("nrrd", "bz2"):
        encoding = "gzip" if which == "nrrd" else "bzip2"
        head = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: {' '.join(map(str, size))}\nencoding: {encoding}\n"
        head += "space: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
        data = head.encode() + (gzip if which == "nrrd" else bz2).compress(zeros) * blocks
    elif which == "mha":
        head = f"NDims = 3\nDimSize = {' '.join(map(str, size))}\nElementType = MET_UCHAR\nCompressedData = True\n"
        head += "ElementSpacing = 1 1 1\nElementDataFile = LOCAL\n"
        data = head.encode() + zlib.compress(zeros * 40)
    elif which == "png":
        side = 20_000
        head = side.to_bytes(4, "big") * 2 + bytes([int(rng.choice([8, 16])), int(rng.choice([0, 2, 6])), 0, 0, 0])
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(zeros * 40)), (b"IEND", b"")]
        data = b"\x89PNG\r\n\x1a\n" + b"".join(
            len(c).to_bytes(4, "big") + k + c + zlib.crc32(k + c).to_bytes(4, "big") for k, c in chunks
        )
    else:
        path = dicom(folder, np.random.default_rng(5))
        sound = path.read_bytes()
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        meta = 144 + int.from_bytes(sound[140:144], "little")
        uid = b"1.2.840.10008.1.2.1.99"
        at = sound.find(b"1.2.840.10008.1.2", 200)
        start = sound[:at] + uid + sound[at + int.from_bytes(sound[at - 2 : at], "little") : meta]
        start = start[: at - 2] + len(uid).to_bytes(2, "little") + start[at:]
        start = start[:140] + (len(start) - 144).to_bytes(4, "little") + start[144:]
        data = start + packer.compress(zeros * 300) + packer.flush()
    (folder / name).write_bytes(data)
    return folder / name


MAKERS: dict[str, Maker] = {
    "nifti": nifti, "mgh": mgh, "nrrd": nrrd, "metaimage": metaimage, "dicom": dicom, "dicom series": series,
    "dicom frames": enhanced, "picture": picture, "other image": other, "bomb": bomb,
}  # fmt: skip
