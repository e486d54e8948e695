"""``anatomark simulate``: new cases from real ones as files, with a manifest that ``fit`` reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.look.simulated import NAME, RECORD
from anatomark.cases.manifest import SPLITS, Manifest, read_manifest
from anatomark.cases.store import fingerprint_of
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError, check_range, counted, nearest
from anatomark.io.atomic import Where, read_json, write_json
from anatomark.io.claim import claimed
from anatomark.io.images import write_image
from anatomark.io.landmarks import read_landmarks, split_observer, write_landmarks
from anatomark.io.sheets import read_sheet, write_csv
from anatomark.progress import Reporter
from anatomark.tools.outputs import LANDMARKS_ENDING
from anatomark.tools.simulate.motion import Simulation, simulate_case
from anatomark.tools.simulate.spread import carry_points, nearest_to_mean, spread_points

CASES, IMAGES, LANDMARKS, ORIGINALS = "cases.csv", "images", "landmarks", "originals"
COLUMNS = ("case", "image", "landmarks", "split", "spacing", "form", "source")
PICTURES = (".nii.gz", ".png", ".mha")
APART = (
    "no case is apart: fit would hold out copies of what it learns from. To hold out people, give some real cases the "
    "split val, and others test, and simulate again with `include_originals`"
)
DRAWS = 10  # of one case, before it is given up


@dataclass(frozen=True)
class Request:
    """What :func:`simulate` is asked for, as ``simulate.json`` holds it. Raises InputError for numbers out of range."""

    count: int
    points: int
    reference: str | None
    seed: int
    split: str
    originals: bool
    settings: Simulation

    def __post_init__(self) -> None:
        for name, least, most in (("count", 1, 1_000_000), ("points", 0, 100_000), ("seed", 0, 2**63 - 1)):
            check_range(name, getattr(self, name), least, most)
        if self.split not in SPLITS[:3]:
            raise InputError(
                f"split {self.split!r} is not known{nearest(self.split, SPLITS[:3])}; it is train, val or test"
            )
        if self.reference is not None and not self.points:
            raise InputError(f"reference {self.reference!r} is where points are spread; say how many points")


@dataclass(frozen=True)
class SimulateResult:
    """What :func:`simulate` wrote: the manifest, new cases in it, those that were there before, landmarks of each, how
    many draws had to be repeated, and whether the manifest has cases ``apart`` from the training cases."""

    manifest: Path
    count: int
    before: int
    landmarks: int
    redrawn: int
    apart: bool

    def summary(self) -> dict[str, Any]:
        return {**asdict(self), "manifest": str(self.manifest)}

    def lines(self) -> list[str]:
        before = f" ({self.before} of them finished before)" if self.before else ""
        new, each = counted(self.count, "new case"), counted(self.landmarks, "landmark")
        return [
            f"{new}{before} with {each} each: {self.manifest}",
            *([] if self.apart else [APART]),
            f"next: anatomark fit {quote(str(self.manifest))} `out` RUN",
        ]


def simulate(
    manifest: Where,
    out: Where,
    count: int,
    *,
    points: int = 0,
    reference: str | None = None,
    seed: int = 0,
    split: str = "train",
    originals: bool = False,
    report: Reporter | None = None,
    **settings: Any,
) -> SimulateResult:
    """Make ``count`` new cases from a manifest's real ones, with a manifest of them, ``out/cases.csv``.

    They are made from the cases of ``split`` in turn: new case i depends on ``seed`` and i, its source case and the
    ``settings`` (those of :class:`~anatomark.tools.simulate.motion.Simulation`: ``amplitude_mm``, ``wavelength_mm``,
    ``rotation_deg``, ``scale``, ``shift``, ``intensity``), on nothing else. ``points``: how many landmarks more, spread
    over the foreground of the case ``reference`` (None: the one whose shape is nearest the mean) and carried to the
    others. ``originals``: list the real cases of every split in the manifest too.

    Images go to ``images`` (3D .nii.gz; 2D .png, or .mha where that cannot hold them), landmarks to ``landmarks``
    (.mrk.json; 2D .csv), added points of the real cases to ``originals``. ``cases.csv`` is written last; until then the
    same request on the same files goes on where it was stopped. Raises InputError for numbers out of range, where
    ``out`` holds anything else, no case has landmarks, or the dimensions are mixed.
    """
    request = Request(count, points, reference, seed, split, originals, Simulation(**settings))
    out, report = Path(out), report or Reporter()
    with claimed(out):
        cases = read_manifest(manifest)
        for note in cases.notes:
            report.say(f"note: {note}")
        return _simulated(cases, out, request, report)


def _simulated(cases: Manifest, out: Path, request: Request, report: Reporter) -> SimulateResult:
    sources = cases.split(request.split)
    listed = [c for c in cases.cases if c.split] if request.originals else list(sources)
    landmarks = {c.id: c.landmarks for c in listed}
    turns = [sources[i % len(sources)] for i in range(request.count)]
    new = [(NAME.format(source=source.id, number=i + 1), source) for i, source in enumerate(turns)]
    _check(cases, landmarks, [name for name, _ in new])
    _claim(out, listed, request)
    if request.points:
        landmarks = _with_points(out, listed, landmarks, request, report)
    rows, before, redrawn = [], 0, 0
    with report.bar("simulate", request.count) as bar:
        for i, (name, source) in enumerate(new):
            row, drawn = _new_case(out, name, source, landmarks[source.id], (request, i), report)
            before, redrawn = before + (drawn == 0), redrawn + max(0, drawn - 1)
            rows.append(row)
            bar.update(i + 1, name)
    if request.originals:
        rows = [_original_row(out, c, landmarks[c.id].ndim, bool(request.points)) for c in listed] + rows
    blank = [c for c in ("spacing", "form") if not any(row[c] for row in rows)]
    _write_manifest(out / CASES, rows, [c for c in COLUMNS if c not in blank])
    apart = any(row["split"] in ("val", "test") for row in rows)
    return SimulateResult(out / CASES, request.count, before, len(landmarks[sources[0].id]), redrawn, apart)


def _write_manifest(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str]) -> None:
    """Write the rows; a table that is there must hold them already. Raises InputError where it does not."""
    if path.exists():
        there = [{c: row.get(c, "") for c in columns} for _, row in read_sheet(path).rows]
        if there != [{c: row[c] for c in columns} for row in rows]:
            raise InputError(f"{path}: was changed since it was written; remove it, or choose another `out`")
        return
    write_csv(path, rows, columns)


def _check(cases: Manifest, landmarks: dict[str, Landmarks], new: Sequence[str]) -> None:
    kinds = {one.ndim for one in landmarks.values()}
    if len(kinds) > 1:
        raise InputError(f"{cases.path}: holds 2D and 3D cases; simulate takes one kind at a time")
    if not any(one.defined.any() for one in landmarks.values()):
        raise InputError(f"{cases.path}: no case has a defined landmark; there is nothing to carry")
    if taken := sorted(set(new) & set(landmarks)):
        raise InputError(f"{cases.path}: case {taken[0]!r} has the name of a new case; rename it")


def _claim(out: Path, cases: Sequence[Case], request: Request) -> None:
    """Take ``out``: empty, or holding what the same request began. Raises InputError for anything else."""
    files = [c.path for c in cases if c.path] + [split_observer(c.source or "")[0] for c in cases]
    forms = [f"{c.id}: {c.form}" for c in cases if c.form]
    record = {"schema": 1, **asdict(request), "sources": [*map(fingerprint_of, dict.fromkeys(files)), *forms]}
    there = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if there and RECORD not in there:
        raise InputError(f"{out}: is not empty and holds no simulated cases; choose another `out`")
    if there:
        if read_json(out / RECORD) != record:
            raise InputError(f"{out}: holds cases of another simulate command, or of other files; choose another `out`")
        return
    write_json(out / RECORD, record)


def _with_points(
    out: Path, cases: Sequence[Case], landmarks: dict[str, Landmarks], request: Request, report: Reporter
) -> dict[str, Landmarks]:
    """The landmarks with added points, also as files in ``originals``; a case that has its file is read from it."""
    files = {c.id: out / ORIGINALS / f"{c.id}{LANDMARKS_ENDING[landmarks[c.id].ndim]}" for c in cases}
    names = tuple(f"p{i + 1:04d}" for i in range(request.points))
    taken = sorted({n for one in landmarks.values() for n in one.names} & set(names))
    if taken:
        raise InputError(f"landmark {taken[0]!r} is there already, so no points of such names can be added")
    if request.reference is not None and request.reference not in landmarks:
        raise InputError(
            f"reference {request.reference!r} is no case to simulate from{nearest(request.reference, [*landmarks])}"
        )
    chosen = request.reference or nearest_to_mean(landmarks)
    reference = next(c for c in cases if c.id == chosen)
    if all(f.exists() for f in files.values()):
        return {c: read_landmarks(f) for c, f in files.items()}
    image = reference.image()
    points = spread_points(image, request.points, np.random.default_rng([request.seed, 1]))
    report.say(f"{request.points} points spread over {chosen}; carrying them to {len(cases) - 1} other cases")
    with report.bar("carry points", len(cases)) as bar:
        for k, case in enumerate(cases):
            if not files[case.id].exists():
                there = points
                other = case.image()
                if case.id != chosen:
                    there = carry_points(points, (image, landmarks[chosen]), (other, landmarks[case.id]))
                write_landmarks(_extended(landmarks[case.id], names, there), files[case.id], spacing=other.grid)
            bar.update(k + 1, case.id)
    return {c: read_landmarks(f) for c, f in files.items()}


def _extended(landmarks: Landmarks, names: Sequence[str], points: Array) -> Landmarks:
    """``landmarks`` and more points (K, D); one without a position is absent."""
    new = [Status.DEFINED if np.isfinite(p).all() else Status.ABSENT for p in points]
    both, texts = np.vstack([landmarks.points, points]), (*landmarks.descriptions, *[""] * len(new))
    return Landmarks((*landmarks.names, *names), both, (*landmarks.status, *new), descriptions=texts)


def _new_case(
    out: Path, name: str, source: Case, landmarks: Landmarks, draw: tuple[Request, int], report: Reporter
) -> tuple[dict[str, str], int]:
    """Make one case where its files are not there yet: its row, and how often it was drawn."""
    target = out / LANDMARKS / f"{name}{LANDMARKS_ENDING[landmarks.ndim]}"
    drawn = 0
    if not target.exists():  # written after the image
        image = source.image()
        new, new_landmarks, drawn = _drawn(image, landmarks, draw, name, report)
        write_image(new, out / IMAGES / f"{name}{_picture(new)}")
        write_landmarks(new_landmarks, target, spacing=new.grid)
    found = next(f for e in PICTURES if (f := out / IMAGES / f"{name}{e}").exists())
    return _row(name, f"{IMAGES}/{found.name}", f"{LANDMARKS}/{target.name}", source), drawn


def _drawn(
    image: Image, landmarks: Landmarks, draw: tuple[Request, int], name: str, report: Reporter
) -> tuple[Image, Landmarks, int]:
    request, i = draw
    for k in range(DRAWS):
        try:
            rng = np.random.default_rng([request.seed, 0, i, k])
            return *simulate_case(image, landmarks, rng, request.settings), k + 1
        except RuntimeError as error:
            report.say(f"{name}: drawn again: {error}")
    raise InputError(f"{name}: no draw of {DRAWS} carries the landmarks; ask for smaller changes")


def _row(name: str, image: str, landmarks: str, source: Case, form: str | None = None) -> dict[str, str]:
    spacing = ";".join(map(repr, source.spacing)) if source.spacing else ""
    cells = (name, image, landmarks, source.split, spacing, form or "", source.id)
    return dict(zip(COLUMNS, cells, strict=True))


def _original_row(out: Path, case: Case, ndim: int, extended: bool) -> dict[str, str]:
    """A real case: its image stays where it is."""
    file, observer = split_observer(case.source or "")
    landmarks = f"{_relative(file, out)}#{observer}" if observer else _relative(file, out)
    own = f"{ORIGINALS}/{case.id}{LANDMARKS_ENDING[ndim]}"
    return _row(case.id, _relative(Path(str(case.path)), out), own if extended else landmarks, case, case.form)


def _relative(path: Path, out: Path) -> str:
    try:
        return Path(os.path.relpath(path, out)).as_posix()
    except ValueError:  # another drive
        return str(path)


def _picture(image: Image) -> str:
    """The ending of an image file that loses nothing: PNG where the manifest's spacing says all about the grid."""
    if image.ndim == 3:
        return ".nii.gz"
    plain = not np.any(image.grid.origin) and not np.any(np.diag(image.grid.axes))
    return ".png" if plain and image.array.dtype in (np.uint8, np.uint16) and len(image.array) in (1, 3) else ".mha"
