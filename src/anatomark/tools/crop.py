"""``anatomark crop``: regions of interest around landmarks, cut out voxel by voxel, with what puts results back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.find import find_cases, sources_of
from anatomark.core.box import Box, box_around, box_of_size, cut_out
from anatomark.core.grid import Array, Grid
from anatomark.errors import InputError, check_range, nearest
from anatomark.io.atomic import Where
from anatomark.io.claim import claimed
from anatomark.io.images import write_image
from anatomark.io.landmarks import write_landmarks
from anatomark.progress import Reporter
from anatomark.tools.outputs import (
    IMAGE_ENDING,
    LANDMARKS_ENDING,
    CaseResults,
    Row,
    check_files,
    each_case,
)

MARGIN_MM, MOST_MM = 10.0, 100_000
MOST_VOXELS = 100_000_000  # of a crop that is larger than its image


@dataclass(frozen=True)
class Region:
    """What is cut out, as :func:`crop` has it. Raises InputError for numbers that make no box."""

    points: tuple[str, ...] | None = None
    margin_mm: float | None = None
    size_mm: tuple[float, ...] | None = None
    pad: float | None = None

    def __post_init__(self) -> None:
        if self.margin_mm is not None and self.size_mm is not None:
            raise InputError("`margin_mm` and `size_mm` both say how large the box is; give one of them")
        if self.pad is not None:
            check_range("pad", self.pad, -1e9, 1e9)
        if self.margin_mm is not None and not 0 <= self.margin_mm <= MOST_MM:
            raise InputError(f"`margin_mm` {self.margin_mm:g}: is a number of mm from 0 on, at most {MOST_MM}")
        if self.size_mm is not None and not all(0 < s <= MOST_MM for s in self.size_mm):
            text = ",".join(f"{s:g}" for s in self.size_mm)
            raise InputError(f"`size_mm` {text}: needs numbers above 0, at most {MOST_MM}")

    def check(self, cases: Sequence[Case]) -> None:
        """Raises InputError where no case has one of the points, or the size has not a case's dimension."""
        names = list(dict.fromkeys(n for c in cases for n in c.landmarks.names))
        if wrong := [p for p in self.points or () if p not in names]:
            raise InputError(f"`points` {wrong[0]}: no case has this landmark{nearest(wrong[0], names)}")
        if self.size_mm is not None and (odd := [c for c in cases if c.landmarks.ndim != len(self.size_mm)]):
            d, count = odd[0].landmarks.ndim, len(self.size_mm)
            needed = f"{d} numbers, {'X,Y,Z'[: 2 * d - 1]}; found {count}"
            raise InputError(f"`size_mm`: case {odd[0].id!r} is {d}D and needs {needed}")

    def box(self, grid: Grid, points: Array) -> Box:
        """The box for points (N, D), world mm, in an image's grid; it may reach beyond."""
        if self.size_mm is None:
            return box_around(grid, points, MARGIN_MM if self.margin_mm is None else self.margin_mm)
        return box_of_size(grid, points.mean(0), self.size_mm)


@dataclass(frozen=True)
class CropResult(CaseResults):
    """What :func:`crop` wrote; the rows are those of ``crops.json``."""

    record, done, undone = "crops.json", "cropped", "not cropped"

    def summary(self) -> Row:
        return {"out": str(self.out), "cases": list(self.rows)}

    def document(self) -> Row:
        return {"schema": 1, "frame": "LPS mm (2D: image mm)", "cases": list(self.rows)}

    def case_lines(self, row: Row) -> list[str]:
        size = " x ".join(str(u - v) for v, u in zip(row["lower"][::-1], row["upper"][::-1], strict=True))
        of = " x ".join(map(str, row["original"]["shape"][::-1]))
        skipped = f"; without {', '.join(row['skipped'])}" if row["skipped"] else ""
        return [f"{row['case']}: {size} of {of} voxels: {row['files'][0]}{skipped}"]


