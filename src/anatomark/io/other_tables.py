"""Tables of other programs as ours: 3D Slicer's table of points, DeepLabCut's annotations and predictions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from anatomark.errors import InputError
from anatomark.io.atomic import read_text
from anatomark.io.sheets import Sheet, read_records, split_lines

SLICERS_AXES = {"lps": "LPS", "ras": "RAS"}
NOT_PLACED = ("0", "false", "undefined", "preview")


def slicers_frame(sheet: Sheet) -> str | None:
    """The frame that a table of 3D Slicer's points states by its columns ``label,l,p,s`` or ``label,r,a,s``."""
    small = [c.lower() for c in sheet.columns]
    if "label" not in small or "x" in small:
        return None
    return next((frame for axes, frame in SLICERS_AXES.items() if all(a in small for a in axes)), None)


def slicers_points(sheet: Sheet, frame: str) -> Sheet:
    """A tidy table of a table of 3D Slicer's points; a point that is not ``defined`` has no position."""
    axes = dict(zip(frame.lower(), "xyz", strict=True))
    rows = []
    for row, cells in sheet.rows:
        small = {c.lower(): text for c, text in cells.items()}
        placed = small.get("defined", "1").lower() not in NOT_PLACED
        kept = {"label": small["label"], "description": small.get("description", "")}
        rows.append((row, kept | {x: small[a] if placed else "" for a, x in axes.items()}))
    return replace(sheet, columns=["label", "description", *"xyz"], rows=rows)


def is_deeplabcut(path: Path) -> bool:
    """Whether a CSV begins as DeepLabCut's do."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(16).removeprefix(b"\xef\xbb\xbf").lower().startswith(b"scorer,")


def deeplabcut(path: Path) -> Sheet:
    """A tidy table of DeepLabCut's: rows ``scorer``, ``bodyparts``, ``coords``, then one for each image, of which the
    case is called after. 2D, in pixels (column, row). ``likelihood`` is the score. Raises InputError."""
    records = list(read_records(split_lines(read_text(path, newlines=False)), ",", path))
    heads = {cells[0].strip().lower(): [c.strip() for c in cells] for _, cells in records[:4]}
    if "individuals" in heads and len({c for c in heads["individuals"][1:] if c}) > 1:
        raise InputError(f"{path}: holds several individuals; one for each image is read")
    if not {"bodyparts", "coords"} <= set(heads):
        raise InputError(f"{path}: is no table of DeepLabCut's, it has no row 'bodyparts' or 'coords'")
    parts, coords = heads["bodyparts"], [c.lower() for c in heads["coords"]]
    columns = [i for i, c in enumerate(coords) if c in ("x", "y", "likelihood")]
    if not columns or len(parts) < len(coords) or "z" in coords:
        raise InputError(f"{path}: its rows 'bodyparts' and 'coords' do not go together; x and y are needed")
    data = [(row, cells) for row, cells in records if cells[0].strip().lower() not in _HEADS]
    images = ["/".join(c.strip() for c in cells[: columns[0]] if c.strip()) for _, cells in data]
    names = case_names(images)
    rows = []
    for name, (row, cells) in zip(names, data, strict=True):
        if len(cells) < len(coords):
            raise InputError(f"{path}: row {row}: has {len(cells)} cells for {len(coords)} columns")
        points: dict[str, dict[str, str]] = {}
        for i in columns:
            points.setdefault(parts[i], {})["score" if coords[i] == "likelihood" else coords[i]] = cells[i].strip()
        own = {"case": name} if len(data) > 1 else {}
        rows += [(row, {**own, "label": part, "x": "", "y": "", "score": "", **cell}) for part, cell in points.items()]
    if not rows:
        raise InputError(f"{path}: has a header but no rows")
    columns_ = [*(["case"] if len(data) > 1 else []), "label", "x", "y", "score"]
    return Sheet(path, {"frame": "image", "unit": "px"}, columns_, rows)


_HEADS = ("scorer", "individuals", "bodyparts", "coords")


def case_names(images: list[str]) -> list[str]:
    """What images are called: the stem of the file, or where two are alike the path without its ending."""
    whole = [image.replace("\\", "/") for image in images]
    stems = [Path(image).stem or image for image in whole]
    counts = Counter(stems)
    return [
        stem if counts[stem] == 1 else image.removesuffix(Path(image).suffix)
        for stem, image in zip(stems, whole, strict=True)
    ]
