"""``anatomark register``: transforms between images from their landmarks, as ITK files, with the resampled images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from anatomark.cases.case import Case, in_plane
from anatomark.cases.find import find_landmarks, sources_of
from anatomark.cases.manifest import read_manifest
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image, rounded
from anatomark.core.resample import resample, sample_index
from anatomark.errors import InputError, check_range, nearest
from anatomark.io.atomic import Where, write_bytes
from anatomark.io.claim import claimed
from anatomark.io.images import write_image
from anatomark.io.landmarks import landmark_format, load_landmarks, split_observer
from anatomark.io.transforms import write_affine, write_displacements
from anatomark.progress import Reporter
from anatomark.tools.outputs import IMAGE_ENDING, CaseResults, Row, check_files, each_case, remove
from anatomark.tools.register.fit import register_landmarks
from anatomark.tools.register.kind import Kind
from anatomark.tools.register.linear_fit import Linear
from anatomark.tools.register.thin_plate import ThinPlate, folded_share

MOST_MM = 1e6
ENDINGS = (".tfm", ".h5", ".nii.gz", ".mha", ".png")
DIRECTION = "as ITK resamples: the transform maps points of the fixed image to points of the moving image, LPS mm"
FIELD_STEPS = 64  # of the displacement field along its longest side, unless its spacing is given
CHECKED = 4096  # points at which the field is compared with its spline


@dataclass(frozen=True)
class Options:
    """How to register, as :func:`register` has it. Raises InputError for what cannot be."""

    kind: str
    smooth_mm: float
    field_mm: float | None
    equal_weights: bool
    keep_all: bool
    pictures: bool

    def __post_init__(self) -> None:
        if self.kind not in [*Kind]:
            raise InputError(f"`kind` {self.kind}: is not {', '.join(Kind)}{nearest(self.kind, [*Kind])}")
        if self.kind != Kind.TPS and (self.smooth_mm or self.field_mm):
            raise InputError(f"`smooth_mm` and `field_mm` are for `kind` tps; {self.kind} needs neither")
        check_range("smooth_mm", self.smooth_mm, 0, MOST_MM)
        if self.field_mm is not None:
            check_range("field_mm", self.field_mm, 1e-6, MOST_MM)


@dataclass(frozen=True)
class RegisterResult(CaseResults):
    """What :func:`register` wrote; the rows are those of ``registration.json``."""

    fixed: str
    record, done, undone = "registration.json", "registered", "not registered"

    def summary(self) -> Row:
        cases = [{k: v for k, v in row.items() if k != "image"} for row in self.rows]
        return {"schema": 1, "fixed": self.fixed, "direction": DIRECTION, "cases": cases}

    def case_lines(self, row: Row) -> list[str]:
        """What became of one case, in words."""
        each = row["landmarks"]
        text = f"{row['case']}: {row['kind']} from {len(each) - len(row['rejected'])} landmarks"
        text += f", residual {row['fre_mm']['rms']:.3g} mm (root mean square)"
        if tre := row["tre_leave_one_out_mm"]:
            text += f", left-out landmarks missed by {tre['mean']:.3g} mm on average, {tre['max']:.3g} at most"
        off = ((name, each[name]["residual_mm"], each[name]["limit_mm"]) for name in row["rejected"])
        rejected = (f"  rejected {name}: {mm:.3g} mm off, limit {limit:.3g}" for name, mm, limit in off)
        return [f"{text}: {row['files'][0]}", *rejected]


class _Fixed:
    """The fixed case; its image is read once, when it is needed."""

    def __init__(self, case: Case):
        self.case, self.landmarks = case, case.landmarks

    @cached_property
    def image(self) -> Image | None:
        return None if self.case.path is None else self.case.image()


def register(
    fixed: Where,
    moving: Sequence[Where],
    out: Where,
    kind: str = Kind.RIGID,
    *,
    smooth_mm: float = 0.0,
    field_mm: float | None = None,
    equal_weights: bool = False,
    keep_all: bool = False,
    pictures: bool = False,
    fixed_image: Where | None = None,
    moving_image: Where | None = None,
    landmarks: Where | None = None,
    split: str | None = None,
    spacing: tuple[float, ...] | None = None,
    form: str | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> RegisterResult:
    """Register images by their landmarks: every ``moving`` case onto the ``fixed`` one, into the folder ``out``.

    ``moving``: landmark files, folders of them, manifests, or images with ``landmarks``, ``split`` and ``spacing`` as
    for ``planes``; ``fixed``: a landmark file, or the name of one of these cases. ``fixed_image``, ``moving_image``:
    the images of single landmark files. ``kind``: rigid, similarity, affine or tps (thin-plate spline); tps leaves
    ``smooth_mm`` (root mean square) at the points, and ``field_mm`` is the spacing of its written field.
    ``equal_weights`` ignores the landmarks' confidence, ``keep_all`` rejects no outlier: see
    :func:`~anatomark.tools.register.fit.register_landmarks`.

    Writes ``<case>.tfm``, or for ``tps`` ``<case>.h5``, a displacement field (over the fixed image, else around its
    landmarks); where both images are known ``<case>.nii.gz`` (2D ``.mha``), the moving image on the fixed one's grid in
    its own dtype, its least value outside, and ``<case>.png`` with ``pictures``; ``registration.json``. A case that
    cannot be registered fails with its reason and leaves no files, and the others go on. Raises InputError for bad
    requests, and where results are there already (without ``overwrite``).
    """
    options = Options(kind, smooth_mm, field_mm, equal_weights, keep_all, pictures)
    out, paths, source = Path(out), [Path(p) for p in moving], Path(landmarks) if landmarks else None
    with claimed(out) as claim:
        told = Case("", None if fixed_image is None else _there(Path(fixed_image)), spacing=spacing, form=form)
        cases = find_landmarks(paths, landmarks=source, split=split, spacing=spacing, form=form, image=moving_image)
        one = _taken_out(os.fspath(fixed), cases, told, paths, split)
        if not cases:
            raise InputError(f"there is no case to register onto {one.id!r}")
        if moving_image is not None:
            if len(cases) > 1:
                raise InputError(f"`moving_image` is for one moving landmark file, but there are {len(cases)} cases")
            cases = [replace(cases[0], path=_there(Path(moving_image)), spacing=spacing, form=form)]
        target = _Fixed(one if told.path is None else replace(one, path=told.path, spacing=spacing, form=form))
        files = partial(_files, out)
        taken = [out / RegisterResult.record, *(f for c in cases for f in files(c.id))]
        read = sources_of([target.case, *cases], [*paths, *([] if source is None else [source])])
        check_files(taken, read, "register", claim, overwrite)
        work = partial(_register, fixed=target, out=out, options=options)
        result = RegisterResult(out, each_case("register", cases, work, files, report or Reporter()), one.id)
        result.write_record(len(result.failed) < len(result.rows))
    return result


def _taken_out(fixed: str, cases: list[Case], told: Case, paths: Sequence[Path], split: str | None) -> Case:
    """The fixed case: a landmark file, with what was ``told`` of its image, or one of the ``cases``, of a ``split`` of
    ``paths``, which then lose it."""
    file = split_observer(fixed)[0]
    if file.is_file():
        stem = file.name[: -len(landmark_format(file.name))]
        return replace(told, id=stem, given=in_plane(told.in_mm(load_landmarks(fixed), fixed)))
    names = [c.id for c in cases]
    if fixed not in names:
        manifests = [read_manifest(p, need_landmarks=False) for p in paths if split and p.suffix.lower() == ".csv"]
        if other := next((c for m in manifests for c in m.cases if c.id == fixed), None):
            where = f"of split {other.split}" if other.split else "of no split"
            raise InputError(f"FIXED {fixed}: is {where}, not of `split` {split}; leave `split` out, or give its file")
        raise InputError(f"FIXED {fixed}: is no landmark file, and no case{nearest(fixed, names)} of those given")
    return cases.pop(names.index(fixed))


def _there(image: Path) -> Path:
    if not image.exists():
        raise InputError(f"{image}: no such file")
    return image


def _register(case: Case, fixed: _Fixed, out: Path, options: Options) -> Row:
    registration = register_landmarks(
        fixed.landmarks, case.landmarks, options.kind, smooth_mm=options.smooth_mm,
        equal_weights=options.equal_weights, keep_all=options.keep_all,
    )  # fmt: skip
    # only now: a case that fails costs no reading
    target, moving = fixed.image, case.image() if case.path is not None else None
    facts: Row = {"files": [], **registration.facts()}
    for side, image in (("fixed", target), ("moving", moving)):
        facts["notes"] += [f"the {side} image: {note}" for note in (image.notes if image is not None else ())]
    if isinstance(registration.transform, Linear):
        file = out / f"{case.id}.tfm"
        write_affine(registration.transform.matrix, file)
        facts["matrix"] = registration.transform.matrix.tolist()
        facts["inverse"] = np.linalg.inv(registration.transform.matrix).tolist()
    else:
        file = out / f"{case.id}.h5"
        facts["smooth_mm"] = options.smooth_mm
        facts["field"] = _write_field(registration.transform, fixed, options.field_mm, file)
        if share := facts["field"]["folded_share"]:
            facts["notes"].append(f"the spline folds space over {share:.2%} of the field; smooth it, or use affine")
    files = [file]
    if target is not None and moving is not None:
        files += _write_images(registration.transform, target, moving, out / case.id, options.pictures)
    elif (target is None) != (moving is None):
        side = "fixed" if target is None else "moving"
        facts["notes"].append(f"not resampled: the {side} image is not known")
    elif options.pictures:
        facts["notes"].append("no picture: neither image is known")
    remove(f for f in _files(out, case.id) if f not in files)  # of an earlier command with other options
    return {**facts, "files": [str(f) for f in files]}


def _files(out: Path, case: str) -> list[Path]:
    return [out / f"{case}{ending}" for ending in ENDINGS]


def _write_images(
    transform: Linear | ThinPlate, fixed: Image, moving: Image, stem: Path, pictures: bool
) -> Sequence[Path]:
    moved = resampled(transform, moving, fixed.grid)
    files = [stem.with_name(f"{stem.name}{IMAGE_ENDING[fixed.ndim]}")]
    write_image(moved, files[0])
    if pictures:
        from anatomark.pictures.overlay import checkerboard

        files.append(stem.with_name(f"{stem.name}.png"))
        write_bytes(files[1], checkerboard(fixed, moved, case=stem.name))
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
    dtype = moving.array.dtype
    return Image(rounded(out.array, dtype), grid, moving.meta) if dtype.kind in "iu" else out


def _write_field(spline: ThinPlate, fixed: _Fixed, step_mm: float | None, path: Path) -> Row:
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
        start, extent = image.to_world(np.full(image.ndim, -0.5)), image.extent_mm
        directions = image.axes / image.spacing
    else:
        low, high = np.nanmin(points, 0), np.nanmax(points, 0)
        margin = 0.2 * float((high - low).max())
        start, extent = low - margin, (high - low + 2 * margin)[::-1]
        directions = np.eye(len(low))[:, ::-1]
    step = step_mm or float(extent.max()) / FIELD_STEPS
    shape = np.ceil(extent / step - 1e-6).astype(int) + 1
    if shape.prod() > 50_000_000:
        raise InputError(f"`field_mm` {step:g}: makes a field of {' x '.join(map(str, shape))} nodes; make it coarser")
    return Grid.from_axes(shape.tolist(), directions * step, start)
