"""Which files of a folder are DICOM images, and which of them belong together; with or without a preamble, DICOMDIR."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from anatomark.errors import InputError
from anatomark.io.files import check_deflated, check_regular
from anatomark.io.itk import quiet

PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")  # transfer syntaxes as they are
DEFLATED = "1.2.840.10008.1.2.1.99"
PACKED = (
    DEFLATED, "1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)),
)  # fmt: skip  # what GDCM unpacks: RLE, JPEG, JPEG-LS, JPEG 2000
DIRECTORY = "1.2.840.10008.1.3.10"  # media storage directory, the class of a DICOMDIR


def looks_like_dicom(start: bytes) -> bool:
    """Whether ``start``, at least 132 bytes of a file, begins one, with a preamble or without."""
    if start[128:132] == b"DICM":
        return True
    if start[:2] not in (b"\x02\0", b"\x08\0") or start[3:4] != b"\0" or len(start) < 132:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], "little") < 256


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM; one that cannot be read is not."""
    try:
        with open(path, "rb") as file:
            return looks_like_dicom(file.read(132))
    except OSError:
        return False


def read_header(path: Path, tags: list[str] | None = None) -> Any:
    """pydicom's data set without the pixels; ``tags`` alone where given. Raises InputError."""
    import pydicom

    check_regular(path)
    with open(path, "rb") as file:
        start = file.read(1024)
    if DEFLATED.encode() in start:  # after the preamble, the sign and the group's own length
        check_deflated(path, 144 + int.from_bytes(start[140:144], "little"))
    try:
        with quiet(), pydicom.config.disable_value_validation():
            return pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
    except Exception as error:  # pydicom raises whatever it stumbles over
        raise InputError(f"{path}: cannot be read: damaged DICOM ({one_line(error)})") from None


def transfer_syntax(path: Path, header: Any) -> str:
    """How the pixels of a file are stored. Raises InputError, by its name, for one that is not read here."""
    from pydicom.uid import UID

    uid = UID(str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or PLAIN[0]))
    if uid not in (*PLAIN, *PACKED):
        raise InputError(
            f"{path}: its transfer syntax {uid.name} is not read; save it uncompressed (Explicit VR Little Endian)"
        )
    return str(uid)


def one_line(error: Exception) -> str:
    """An exception as a short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def series_in(folder: Path) -> list[dict[Path, Any]]:
    """The DICOM images lying directly in a folder with their headers, series by series, in the order of names."""
    files = [f for f in sorted(folder.iterdir()) if os.path.isfile(f) and not f.name.startswith(".") and is_dicom(f)]
    return _by_series(files)


def _by_series(files: list[Path]) -> list[dict[Path, Any]]:
    series: dict[str, dict[Path, Any]] = {}
    for file in files:
        header = read_header(file)
        if "Rows" in header:
            series.setdefault(str(header.get("SeriesInstanceUID") or ""), {})[file] = header
    return list(series.values())


def one_series(folder: Path) -> dict[Path, Any]:
    """The files of the only series of a folder, with their headers. Raises InputError where it holds none, or
    several."""
    series = series_in(folder)
    if not series and (folder / "DICOMDIR").is_file():
        series = listed_series(folder / "DICOMDIR")
    return _only(folder, series)


def _only(folder: Path, series: list[dict[Path, Any]]) -> dict[Path, Any]:
    if len(series) != 1:
        raise InputError(f"{folder}: holds {len(series) or 'no'} DICOM series; an image folder holds exactly one")
    return series[0]


def listed_series(path: Path) -> list[dict[Path, Any]]:
    """The series that a DICOMDIR lists, files with their headers. Raises InputError where a file is missing."""
    files = []
    for record in read_header(path).get("DirectoryRecordSequence") or []:
        name = record.get("ReferencedFileID")
        if name is None:
            continue
        parts = [name] if isinstance(name, str) else list(name)
        if any(p in ("", ".", "..") or "/" in p or "\\" in p for p in parts):
            raise InputError(f"{path}: lists a file {'/'.join(parts)[:80]!r}, which is no name")
        file = path.parent.joinpath(*parts)
        if not file.is_file():
            raise InputError(f"{path}: lists {file.relative_to(path.parent)}, which is not there")
        files.append(file)
    return _by_series(files)


def is_directory_file(path: Path) -> bool:
    """Whether a DICOM file is a DICOMDIR."""
    meta = getattr(read_header(path, ["SOPClassUID"]), "file_meta", None)
    return meta is not None and str(meta.get("MediaStorageSOPClassUID", "")) == DIRECTORY


def images_in(folder: Path) -> list[Path]:
    """The folder itself where its DICOM files make one series of several files; single-file series one by one; of a
    folder with a DICOMDIR alone, those of the folders that it lists. Raises InputError where there are several."""
    try:
        some = any(is_dicom(e) for e in folder.iterdir() if os.path.isfile(e))
    except OSError:  # not ours to read
        return []
    if not some:
        return []
    series = series_in(folder)
    if not series and (folder / "DICOMDIR").is_file():
        parents = {file.parent for files in listed_series(folder / "DICOMDIR") for file in files}
        return [image for parent in sorted(parents - {folder}) for image in images_in(parent)]
    if all(len(files) == 1 for files in series):
        return [next(iter(files)) for files in series]
    _only(folder, series)
    return [folder]
