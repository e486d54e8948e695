"""``anatomark register``: transforms between images from their landmarks, as ITK files, with the resampled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anatomark.cases.find import Marked, find_landmarks, flat
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.resample import resample, sample_index
from anatomark.errors import InputError, nearest
from anatomark.io.atomic import write_bytes
from anatomark.io.images import write_image
from anatomark.io.landmarks import landmark_format, read_landmarks, split_observer
from anatomark.io.transforms import write_affine, write_displacements
from anatomark.progress import Reporter
from anatomark.tools.outputs import check_files, check_folder, remove, write_record
from anatomark.tools.register.fit import Registration, register_landmarks
from anatomark.tools.register.linear_fit import Kind, Linear
from anatomark.tools.register.thin_plate import ThinPlate, folded_share

RECORD = "registration.json"
ENDINGS = (".tfm", ".h5", ".nii.gz", ".mha", ".png")
DIRECTION = "as ITK resamples: the transform maps points of the fixed image to points of the moving image, LPS mm"
FIELD_STEPS = 64  # of the displacement field along its longest side, unless its spacing is given
CHECKED = 4096  # points at which the field is compared with its spline


@dataclass(frozen=True)
class Sources:
    """What is registered: every case of ``moving`` (see ``engine.inputs.find_landmarks``) onto ``fixed``, a landmark
    file or the name of one of these cases. ``landmarks``: those of images. ``fixed_image``, ``moving_image``: images
    of single landmark files. ``spacing``: mm along x, y of pictures that have none."""

    fixed: str
    moving: tuple[Path, ...]
    landmarks: Path | None = None
    fixed_image: Path | None = None
    moving_image: Path | None = None
    spacing: tuple[float, ...] | None = None
    split: str | None = None


@dataclass(frozen=True)
class Request:
    """How: ``kind`` of transform; tps only: ``smooth_mm`` left at the points and ``field_mm``, spacing of the written
    field; ``equal_weights`` ignores confidence, ``keep_all`` rejects nothing. Raises InputError."""

    kind: str = Kind.RIGID
    smooth_mm: float = 0.0
    field_mm: float | None = None
    equal_weights: bool = False
    keep_all: bool = False
    pictures: bool = False

    def __post_init__(self) -> None:
        if self.kind not in [*Kind]:
            raise InputError(f"--kind {self.kind}: is not {', '.join(Kind)}{nearest(self.kind, [*Kind])}")
        if self.kind != Kind.TPS and (self.smooth_mm or self.field_mm):
            raise InputError(f"--smooth-mm and --field-mm are for --kind tps; {self.kind} needs neither")
        if not (np.isfinite(self.smooth_mm) and self.smooth_mm >= 0):
            raise InputError(f"--smooth-mm {self.smooth_mm:g}: is a number of mm from 0 on")
        if self.field_mm is not None and not (np.isfinite(self.field_mm) and self.field_mm > 0):
            raise InputError(f"--field-mm {self.field_mm:g}: is a number of mm above 0")


@dataclass(frozen=True)
class Registered:
    """What :func:`register` left behind in ``out``: a row of plain data per case, ``state`` written or failed."""

    out: Path
    fixed: str
    rows: tuple[dict[str, Any], ...]

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Cases that could not be registered, and why."""
        return [(r["case"], r["reason"]) for r in self.rows if r["state"] == "failed"]

    def summary(self) -> dict[str, Any]:
        """Plain JSON, as ``registration.json`` holds it."""
        return {"schema": 1, "fixed": self.fixed, "direction": DIRECTION, "cases": list(self.rows)}

    def lines(self) -> list[str]:
        """The same as text."""
        alone = len(self.rows) == 1  # its failure is the error that the command ends with
        out = [line for row in self.rows if not (alone and self.failed) for line in _lines(row)]
        written = len(self.rows) - len(self.failed)
        return [*out, f"{written} of {len(self.rows)} registered" + (f": {self.out / RECORD}" if written else "")]


def _lines(row: dict[str, Any]) -> list[str]:
    if row["state"] == "failed":
        return [f"{row['case']}: not registered: {row['reason']}"]
    marks = row["landmarks"]
    text = f"{row['case']}: {row['kind']} from {len(marks) - len(row['rejected'])} landmarks"
    text += f", residual {row['fre_mm']['rms']:.3g} mm (root mean square)"
    if tre := row["tre_leave_one_out_mm"]:
        text += f", left-out landmarks missed by {tre['mean']:.3g} mm on average, {tre['max']:.3g} at most"
    out = [f"{text}: {row['files'][0]}"]
    for name in row["rejected"]:
        out.append(f"  rejected {name}: {marks[name]['residual_mm']:.3g} mm off, limit {marks[name]['limit_mm']:.3g}")
    return out + [f"  {note}" for note in row["notes"]]


