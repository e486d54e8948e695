"""Points that are suspect by their place alone, and images that serve twice: what needs no shape model."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anatomark.cases.case import Case
from anatomark.cases.content import DETACHED, sample
from anatomark.cases.look.suspects import Suspect
from anatomark.core.grid import Array, Grid
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, listed
from anatomark.io.frames import swap_lps_ras

FEWEST = 3  # cases in which a landmark lies at zero before zero is taken for the place that defines the frame
SAMPLE = 1 << 14  # bytes at the start, middle and end by which files of one size are told apart


def placeholders(
    cases: Sequence[Case], landmarks: Sequence[Landmarks], grids: Sequence[Grid]
) -> tuple[NDArray[np.bool_], list[Suspect]]:
    """(M, N) points at which files write that there is none: all coordinates 0 or all -1, as the file counts them, or
    the centre of the image's first voxel. Not where a landmark may define the frame: it lies at zero in most of its
    cases, ``FEWEST`` or more, and alone so; that is a finding of all cases.

    ``landmarks``: of each case, all with the same names.
    """
    raw = np.stack([_as_in_file(c, one) for c, one in zip(cases, landmarks, strict=True)])
    zero = (raw == 0).all(2)
    often = zero.sum(0) > 0.5 * np.stack([one.defined for one in landmarks]).sum(0)
    origin = often & (zero.sum(0) >= FEWEST) & (zero.sum(1) == 1)[:, None]
    first = [
        np.isclose(one.points, g.origin, rtol=0, atol=1e-6).all(1) for one, g in zip(landmarks, grids, strict=True)
    ]
    asked = [
        f"{name} lies exactly at 0 in {n} cases: right if it defines the frame, else a sign for missing"
        for name, n in zip(landmarks[0].names, origin.sum(0), strict=True)
    ]
    findings = [Suspect("", (landmarks[0].names[i],), "placeholder", asked[i]) for i in np.flatnonzero(origin.any(0))]
    return np.asarray(((zero | np.stack(first)) & ~origin) | (raw == -1).all(2)), findings


def _as_in_file(case: Case, landmarks: Landmarks) -> Array:
    """Points (N, D) as the file counts them: perhaps in pixels, or in RAS."""
    if case.source is None or case.given is not None:  # given: as another manifest corrects it
        return landmarks.points
    own = case.load_landmarks()
    points = own.select(landmarks.names).points
    return (swap_lps_ras(points) if own.meta.get("frame") == "RAS" else points)[:, : landmarks.ndim]


def out_of_place(case: Case, landmarks: Landmarks, grid: Grid, empty: NDArray[np.bool_]) -> Iterator[Suspect]:
    """Findings ``placeholder`` (the points ``empty`` (N,)) and ``outside`` the image of one case, one of each."""
    if empty.any():
        names = tuple(n for n, e in zip(landmarks.names, empty, strict=True) if e)
        at = ", ".join(f"{v:g}" for v in landmarks.points[empty][0])
        verb = "lies" if len(names) == 1 else "lie"
        text = f"{listed(names)} {verb} exactly at ({at}) mm: a sign for missing? Then blank the position"
        yield Suspect(case.id, names, "placeholder", text)
    out = landmarks.defined & ~empty & ~grid.contains(np.nan_to_num(landmarks.points))
    if out.any():
        index = grid.to_index(landmarks.points[out])
        inside = grid.to_world(np.clip(index, -0.5, np.array(grid.shape) - 0.5))
        far = float(np.linalg.norm(landmarks.points[out] - inside, axis=1).max())
        names = tuple(n for n, o in zip(landmarks.names, out, strict=True) if o)
        verb = "lies" if len(names) == 1 else "lie up to"
        yield Suspect(case.id, names, "outside", f"{listed(names)} {verb} {far:.3g} mm outside the image", far)


def shared_images(cases: Sequence[Case]) -> list[Suspect]:
    """A finding ``image`` for each case whose image is that of a case of another split: the same file, or one with the
    same bytes. Raises InputError where a file cannot be read."""
    first: dict[tuple[object, ...], Case] = {}
    findings = []
    for case in cases:
        assert case.path is not None
        try:
            other = first.setdefault(_content(case.path), case)
            same = other.split != case.split and _same(other.path, case.path)
        except OSError as error:
            raise InputError(f"{case.path}: cannot be read: {error.strerror or error}") from None
        if same:
            text = f"has the same image as {other.id!r}, which is {other.split}: no independent {case.split} case"
            findings.append(Suspect(case.id, (), "image", text))
    return findings


def same_image(a: Path, b: Path) -> bool:
    """Whether two image files, or folders, hold the same bytes. Raises OSError."""
    return _content(a) == _content(b) and _same(a, b)


def _content(path: Path) -> tuple[object, ...]:
    """What files of the same content have in common; of a folder, all its files count. Headers whose data lie in
    another file are known by their place."""
    if path.is_dir():
        return tuple(sorted(sample(file, SAMPLE) for file in path.iterdir() if file.is_file()))
    return (str(path.resolve()),) if path.suffix.lower() in DETACHED else sample(path, SAMPLE)


def _same(a: Path | None, b: Path | None) -> bool:
    """Whether two files whose samples are alike have the same bytes; two folders have."""
    return a is not None and b is not None and (a.is_dir() or filecmp.cmp(a, b, shallow=False))