def crop(
    paths: Sequence[Where],
    out: Where,
    *,
    points: Sequence[str] | None = None,
    margin_mm: float | None = None,
    size_mm: Sequence[float] | None = None,
    pad: float | None = None,
    landmarks: Where | None = None,
    split: str | None = None,
    spacing: tuple[float, ...] | None = None,
    form: str | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> CropResult:
    """Cut a region of interest around landmarks out of images, into the folder ``out``.

    ``paths``, ``landmarks``, ``split``, ``spacing``, ``form``: which images and landmarks, as for ``planes``. The
    region is the box of the landmarks ``points`` (None: all) with ``margin_mm`` (None: 10) on every side, or one of
    ``size_mm`` (x, y[, z]) around their centroid; it is cut at the image's border, or continued with the value ``pad``.

    ``<case>.nii.gz`` (2D: ``.mha``): the image's own voxels, dtype, spacing and direction kept, each at the world
    position that it had; ``<case>.mrk.json`` (2D: ``.csv``): all its landmarks, world mm unchanged; ``crops.json``: the
    box in the original's indices, world corners, the original's grid. ``paste`` of :mod:`anatomark.core.box` puts a
    segmentation back. A case without any of the chosen landmarks fails with its reason, and the others go on. Raises
    InputError for bad requests, and where results are there already (without ``overwrite``).
    """
    size = None if size_mm is None else tuple(size_mm)
    region = Region(None if points is None else tuple(points), margin_mm, size, pad)
    out, given, source = Path(out), [Path(p) for p in paths], Path(landmarks) if landmarks else None
    with claimed(out) as claim:
        cases = find_cases(given, source, spacing=spacing, form=form, split=split)
        region.check(cases)
        files = partial(_files, out)
        taken = [out / CropResult.record, *(f for c in cases for f in files(c.id))]
        read = [*(p for p in given if p.is_file()), *([] if source is None else [source])]
        check_files(taken, sources_of(cases, read), "crop", claim, overwrite)
        rows = each_case("crop", cases, lambda case: _cut(case, out, region), files, report or Reporter())
        result = CropResult(out, rows)
        result.write_record(len(result.failed) < len(rows))
    return result


def _files(out: Path, case: str) -> list[Path]:
    return [out / f"{case}{endings[d]}" for d in (2, 3) for endings in (IMAGE_ENDING, LANDMARKS_ENDING)]


def _cut(case: Case, out: Path, region: Region) -> Row:
    landmarks = case.landmarks
    wanted = landmarks if region.points is None else landmarks.select(region.points)
    points = wanted.points[wanted.defined]
    skipped = [n for n, defined in zip(wanted.names, wanted.defined, strict=True) if not defined]
    if not len(landmarks):
        raise InputError(f"case {case.id!r}: its file holds no landmarks")
    if not len(points):
        raise InputError(f"case {case.id!r}: none of the {len(wanted)} landmarks to crop around is defined")
    image = case.image()
    try:
        asked = region.box(image.grid, points)
        inside = asked.within(image.grid)
        box = inside if region.pad is None else asked
        shape = np.subtract(box.upper, box.lower)
        if shape.prod(dtype=float) > max(MOST_VOXELS, image.array[0].size):
            size = " x ".join(map(str, shape[::-1]))
            raise ValueError(f"makes a crop of {size} voxels, larger than the image; make it smaller")
        part = cut_out(image, box, region.pad or 0.0)
    except ValueError as error:
        raise InputError("; note: ".join([f"case {case.id!r}: {case.path}: {error}", *image.notes])) from None
    files = [out / f"{case.id}{endings[part.ndim]}" for endings in (IMAGE_ENDING, LANDMARKS_ENDING)]
    write_image(part, files[0])
    write_landmarks(landmarks, files[1], spacing=part.grid)
    return {
        "files": [str(f) for f in files],
        "lower": list(box.lower), "upper": list(box.upper), "pad": region.pad,
        "cut_at_border": box != asked,
        "world_corners": box.corners(image.grid).tolist(),
        "original": {"shape": list(image.grid.shape), "affine": image.grid.affine.tolist()},
        "around": [n for n in wanted.names if n not in skipped], "skipped": skipped,
        "notes": list(image.notes),
    }  # fmt: skip
