"""Which files of a folder are DICOM images, and which of them belong together; with or without a preamble, DICOMDIR."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from anatomark.errors import InputError
from anatomark.io.files import CUT_OFF, check_regular, check_unpacking
from anatomark.io.itk import quiet

PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")  # transfer syntaxes as they are
DEFLATED = "1.2.840.10008.1.2.1.99"  # all after the file meta information is deflated
PACKED = (
    DEFLATED, "1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)),
)  # fmt: skip  # what GDCM unpacks: RLE, JPEG, JPEG-LS, JPEG 2000
DIRECTORY = "1.2.840.10008.1.3.10"  # media storage directory, the class of a DICOMDIR
UNDEFINED, LONG = 0xFFFFFFFF, 1 << 16  # a length that is not stated; bytes of a value that is skipped at first


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
    """pydicom's data set, its long values such as pixels not read yet; ``tags`` alone where given. Raises InputError,
    also where a value would end beyond the file."""
    import pydicom

    check_regular(path)
    deflated = _is_deflated(path)
    plain = tags is not None or deflated
    how = {"stop_before_pixels": True} if plain else {"defer_size": LONG}
    try:
        with quiet(), pydicom.config.disable_value_validation():
            header = pydicom.dcmread(path, force=True, specific_tags=tags, **how)
            if not plain:
                _check_lengths(path, header)
            return header
    except InputError:
        raise
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


def _check_lengths(path: Path, header: Any) -> None:
    """Raise InputError where a value would lie beyond the file: GDCM takes the memory for it first."""
    size = path.stat().st_size
    for item in header.values():
        length = getattr(item, "length", 0)
        if length != UNDEFINED and length and item.value_tell + length > size:
            raise InputError(f"{path}: {CUT_OFF}: the value of {item.tag} ends beyond it")


def _is_deflated(path: Path) -> bool:
    """Whether all after the file meta information is deflated. Raises InputError where it unpacks to more than images
    do: pydicom unpacks it all."""
    with open(path, "rb") as file:
        start = file.read(1024)
    if DEFLATED.encode() in start:
        if start[128:136] != b"DICM\2\0\0\0":
            raise InputError(f"{path}: cannot be read: damaged DICOM (it has no length of its file meta information)")
        check_unpacking(path, 144 + int.from_bytes(start[140:144], "little"))
    return DEFLATED.encode() in start


def one_line(error: Exception) -> str:
    """An exception as a short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def series_in(folder: Path) -> list[dict[Path, Any]]:
    """The DICOM images lying directly in a folder with their headers, series by series, in the order of names."""
    files = [f for f in sorted(folder.iterdir()) if os.path.isfile(f) and not f.name.startswith(".") and is_dicom(f)]
    return _by_series(files)


def _what_it_is(path: Path) -> Any:
    """The header of a file. Raises InputError where it is damaged."""
    header = read_header(path)
    if "Rows" not in header and "SOPClassUID" not in header and not is_directory_file(path):
        raise InputError(f"{path}: cannot be read: damaged DICOM (it does not say what it is)")
    return header


def _by_series(files: list[Path]) -> list[dict[Path, Any]]:
    """One that cannot be read is a series of its own, without a header; why is said when it is read."""
    series: dict[str, dict[Path, Any]] = {}
    for file in files:
        try:
            header = _what_it_is(file)
        except InputError:
            series[f"{file} cannot be read"] = {file: None}
            continue
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
    for files in series:
        for file, header in files.items():
            if header is None:
                _what_it_is(file)  # raises, and says why
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


def images_in(folder: Path, given: bool = False) -> list[Path]:
    """The folder itself where its DICOM files make one series of several files; single-file series one by one; of a
    folder with a DICOMDIR alone, those of the folders that it lists. Raises InputError where a ``given`` folder holds
    several series; of others that is said when they are read, and so is that a file cannot be."""
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
    if given and all(None not in files.values() for files in series):
        _only(folder, series)
    return [folder]
