"""Landmark files of morphometrics, cephalometry and atlases as tidy tables; they are read, not written.

``.tps`` (tpsDig), ``.pts`` (IDAV Landmark, 300-W), ``.landmarkAscii`` (Amira, Avizo), ``.tag`` (MNI), ``.txt``
(lists of x,y such as those of the ISBI challenges).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from anatomark.errors import InputError
from anatomark.io.atomic import read_text
from anatomark.io.images import image_grid
from anatomark.io.sheets import Sheet

Line = tuple[int, str]  # its number, its text
Point = tuple[int, str, str, list[str]]  # row, case, label, numbers
MOST_LINES = 500_000
IDAV_MISSING = 9999.0  # in each coordinate


def _text(path: Path) -> str:
    text = read_text(path)
    if text.count("\n") > MOST_LINES:
        raise InputError(f"{path}: has more than {MOST_LINES} lines; take it apart")
    return text


def _lines(path: Path) -> list[Line]:
    return [(i, line.strip()) for i, line in enumerate(_text(path).split("\n"), 1) if line.strip()]


def _sheet(path: Path, points: Sequence[Point], facts: dict[str, str] | None = None) -> Sheet:
    """A tidy table of (row, case, label, numbers); where no case is named, without that column."""
    if not points:
        raise InputError(f"{path}: holds no landmarks")
    count = len(points[0][3])
    if count not in (2, 3) or any(len(p[3]) != count for p in points):
        odd = next((p for p in points if len(p[3]) != count), points[0])
        raise InputError(f"{path}: row {odd[0]}: {len(odd[3])} numbers, 2 or 3 are needed, as many in every row")
    axes, several = "xyz"[:count], any(case for _, case, _, _ in points)
    rows = [
        (row, ({"case": case} if several else {}) | {"label": label} | dict(zip(axes, numbers, strict=True)))
        for row, case, label, numbers in points
    ]
    return Sheet(path, facts or {}, [*(["case"] if several else []), "label", *axes], rows)


def points_of_list(path: Path) -> Sheet:
    """``x,y`` (or ``x y``, ``x;y``, with a third number ``x,y,z``) in each line; the landmarks are called 1, 2, ... .
    Lines of one whole number at the end, such as the classes of the ISBI 2015 challenge, are no landmarks."""
    lines = _lines(path)
    while lines and re.fullmatch(r"-?\d+", lines[-1][1]):
        lines.pop()
    points: list[Point] = []
    for row, line in lines:
        numbers = [n for n in re.split(r"[\s,;]+", line) if n]
        if not all(map(_is_number, numbers)):
            raise InputError(f"{path}: row {row}: {line[:40]!r} is not x,y or x,y,z")
        points.append((row, "", str(len(points) + 1), numbers))
    return _sheet(path, points)


def tps(path: Path, scaled: bool = False, upwards: bool = False) -> Sheet:
    """tpsDig's: ``LM=n`` or ``LM3=n``, n lines, ``IMAGE=``, ``ID=``, ``SCALE=``; several specimens are cases, called
    after the image, else the ID. The landmarks are called 1, 2, ... . ``scaled``: multiplied by each specimen's SCALE,
    where there is one. ``upwards``: y of 2D points counts from the picture's lower edge, as tpsDig has it, and is
    turned round by the height of the picture, which lies beside the file. Curves and outlines are refused."""
    specimens: list[dict[str, str]] = []
    points: list[list[tuple[int, list[str]]]] = []
    lines = iter(_lines(path))
    for row, line in lines:
        key, equals, value = (part.strip() for part in line.partition("="))
        key = key.upper()
        if not equals or (key not in ("LM", "LM3") and not specimens):
            raise InputError(f"{path}: row {row}: {line[:40]!r}: LM=, the number of landmarks, is needed")
        if key in ("LM", "LM3"):
            specimens.append({})
            points.append(_counted(path, row, value, lines))
        elif key in ("CURVES", "OUTLINES"):
            raise InputError(f"{path}: row {row}: {key} are not read; landmarks alone are")
        else:
            specimens[-1][key] = value
    if upwards := upwards and any(len(numbers) == 2 for one in points for _, numbers in one):
        points = [_downwards(path, s, p) for s, p in zip(specimens, points, strict=True)]
    if scaled and any("SCALE" in s for s in specimens):
        points = [_scaled(path, s, p) for s, p in zip(specimens, points, strict=True)]
    names = _specimen_names(specimens) if len(specimens) > 1 else [""]
    pairs = [(name, i, one) for name, all_ in zip(names, points, strict=False) for i, one in enumerate(all_, 1)]
    facts = {"frame": "image"} if upwards else None
    return _sheet(path, [(row, name, str(i), numbers) for name, i, (row, numbers) in pairs], facts)


def _downwards(path: Path, facts: dict[str, str], points: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """2D points whose y counts downwards from the upper edge: the picture's height less what the file says."""
    name = facts.get("IMAGE", "").replace("\\", "/").rpartition("/")[2]
    remedy = "give `frame` image where y counts downwards already"
    if not name:
        line = "a specimen names no IMAGE, by whose height tpsDig's y, which counts upwards, would be turned round"
        raise InputError(f"{path}: {line}; {remedy}")
    if not (picture := path.parent / name).is_file():
        line = f"tpsDig's y counts upwards from the lower edge of {name[:80]!r}: put that picture beside the file"
        raise InputError(f"{path}: {line}, or {remedy}")
    height = image_grid(picture, 1.0).shape[-2]
    return [(row, [n[0], repr(height - float(n[1])) if n[1] else ""] if len(n) == 2 else n) for row, n in points]