class _Fixed:
    """The fixed case; its image is read once, when it is needed."""

    def __init__(self, marked: Marked):
        self.case, self.landmarks, self.marked = marked.case, marked.landmarks, marked

    @cached_property
    def image(self) -> Image | None:
        return None if self.marked.path is None else self.marked.image()


def register(
    sources: Sources, out: Path, request: Request, *, overwrite: bool = False, report: Reporter | None = None
) -> Registered:
    """Register every moving case onto the fixed one, from the landmarks defined in both.

    Writes into ``out``: ``<case>.tfm``, or for ``tps`` ``<case>.h5``, a displacement field (over the fixed image, else
    around its landmarks); where both images are known ``<case>.nii.gz`` (2D ``.mha``), the moving image on the fixed
    one's grid in its own dtype, its least value outside, and ``<case>.png`` with ``pictures``; ``registration.json``. A
    case that cannot be registered fails with its reason and leaves no files, and the others go on. Raises InputError
    for bad requests, and where results are there already.
    """
    report = report or Reporter()
    check_folder(out)
    fixed, cases = _found(sources)
    taken = [out / RECORD, *(f for c in cases for f in _files(out, c.case))]
    images = [c.path for c in (fixed.marked, *cases) if c.path is not None]
    check_files(taken, images, "register", overwrite)
    rows = []
    with report.bar("register", len(cases)) as bar:
        for k, case in enumerate(cases):
            try:
                rows.append(_one(case, fixed, out, request))
            except InputError as error:
                remove(_files(out, case.case))
                rows.append({"case": case.case, "state": "failed", "reason": str(error)})
            bar.update(k + 1, case.case)
    result = Registered(out, fixed.case, tuple(rows))
    write_record(out / RECORD, result.summary(), len(result.failed) < len(rows))
    return result


def _found(sources: Sources) -> tuple[_Fixed, list[Marked]]:
    cases: list[Marked] = []
    for path in sources.moving:
        cases += find_landmarks([path], landmarks=sources.landmarks, split=sources.split, spacing=sources.spacing)
    names = [c.case for c in cases]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise InputError(f"two of the cases are called {twice!r}; rename one or take them apart")
    if split_observer(sources.fixed)[0].is_file():
        name = split_observer(sources.fixed)[0].name
        stem = name[: -len(landmark_format(name))]
        fixed = Marked(stem, flat(read_landmarks(sources.fixed, spacing=sources.spacing)))
    elif sources.fixed in names:
        fixed = cases.pop(names.index(sources.fixed))
    else:
        raise InputError(
            f"FIXED {sources.fixed}: is no landmark file, and no case{nearest(sources.fixed, names)} of those given"
        )
    if not cases:
        raise InputError(f"there is no case to register onto {fixed.case!r}")
    if sources.moving_image is not None:
        if len(cases) > 1:
            raise InputError(f"--moving-image is for one moving landmark file, but there are {len(cases)} cases")
        cases = [replace(cases[0], path=_image(sources.moving_image), spacing=sources.spacing)]
    if sources.fixed_image is not None:
        fixed = replace(fixed, path=_image(sources.fixed_image), spacing=sources.spacing)
    return _Fixed(fixed), cases


