"""What is done to sound files: extreme header fields, truncation, flipped and appended bytes, wrong endings."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

Rng = np.random.Generator
NUMBERS = [0, -1, 1, 2, 127, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, 1e-30, 1e30,
           float("nan"), float("inf"), float("-inf"), 0.5, 1e9]  # fmt: skip
TEXTS = ["\0", "0", "-1", "1", "99999999999999999999", "1e400", "nan", "inf", "-inf", "1e-320", "", " ", "x", "1,5",
         "é", "%n%s", "none", "(1,0,0)", "A" * 5000, "1 " * 3000, "LIST", "LOCAL", "../../etc/passwd", "/dev/zero",
         "0x10", "1_0"]  # fmt: skip
PIECES = [*',;"\n\r\0#=.-\té:', "1", "e9", "nan", "inf", "_x", "sep=;\n", ",,,,", "\u2028", "\ufeff", "{", "}", "[",
          "]", "&a ", "*a ", "!!python/object:os.system ", "- ", "\n  ", "1" * 5000, "[" * 1500]  # fmt: skip
VALUES: list[Any] = [None, True, 0, -1, 5.5, 1e300, 10**400, "", " ", "x", "\n", "\0", "\ud800", [], {}, [[1]],
                     float("nan"), float("inf"), {"a": 1}, "preview", "1" * 5000]  # fmt: skip
ENDINGS = [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".bmp", ".tif", ".jp2", ".dcm", ".img",
           ".hdr", ".mgh", ".mgz", ".gipl", ".vtk", ".mrc", ".h5", ".mnc", ".pic", ".spr", ".rec", "", ".csv", ".json",
           ".fcsv", ".txt", ".pts", ".tag", ".tps", ".yaml"]  # fmt: skip


def flipped(data: bytes, rng: Rng) -> bytes:
    """Some bytes changed, half of the time near the start."""
    out = bytearray(data)
    reach = min(len(out), 600) if rng.random() < 0.6 else len(out)
    for at in rng.integers(0, max(reach, 1), int(rng.choice([1, 1, 2, 4, 30]))):
        if out:
            out[at] = int(rng.choice([0, 1, 127, 128, 255, out[at] ^ (1 << int(rng.integers(8)))]))
    return bytes(out)


def words(data: bytes, rng: Rng) -> bytes:
    """Two, four or eight bytes of the start as an extreme number, in either order."""
    out = bytearray(data)
    width, order = int(rng.choice([2, 4, 8])), str(rng.choice(["little", "big"]))
    at = int(rng.integers(0, max(1, min(len(out), 500) - width)))
    value = int(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 10**6])) % (1 << 8 * width)
    out[at : at + width] = value.to_bytes(width, order)
    return bytes(out)


def cut(data: bytes, rng: Rng) -> bytes:
    reach = min(len(data), 700) if rng.random() < 0.4 else len(data)
    return data[: int(rng.integers(0, max(reach, 1)))]


def appended(data: bytes, rng: Rng) -> bytes:
    return data + bytes(rng.integers(0, 256, int(rng.choice([1, 4, 1000, 100_000])), dtype=np.uint8))


def doubled(data: bytes, rng: Rng) -> bytes:
    """A part of it twice, or another way round."""
    a, b = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    return data[:b] + data[a:] if rng.random() < 0.5 else data[:a] + data[a:b][::-1] + data[b:]


def lines(data: bytes, rng: Rng) -> bytes:
    """Of a text header: a word, a line or a number changed, taken away, doubled or made long."""
    end = data.find(b"\n\n") if data.startswith(b"NRRD") else data.find(b"LOCAL\n") + 5 if b"LOCAL\n" in data else -1
    head, rest = (data[:end], data[end:]) if end > 0 else (data[:5000], data[5000:])
    rows = head.decode("latin-1").split("\n")
    for _ in range(int(rng.choice([1, 1, 2]))):
        n = int(rng.integers(len(rows)))
        parts = re.split(r"(\s+|[,:=()])", rows[n])
        way = rng.integers(5)
        if way == 0:
            rows.pop(n)
        elif way == 1:
            rows.insert(n, rows[n])
        else:
            at = int(rng.integers(len(parts)))
            parts[at] = str(rng.choice(TEXTS)) if way < 4 else str(rng.choice([str(v) for v in NUMBERS]))
            rows[n] = "".join(parts)
        rows = rows or [""]
    return "\n".join(rows).encode("latin-1", "replace") + rest


def pieces(data: bytes, rng: Rng) -> bytes:
    """Of a text: odd characters set in."""
    text = data.decode("utf-8", "replace")
    for _ in range(int(rng.integers(1, 5))):
        at, length = int(rng.integers(len(text) + 1)), int(rng.integers(0, 5))
        text = text[:at] + str(rng.choice(PIECES)) + text[at + length :]
    return text.encode(str(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"])), "replace")


def values(data: bytes, rng: Rng) -> bytes:
    """Of JSON: values of another kind, keys taken away, deep nesting."""
    try:
        document = json.loads(data)
    except ValueError:
        return pieces(data, rng)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(document))
        if not places:
            break
        container, key = places[int(rng.integers(len(places)))]
        if rng.random() < 0.8:
            container[key] = VALUES[int(rng.integers(len(VALUES)))]
        else:
            del container[key]
    if rng.random() < 0.05:
        return b'{"a":' * 3000 + b"1" + b"}" * 3000
    return json.dumps(document).encode()


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def nifti_field(data: bytes, rng: Rng) -> bytes:
    """A field of the header, by its name, with an extreme value."""
    if len(data) < 348 or data[:4] not in (struct.pack(o + "i", 348) for o in "<>"):
        return words(data, rng)
    header = nib.Nifti1Header(data[:348], endianness="<" if data[0] == 92 else ">", check=False)
    structure = header.structarr
    for _ in range(int(rng.choice([1, 1, 2]))):
        name = str(rng.choice([n for n in structure.dtype.names if structure[n].dtype.kind in "iuf"]))
        field = np.atleast_1d(structure[name]).copy()
        value = NUMBERS[int(rng.integers(len(NUMBERS)))]
        if field.dtype.kind != "f":
            value = (
                int(np.nan_to_num(value, posinf=1, neginf=0)) & 0x7FFF
                if rng.random() < 0.5
                else int(rng.integers(-9, 9))
            )
            limits = np.iinfo(field.dtype)
            value = max(limits.min, min(limits.max, value))
        with np.errstate(all="ignore"):
            field[int(rng.integers(len(field)))] = value
            structure[name] = field if structure[name].ndim else field[0]
    return header.binaryblock + data[348:]


def dicom_tag(path: Path, rng: Rng) -> bytes:
    """A tag taken away, or with a value that is none."""
    try:
        made = pydicom.dcmread(path, force=True)
        tags = [e for e in made if e.VR != "SQ" and e.tag != 0x7FE00010]
    except Exception:  # damaged already
        return flipped(path.read_bytes(), rng)
    if not tags:
        return flipped(path.read_bytes(), rng)
    for _ in range(int(rng.choice([1, 1, 2]))):
        element = tags[int(rng.integers(len(tags)))]
        if rng.random() < 0.3:
            made.pop(element.tag, None)
            continue
        odd: Any = str(rng.choice(["", "0", "-1", "1e400", "nan", "x", "99999999", "1\\2", "1\\0\\0\\0\\1\\0", "0\\0"]))
        if element.VR in ("US", "UL", "SS"):
            odd = int(rng.choice([0, 1, 2, 8, 12, 32, 255, 65535]))
        try:
            with pydicom.config.disable_value_validation():
                made[element.tag] = pydicom.DataElement(element.tag, element.VR, odd)
        except Exception:  # pydicom does not take it
            continue
    try:
        with pydicom.config.disable_value_validation():
            made.save_as(path, enforce_file_format=False)
    except Exception:  # or cannot write it
        pass
    return path.read_bytes()


def inside(data: bytes, rng: Rng, way: Callable[[bytes, Rng], bytes]) -> bytes:
    """The same within gzip, half of the time."""
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.7:
        try:
            return gzip.compress(way(gzip.decompress(data), rng))
        except (OSError, EOFError, zlib.error):
            pass
    return way(data, rng)


BYTES = [flipped, words, cut, appended, doubled]
OWN: dict[str, list[Callable[[bytes, Rng], bytes]]] = {
    "nifti": [nifti_field] * 5, "nrrd": [lines] * 5, "metaimage": [lines] * 5, "landmarks": [pieces, values, lines] * 2,
    "manifest": [pieces, lines] * 2, "definition": [pieces, lines] * 2, "settings": [pieces, lines] * 2,
    "options": [values] * 3,
}  # fmt: skip


def damaged(path: Path, kind: str, rng: Rng) -> Path:
    """The file, or one of a folder, after one to three damages; perhaps with another ending."""
    target = path
    if path.is_dir():
        files = sorted(path.iterdir())
        target = files[int(rng.integers(len(files)))]
    if kind == "options":
        target.write_text(json.dumps(_options(json.loads(target.read_text()), rng)))
        return path
    ways = [*BYTES, *OWN.get(kind, [])]
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        if kind.startswith("dicom") and rng.random() < 0.5:
            target.write_bytes(dicom_tag(target, rng))
            continue
        way = ways[int(rng.integers(len(ways)))]
        target.write_bytes(inside(target.read_bytes(), rng, way))
    if target == path and rng.random() < 0.08:
        renamed = path.with_name("b" + str(rng.choice(ENDINGS)))
        path.rename(renamed)
        return renamed
    return path


def _options(arguments: list[str], rng: Rng) -> list[str]:
    """A word of a command line taken away, doubled, or another."""
    odd = ["", "-1", "0", "nan", "inf", "1e400", "99999999999999999999", "x", "é", "a,b", "1;2", "1,2", "--out", "--x",
           "/dev/null", "A" * 300, "\n", "train", "LPS", "px"]  # fmt: skip
    for _ in range(int(rng.choice([1, 1, 2]))):
        n = int(rng.integers(1, max(2, len(arguments))))
        way = rng.integers(4)
        if way == 0:
            arguments[n : n + 1] = []
        elif way == 1:
            arguments.insert(n, arguments[min(n, len(arguments) - 1)])
        else:
            arguments[n : n + 1] = [str(rng.choice(odd))]
    return arguments
