"""``anatomark crop``: regions of interest around landmarks, cut out voxel by voxel, with what puts results back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.find import Marked, find_marked
from anatomark.cases.manifest import read_manifest
from anatomark.core.box import Box, box_around, box_of_size
from anatomark.core.box import crop as cut_out
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, nearest
from anatomark.io.images import write_image
from anatomark.io.landmarks import split_observer, write_landmarks
from anatomark.progress import Reporter
from anatomark.tools.outputs import check_files, check_folder, remove, write_record

RECORD = "crops.json"
MARGIN_MM, MOST_MM = 10.0, 100_000
MOST_VOXELS = 100_000_000  # of a crop that is larger than its image
ENDINGS = {2: (".mha", ".csv"), 3: (".nii.gz", ".mrk.json")}  # of image and landmarks


@dataclass(frozen=True)
class Request:
    """What is cut out: the box of the landmarks ``points`` (None: all) with ``margin_mm`` (None: 10) on every side, or
    one of ``size_mm`` (x, y[, z]) around their centroid; cut at the image's border, or continued with the value
    ``pad``.

    Raises InputError for numbers that make no box.
    """

    margin_mm: float | None = None
    size_mm: tuple[float, ...] | None = None
    points: tuple[str, ...] | None = None
    pad: float | None = None

    def __post_init__(self) -> None:
        if self.margin_mm is not None and self.size_mm is not None:
            raise InputError("--margin-mm and --size-mm both say how large the box is; give one of them")
        if self.margin_mm is not None and not 0 <= self.margin_mm <= MOST_MM:
            raise InputError(f"--margin-mm {self.margin_mm:g}: is a number of mm from 0 on, at most {MOST_MM}")
        if self.size_mm is not None and not all(0 < s <= MOST_MM for s in self.size_mm):
            text = ",".join(f"{s:g}" for s in self.size_mm)
            raise InputError(f"--size-mm {text}: needs numbers above 0, at most {MOST_MM}")


@dataclass(frozen=True)
class Crops:
    """What :func:`crop` left behind in ``out``: a row of plain data for each case, ``state`` written or failed."""

    out: Path
    rows: tuple[dict[str, Any], ...]

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Cases that could not be cropped, and why."""
        return [(r["case"], r["reason"]) for r in self.rows if r["state"] == "failed"]

    def summary(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"out": str(self.out), "cases": list(self.rows)}

    def lines(self) -> list[str]:
        """The same as text."""
        out = []
        for r in self.rows:
            if r["state"] == "failed":
                if len(self.rows) > 1:  # else it is the error that the command ends with
                    out.append(f"{r['case']}: not cropped: {r['reason']}")
                continue
            size = " x ".join(str(u - v) for v, u in zip(r["lower"][::-1], r["upper"][::-1], strict=True))
            of = " x ".join(map(str, r["original"]["shape"][::-1]))
            skipped = f"; without {', '.join(r['skipped'])}" if r["skipped"] else ""
            out.append(f"{r['case']}: {size} of {of} voxels: {r['files'][0]}{skipped}")
        written = len(self.rows) - len(self.failed)
        return [*out, f"{written} of {len(self.rows)} cropped" + (f": {self.out / RECORD}" if written else "")]