def _image(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    return path


def _one(case: Marked, fixed: _Fixed, out: Path, request: Request) -> dict[str, Any]:
    found = register_landmarks(
        fixed.landmarks, case.landmarks, request.kind, smooth_mm=request.smooth_mm,
        equal_weights=request.equal_weights, keep_all=request.keep_all,
    )  # fmt: skip
    # only now: a case that fails costs no reading
    target, moving = fixed.image, case.image() if case.path is not None else None
    facts: dict[str, Any] = {"case": case.case, "state": "written", "files": [], **found.facts()}
    if isinstance(found.transform, Linear):
        file = out / f"{case.case}.tfm"
        write_affine(found.transform.matrix, file)
        facts["matrix"] = found.transform.matrix.tolist()
        facts["inverse"] = np.linalg.inv(found.transform.matrix).tolist()
    else:
        file = out / f"{case.case}.h5"
        facts["smooth_mm"] = request.smooth_mm
        facts["field"] = _write_field(found.transform, fixed, request.field_mm, file)
        if share := facts["field"]["folded_share"]:
            facts["notes"].append(f"the spline folds space over {share:.2%} of the field; smooth it, or use affine")
    files = [file]
    if target is not None and moving is not None:
        files += _write_images(found, target, moving, out / case.case, request.pictures)
    elif (target is None) != (moving is None):
        side = "fixed" if target is None else "moving"
        facts["notes"].append(f"not resampled: the {side} image is not known")
    elif request.pictures:
        facts["notes"].append("no picture: neither image is known")
    remove(f for f in _files(out, case.case) if f not in files)  # of an earlier command with other options
    return {**facts, "files": [str(f) for f in files]}


def _files(out: Path, case: str) -> list[Path]:
    """All that a case may have."""
    return [out / f"{case}{ending}" for ending in ENDINGS]


def _write_images(found: Registration, fixed: Image, moving: Image, stem: Path, pictures: bool) -> Sequence[Path]:
    moved = resampled(found.transform, moving, fixed.grid)
    files = [stem.with_name(stem.name + (".nii.gz" if fixed.ndim == 3 else ".mha"))]
    write_image(moved, files[0])
    if pictures:
        from anatomark.pictures.overlay import checkerboard

        files.append(stem.with_name(f"{stem.name}.png"))
        write_bytes(files[1], checkerboard(fixed, moved))
    return files


def resampled(transform: Linear | ThinPlate, moving: Image, grid: Grid) -> Image:
    """The ``moving`` image on the fixed image's ``grid``: at x its value at ``transform(x)``, linear between voxels
    (low-passed first where the grid is coarser), in its own dtype (rounded), its least value where it does not reach.
    """
    fill = float(moving.array.min())
    if isinstance(transform, Linear):
        # the moving voxels' places in the fixed image's world are exact, so nothing is sampled twice
        there = Grid(moving.grid.shape, np.linalg.inv(transform.matrix) @ moving.grid.affine)
        out = resample(Image(moving.array, there, moving.meta), grid, fill=fill)
    else:
        out = transform.resample(moving, grid, fill=fill)
    if moving.array.dtype.kind in "iu":
        return Image(np.rint(out.array).astype(moving.array.dtype), grid, moving.meta)
    return out


def _write_field(spline: ThinPlate, fixed: _Fixed, step_mm: float | None, path: Path) -> dict[str, Any]:
    grid = field_grid(fixed.image.grid if fixed.image is not None else None, fixed.landmarks.points, step_mm)
    field = spline.displacements(grid)
    write_displacements(field, grid, path)
    rng = np.random.default_rng(0)
    index = rng.uniform(0, 1, (CHECKED, grid.ndim)) * (np.asarray(grid.shape) - 1)
    values = torch.from_numpy(np.moveaxis(field, -1, 0).astype(np.float32))
    between = sample_index(values, torch.from_numpy(index)).numpy().T
    points = grid.to_world(index)
    error = np.linalg.norm(spline(points) - points - between, axis=1)
    return {
        "shape": list(grid.shape), "affine": grid.affine.tolist(), "spacing_mm": float(grid.spacing[0]),
        "differs_from_spline_mm": {"mean": float(error.mean()), "max": float(error.max())},
        "folded_share": folded_share(field, grid),
    }  # fmt: skip


def field_grid(image: Grid | None, points: Array, step_mm: float | None) -> Grid:
    """Where a spline is written as a field: the fixed ``image`` from border to border along its own axes, or without
    one the box of the ``points`` (N, D) with a fifth of its longest side around; isotropic, ``step_mm`` apart (default:
    1/64 of the longest side). Raises InputError for a field of more than 50 million nodes."""
    if image is not None:
        start, extent, directions = (
            image.to_world(np.full(image.ndim, -0.5)),
            image.extent_mm,
            image.axes / image.spacing,
        )
    else:
        low, high = np.nanmin(points, 0), np.nanmax(points, 0)
        margin = 0.2 * float((high - low).max())
        start, extent = low - margin, (high - low + 2 * margin)[::-1]
        directions = np.eye(len(low))[:, ::-1]
    step = step_mm or float(extent.max()) / FIELD_STEPS
    shape = np.ceil(extent / step - 1e-6).astype(int) + 1
    if shape.prod() > 50_000_000:
        raise InputError(f"--field-mm {step:g}: makes a field of {' x '.join(map(str, shape))} nodes; make it coarser")
    return Grid.from_axes(shape.tolist(), directions * step, start)