def _counted(path: Path, row: int, count: str, lines: Iterator[Line]) -> list[tuple[int, list[str]]]:
    """The numbers of ``count`` further lines; NA is blank."""
    if not re.fullmatch(r"\d{1,6}", count):
        raise InputError(f"{path}: row {row}: {count[:40]!r} is not a number of landmarks")
    out = []
    for _ in range(int(count)):
        at, line = next(lines, (row, ""))
        cells = line.split()
        if not cells or not all(_is_number(c) or c.upper() in ("NA", "NAN") for c in cells):
            raise InputError(f"{path}: row {at}: {line[:40]!r} is no landmark; {count} are announced in row {row}")
        out.append((at, ["" if c.upper() in ("NA", "NAN") else c for c in cells]))
    return out


def _scaled(path: Path, facts: dict[str, str], points: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    if not _is_number(facts.get("SCALE", "")) or not float(facts["SCALE"]) > 0:
        raise InputError(f"{path}: SCALE is {facts.get('SCALE', 'missing')[:40]!r} in one of the specimens")
    scale = float(facts["SCALE"])
    return [(row, [repr(float(n) * scale) if n else "" for n in numbers]) for row, numbers in points]


def _specimen_names(specimens: Sequence[dict[str, str]]) -> list[str]:
    images = [Path(s.get("IMAGE", "").replace("\\", "/")).stem for s in specimens]
    for names in (images, [s.get("ID", "") for s in specimens]):
        if all(names) and max(Counter(names).values()) == 1:
            return names
    return [str(i) for i in range(1, len(specimens) + 1)]


def pts(path: Path) -> Sheet:
    """IDAV Landmark's (``Version 1.0``, the count, ``name x y z`` in each line; 9999 in each coordinate: not placed),
    or 300-W's (``n_points: n``, ``{``, ``x y`` in each line, ``}``), whose landmarks are called 1, 2, ... ."""
    lines = _lines(path)
    if lines and re.match(r"version\s*:", lines[0][1], re.IGNORECASE):
        inside = [(row, line.split()) for row, line in lines if _is_number(line.split()[0])]
        announced = next((line.split(":")[1] for _, line in lines if line.lower().startswith("n_points:")), "")
        points = [(row, "", str(i), cells) for i, (row, cells) in enumerate(inside, 1)]
    elif lines and re.match(r"version\s", lines[0][1], re.IGNORECASE) and len(lines) > 1:
        announced, points = lines[1][1], []
        for row, line in lines[2:]:
            name, *cells = line.split()
            gone = len(cells) == 3 and all(_is_number(c) and float(c) == IDAV_MISSING for c in cells)
            points.append((row, "", name, [""] * 3 if gone else cells))
    else:
        raise InputError(f"{path}: begins neither with 'Version 1.0' (IDAV Landmark) nor with 'version: 1' (300-W)")
    if announced.strip() != str(len(points)):
        raise InputError(f"{path}: announces {announced.strip()[:20]} landmarks, holds {len(points)}")
    return _sheet(path, points)


def amira(path: Path) -> Sheet:
    """Amira's and Avizo's ``LandmarkSet`` in ASCII with one set; the landmarks are called 1, 2, ... ."""
    lines = _lines(path)
    head = " ".join(line for _, line in lines[:60])
    if not lines or not re.match(r"#\s*(AmiraMesh|HyperMesh|HyperSurface|Avizo)", lines[0][1], re.IGNORECASE):
        raise InputError(f"{path}: is no landmark file of Amira or Avizo (its first line does not say so)")
    if "ASCII" not in lines[0][1].upper():
        raise InputError(f"{path}: is binary; save the landmarks as ASCII")
    sets, announced = re.search(r"NumSets\s+(\d+)", head), re.search(r"define\s+Markers\s+(\d+)", head)
    if sets and sets[1] != "1":
        raise InputError(f"{path}: holds {sets[1]} sets of landmarks; save one of them")
    place = re.search(r"Markers\s*\{\s*(?:float|double)\[3\]\s+Coordinates\s*\}\s*=?\s*@(\d+)", head)
    begin = next((i for i, (_, line) in enumerate(lines) if place and line == f"@{place[1]}"), None)
    if announced is None or begin is None:
        raise InputError(f"{path}: says nothing of 'Markers' and their 'Coordinates'")
    points: list[Point] = []
    for row, line in lines[begin + 1 :]:
        if line.startswith("@"):
            break
        points.append((row, "", str(len(points) + 1), line.split()))
    if str(len(points)) != announced[1]:
        raise InputError(f"{path}: announces {announced[1][:20]} landmarks, holds {len(points)}")
    return _sheet(path, points)


def tag(path: Path) -> Sheet:
    """MNI's tag points of one volume: world coordinates, which are RAS in mm; a label in quotes ends each. Without
    labels the landmarks are called 1, 2, ... ."""
    text = _text(path)
    begin = re.search(r"\bPoints\s*=", text)
    end = text.find(";", begin.end()) if begin else -1
    volumes = re.search(r"\bVolumes\s*=\s*(\d+)\s*;", text)
    if not text.lstrip().startswith("MNI Tag Point File") or begin is None or end < 0 or volumes is None:
        raise InputError(f"{path}: is no MNI tag point file, or has no 'Volumes' or 'Points'")
    if volumes[1] != "1":
        raise InputError(f"{path}: holds points of {volumes[1]} volumes; those of one are read")
    first = text.count("\n", 0, begin.end()) + 1
    points: list[Point] = []
    for row, line in enumerate(text[begin.end() : end].split("\n"), first):
        if not line.strip() or line.lstrip().startswith("%"):
            continue
        numbers, _, rest = line.partition('"')
        label, closed, behind = rest.partition('"')
        cells = numbers.split()
        whole = not rest or (closed and not behind.strip())
        if not whole or len(cells) not in (3, 6) or not all(map(_is_number, cells)):
            raise InputError(f"{path}: row {row}: {line.strip()[:40]!r} is not x y z, and a label in quotes")
        points.append((row, "", label, cells[:3]))
    if not any(label for _, _, label, _ in points):
        points = [(row, case, str(i), cells) for i, (row, case, _, cells) in enumerate(points, 1)]
    return _sheet(path, points, {"frame": "RAS", "unit": "mm"})


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text) is not None


READERS: dict[str, Callable[[Path], Sheet]] = {
    ".landmarkascii": amira, ".pts": pts, ".tag": tag, ".txt": points_of_list,
}  # fmt: skip
ENDINGS = (".tps", *READERS)


def read_points(path: Path, frame: str | None, unit: str | None) -> Sheet:
    """The tidy table of a file with one of ``ENDINGS``. ``frame``, ``unit``: what was said of it. Raises InputError."""
    ending = path.suffix.lower()
    if ending != ".tps":
        return READERS[ending](path)
    sheet = tps(path, scaled=unit not in (None, "px"), upwards=frame is None)
    if "z" in sheet.columns:
        return sheet
    note = (
        "y is turned round, from the height of the picture: tpsDig counts it upwards"
        if sheet.facts
        else ("y counts downwards, as frame image says; tpsDig counts it upwards: leave the frame out to turn it round")
    )
    return replace(sheet, notes=(f"{path}: {note}",))
