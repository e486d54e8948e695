"""JSON files of annotation programs and challenges as tidy tables: 2D points in pixels, read, not written.

COCO keypoints, labelme, the CL-Detection challenges and the Aariz data set. Others are refused by their names, where
these are known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from anatomark.errors import InputError, listed
from anatomark.io.atomic import read_json
from anatomark.io.other_tables import case_names
from anatomark.io.sheets import Sheet
from anatomark.io.slicer import is_markups

Points = list[tuple[str, list[Any], str]]  # name, x and y (blank: not annotated), description


def kind_of(path: Path) -> str:
    """``markups`` (3D Slicer), the program or data set of a file of others (a key of ``READERS``), or ``ours``. Raises
    InputError where it is no JSON, or a known format that cannot be read."""
    try:
        stamp = path.stat().st_mtime_ns, path.stat().st_size
    except (OSError, ValueError):
        stamp = (0, 0)  # read_json has the words for it
    return _kind(path, stamp)


@lru_cache(maxsize=64)  # a manifest names one file in many rows; the stamp notices a change
def _kind(path: Path, stamp: tuple[int, int]) -> str:
    document = read_json(path)
    if is_markups(document):
        return "markups"
    known = next((kind for kind, (is_one, _) in READERS.items() if is_one(document)), None)
    if known is None and (what := next((what for what, is_one in REFUSED.items() if is_one(document)), None)):
        raise InputError(
            f"{path}: is {what}, which is not read; write a table label,x,y or case,label,x,y (CSV) from it"
        )
    return known or "ours"


def json_points(path: Path) -> Sheet:
    """The tidy table of a JSON file with one of ``READERS``; images are cases, called after their files, where there
    are several. Raises InputError, naming the image and the point."""
    kind, document = kind_of(path), read_json(path)
    images: dict[str, Points] = {}
    for image, points in READERS[kind][1](document, path):
        if image in images:
            raise InputError(f"{path}: holds several individuals of {image[:80]!r}; one for each image is read")
        images[image] = points
    rows: list[tuple[int, dict[str, str]]] = []
    several = len(images) > 1
    for name, (image, points) in zip(case_names(list(images)), images.items(), strict=True):
        if twice := [label for label, n in Counter(label for label, _, _ in points).items() if n > 1]:
            raise InputError(f"{path}: {image[:80]!r} has several points called {twice[0]!r}; names must differ")
        for label, xy, text in points:
            cells = {"label": label, "x": "", "y": "", "description": text}
            if xy:
                cells |= dict(zip("xy", _numbers(xy, f"{path}: {image[:80]!r}, {label!r}"), strict=True))
            rows.append((len(rows) + 1, ({"case": name} if several else {}) | cells))
    if not rows:
        raise InputError(f"{path}: is a file of {kind}, but holds no points")
    columns = [*(["case"] if several else []), "label", "x", "y", "description"]
    return Sheet(path, {"frame": "image", "unit": "px"}, columns, rows, notes=_passed_over(document, path))


def _numbers(values: Sequence[Any], where: str) -> list[str]:
    good = len(values) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not good or not all(map(math.isfinite, values)):
        raise InputError(f"{where}: position {str(list(values))[:80]} is not 2 numbers")
    return [repr(float(v)) for v in values]


def _lists_of_dicts(document: Any, *keys: str) -> bool:
    """Whether a document has lists of objects under all ``keys``."""
    return isinstance(document, dict) and all(
        isinstance(document.get(k), list) and all(isinstance(v, dict) for v in document[k]) for k in keys
    )


def _is_coco(document: Any) -> bool:
    return _lists_of_dicts(document, "images", "annotations", "categories")


def _coco(document: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Points]]:
    files = {str(image.get("id")): str(image.get("file_name")) for image in document["images"]}
    parts = {
        str(c.get("id", "")): c["keypoints"] for c in document["categories"] if isinstance(c.get("keypoints"), list)
    }
    for number, one in enumerate(document["annotations"], 1):
        values = one.get("keypoints")
        if not values:
            continue  # a box alone
        image = files.get(str(one.get("image_id")))
        category = str(one.get("category_id", "")) if len(parts) != 1 else next(iter(parts))
        if image is None or category not in parts:
            raise InputError(
                f"{path}: annotation {number} is of an image or a category with keypoints that is not there"
            )
        names = parts[category]
        if not isinstance(values, list) or len(values) != 3 * len(names):
            raise InputError(f"{path}: annotation {number}: x, y, visibility of {len(names)} keypoints are needed")
        yield image, [(str(n), values[3 * i : 3 * i + 2] if values[3 * i + 2] else [], "") for i, n in enumerate(names)]


def _is_labelme(document: Any) -> bool:
    return _lists_of_dicts(document, "shapes") and "imagePath" in document


def _labelme(document: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Points]]:
    points: Points = []
    for shape in document["shapes"]:
        places = shape.get("points")
        if shape.get("shape_type") == "point":
            if not isinstance(places, list) or len(places) != 1 or not isinstance(places[0], list):
                raise InputError(f"{path}: point {str(shape.get('label'))[:40]!r} has no position")
            points.append((str(shape.get("label") or ""), places[0], ""))
    if points:
        yield str(document["imagePath"]), points


def _passed_over(document: Any, path: Path) -> tuple[str, ...]:
    """The remark on shapes of labelme that are no points."""
    shapes = document.get("shapes", []) if _is_labelme(document) else []
    others = [str(s.get("label"))[:40] for s in shapes if s.get("shape_type") != "point"]
    return (f"{path}: shapes that are no points are passed over: {listed(others)}",) if others else ()


def _is_cl_detection(document: Any) -> bool:
    return isinstance(document, dict) and bool(document) and all(
        isinstance(v, dict) and isinstance(v.get("landmarks"), dict) for v in document.values()
    )  # fmt: skip


def _cl_detection(document: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Points]]:
    for image, one in document.items():
        yield image, [(name, _place(xy), "") for name, xy in one["landmarks"].items()]


def _is_aariz(document: Any) -> bool:
    return _lists_of_dicts(document, "landmarks") and any("value" in e and "symbol" in e for e in document["landmarks"])


def _aariz(document: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Points]]:
    entries = document["landmarks"]
    points = [(str(e.get("symbol") or ""), _place(e.get("value")), str(e.get("title") or "")) for e in entries]
    yield str(document.get("ceph_id") or path.stem), points


def _place(value: Any) -> list[Any]:
    """``[x, y]`` of a list or ``{"x": x, "y": y}``; blank for null."""
    if isinstance(value, dict):
        value = [value.get("x"), value.get("y")]
    return [] if value is None or value == [None, None] else value if isinstance(value, list) else [value]


Reader = Callable[[Any, Path], Iterable[tuple[str, Points]]]
READERS: dict[str, tuple[Callable[[Any], bool], Reader]] = {
    "COCO": (_is_coco, _coco), "labelme": (_is_labelme, _labelme), "CL-Detection": (_is_cl_detection, _cl_detection),
    "Aariz": (_is_aariz, _aariz),
}  # fmt: skip


def _entries_with(document: Any, *keys: str) -> bool:
    """Whether a document is a list, or holds objects, of which the first has these keys."""
    values = list(document.values()) if isinstance(document, dict) else document
    return isinstance(values, list) and bool(values) and isinstance(values[0], dict) and set(keys) <= set(values[0])


REFUSED: dict[str, Callable[[Any], bool]] = {
    "a list of COCO results, without the names of its keypoints": lambda d: _entries_with(d, "image_id", "keypoints"),
    "a file of the VGG Image Annotator": lambda d: _entries_with(d, "filename", "regions"),
    "a file of Label Studio, whose positions are per cent of the image": lambda d: _entries_with(d, "annotations"),
    "a list of points of Grand Challenge, whose third number is z or the number of a slice": lambda d: (
        _lists_of_dicts(d, "points") and _entries_with(d["points"], "point")
    ),
    "a file of AnyLabeling or labelme without its image's name": lambda d: _lists_of_dicts(d, "shapes"),
}