def crop(
    paths: Sequence[Path],
    out: Path,
    request: Request,
    *,
    landmarks: Path | None = None,
    spacing: tuple[float, ...] | None = None,
    split: str | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> Crops:
    """Cut a region of interest out of each image (a manifest's, or ``paths`` with ``landmarks``) into ``out``.

    ``<case>.nii.gz`` (2D: ``.mha``): the image's own voxels, dtype, spacing and direction kept, each at the world
    position that it had; ``<case>.mrk.json`` (2D: ``.csv``): all its landmarks, world mm unchanged; ``crops.json``: the
    box in the original's indices, world corners, the original's grid. ``core.crop.paste`` puts a segmentation back.
    A case without any of the chosen landmarks fails with its reason, and the others go on. Raises InputError for bad
    requests, and where results are there already.
    """
    report = report or Reporter()
    check_folder(out)
    cases = find_marked(paths, landmarks, spacing=spacing, split=split)
    _check(cases, request)
    taken = [out / RECORD, *(f for c in cases for f in _files(out, c.case))]
    check_files(taken, _sources(paths, landmarks, cases), "crop", overwrite)
    rows = []
    with report.bar("crop", len(cases)) as bar:
        for k, case in enumerate(cases):
            try:
                rows.append(_one(case, out, request))
            except InputError as error:
                remove(_files(out, case.case))
                rows.append({"case": case.case, "image": str(case.path), "state": "failed", "reason": str(error)})
            bar.update(k + 1, case.case)
    result = Crops(out, tuple(rows))
    record = {"schema": 1, "frame": "LPS mm (2D: image mm)", "cases": rows}
    write_record(out / RECORD, record, len(result.failed) < len(rows))
    return result


def _sources(paths: Sequence[Path], landmarks: Path | None, cases: Sequence[Marked]) -> Iterator[Path]:
    """Every file that is read; a folder of landmarks counts with all that lies in it."""
    yield from (c.path for c in cases if c.path is not None)
    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    yield from tables
    if landmarks is not None:
        yield from landmarks.iterdir() if landmarks.is_dir() else (split_observer(landmarks)[0],)
    else:
        yield from (split_observer(c.landmarks)[0] for t in tables for c in read_manifest(t).cases if c.landmarks)


def _check(cases: Sequence[Marked], request: Request) -> None:
    known = list(dict.fromkeys(n for c in cases for n in c.landmarks.names))
    if wrong := [p for p in request.points or () if p not in known]:
        raise InputError(f"--points {wrong[0]}: no case has this landmark{nearest(wrong[0], known)}")
    if request.size_mm is not None and (odd := [c for c in cases if c.landmarks.ndim != len(request.size_mm)]):
        d, count = odd[0].landmarks.ndim, len(request.size_mm)
        needed = f"{d} numbers, {'X,Y,Z'[: 2 * d - 1]}; found {count}"
        raise InputError(f"--size-mm: case {odd[0].case!r} is {d}D and needs {needed}")


def _one(case: Marked, out: Path, request: Request) -> dict[str, Any]:
    marks = case.landmarks
    wanted = marks if request.points is None else marks.select(request.points)
    points = wanted.points[wanted.defined]
    skipped = [n for n, known in zip(wanted.names, wanted.defined, strict=True) if not known]
    if not len(marks):
        raise InputError(f"case {case.case!r}: its file holds no landmarks")
    if not len(points):
        raise InputError(f"case {case.case!r}: none of the {len(wanted)} landmarks to crop around is defined")
    image = case.image()
    try:
        asked = _box(image, points, request)
        inside = asked.within(image.grid)
        box = inside if request.pad is None else asked
        shape = np.subtract(box.upper, box.lower)
        if shape.prod(dtype=float) > max(MOST_VOXELS, image.array[0].size):
            size = " x ".join(map(str, shape[::-1]))
            raise ValueError(f"makes a crop of {size} voxels, larger than the image; make it smaller")
        part = cut_out(image, box, request.pad or 0.0)
    except ValueError as error:
        raise InputError(f"case {case.case!r}: {case.path}: {error}") from None
    files = _write(part, marks, out, case.case)
    grid = image.grid
    return {
        "case": case.case, "image": str(case.path), "state": "written", "files": [str(f) for f in files],
        "lower": list(box.lower), "upper": list(box.upper), "pad": request.pad,
        "cut_at_border": box != asked,
        "world_corners": box.corners(grid).tolist(),
        "original": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
        "around": [n for n in wanted.names if n not in skipped], "skipped": skipped,
    }  # fmt: skip


def _box(image: Image, points: Array, request: Request) -> Box:
    if request.size_mm is None:
        return box_around(image.grid, points, MARGIN_MM if request.margin_mm is None else request.margin_mm)
    return box_of_size(image.grid, points.mean(0), request.size_mm)


def _files(out: Path, case: str) -> list[Path]:
    """All that a case may have."""
    return [out / f"{case}{ending}" for endings in ENDINGS.values() for ending in endings]


def _write(part: Image, marks: Landmarks, out: Path, name: str) -> tuple[Path, Path]:
    files = tuple(out / f"{name}{ending}" for ending in ENDINGS[part.ndim])
    write_image(part, files[0])
    write_landmarks(marks, files[1], spacing=part.grid if part.ndim == 2 else None)
    return files[0], files[1]
