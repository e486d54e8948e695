"""What a manifest's training cases look like: images, spacings, poses, landmark spread, suspect annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.division import spread
from anatomark.cases.look.suspects import Suspect, disagreements, suspects
from anatomark.cases.manifest import SPLITS, Manifest
from anatomark.core.grid import Array, Grid
from anatomark.core.intensity import guess_modality
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import mean_shape, rotation_angle
from anatomark.errors import InputError
from anatomark.io.landmarks import landmark_format, split_observer

MODALITY_CASES = 3  # images that are read in full; of all others only the header
OBLIQUE_DEG = 5.0


@dataclass(frozen=True)
class Fingerprint:
    """The training cases in numbers. ``facts`` is plain JSON (see :func:`fingerprint`), ``names`` the landmarks in the
    first training case's order, ``suspects`` what :mod:`anatomark.cases.look.suspects` found, ``note`` why it could not
    judge."""

    names: tuple[str, ...]
    facts: dict[str, Any]
    suspects: list[Suspect]
    note: str

    def to_json(self) -> dict[str, Any]:
        found = [s.to_json() for s in self.suspects]
        return {**self.facts, "names": list(self.names), "suspects": found, "suspects_note": self.note}


def fingerprint(manifest: Manifest) -> Fingerprint:
    """Looks at the training cases of ``manifest``; other splits are only counted. Of the images three are read, of the
    rest the headers.

    Facts: ``cases`` per split, ``dimension``, ``image_formats``, ``landmark_formats``, ``modality``, ``images``
    (``spacing_mm``, ``extent_mm``, ``size`` as min, median, max along x, y[, z]; ``orientations``; ``megabytes`` as
    float32), ``poses`` (degrees of each case to the mean shape, scale), ``landmarks`` (a row each), ``observers``.
    Raises InputError for files that cannot be read or do not fit together.
    """
    cases = manifest.split("train")
    landmarks = [case.landmarks for case in cases]
    ndim = landmarks[0].ndim
    for case, one in zip(cases, landmarks, strict=True):
        if one.ndim != ndim:
            raise InputError(f"case {case.id!r}, row {case.row}: {one.ndim}D landmarks; the first case's are {ndim}D")
    names = landmarks[0].names
    grids = [case.grid(ndim) for case in cases]
    ids = [case.id for case in cases]
    shapes = np.stack([one.select(names).points for one in landmarks])
    verdict = suspects(ids, [one.select(names) for one in landmarks], grids)
    clean = _without(shapes, ids, names, verdict.suspects)
    observed = [list(case.observers(names).values()) for case in cases]
    apart, disagreed = disagreements(observed)
    facts = {
        "cases": {split or "unused": sum(c.split == split for c in manifest.cases) for split in SPLITS},
        "dimension": ndim,
        "image_formats": dict(Counter(_suffix(case.path) for case in cases)),
        "landmark_formats": dict(Counter(landmark_format(split_observer(c.source or "")[0]) for c in cases)),
        "modality": guess_modality([cases[i].image() for i in spread(len(cases), MODALITY_CASES)]),
        "images": _image_facts(grids),
        "poses": _pose_facts(ids, clean),
        "landmarks": _landmark_rows(names, landmarks, shapes, clean, grids, verdict.residual_mm),
        "extra_names": sorted({n for one in landmarks for n in one.names} - set(names)),
        "observers": {
            "cases": sum(len(o) > 1 for o in observed),
            "named": sum(two_observers(case) for case in cases),
            "mean_distance_mm": apart,
        },
    }
    return Fingerprint(names, facts, verdict.suspects + disagreed, verdict.note)


def two_observers(case: Case) -> bool:
    """Whether a case's row names one of several observers who marked it. Raises InputError."""
    marked = case.observers() if case.observer else {}
    return case.observer in marked and len(marked) > 1


def orientation(grid: Grid) -> str:
    """Where the axes of a 3D file point, fastest axis first (``LPS``: to the left, the back and the head), with
    ``oblique`` where they lean by more than 5 degrees; in 2D ``x right, y down`` or what differs from it."""
    cosines = (grid.axes / grid.spacing)[:, ::-1]  # fastest first, as files count
    main = np.abs(cosines).argmax(0)
    signs = cosines[main, np.arange(grid.ndim)] > 0
    letters = ("RL", "AP", "IS") if grid.ndim == 3 else (("left", "right"), ("up", "down"))
    code = [letters[a][int(s)] for a, s in zip(main, signs, strict=True)]
    text = "".join(code) if grid.ndim == 3 else ", ".join(code)
    lean = np.degrees(np.arccos(np.clip(np.abs(cosines).max(0), 0, 1))).max()
    return f"{text} oblique" if lean > OBLIQUE_DEG else text


def _suffix(path: Path | None) -> str:
    assert path is not None
    if path.is_dir():
        return "DICOM folder"
    ends = path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]
    return "".join(ends).lower() or "no suffix"


def _range(values: Iterable[Any]) -> dict[str, Any]:
    """Minimum, median and maximum along the first axis, rounded to 4 decimals."""
    array = np.asarray(list(values), dtype=np.float64)
    low, middle, high = np.round([array.min(0), np.median(array, 0), array.max(0)], 4).tolist()
    return {"min": low, "median": middle, "max": high}


def _image_facts(grids: Sequence[Grid]) -> dict[str, Any]:
    upright = [grid.canonical() for grid in grids]
    return {
        "spacing_mm": _range(g.spacing[::-1] for g in upright),
        "extent_mm": _range(g.extent_mm[::-1] for g in upright),
        "size": _range(g.shape[::-1] for g in upright),
        "orientations": dict(Counter(orientation(g) for g in grids)),
        "anisotropy": round(float(max(g.spacing.max() / g.spacing.min() for g in grids)), 3),
        "megabytes": round(sum(float(np.prod(g.shape)) for g in grids) * 4 / 2**20, 1),
    }


def _pose_facts(ids: Sequence[str], shapes: Array) -> dict[str, Any]:
    mean, poses = mean_shape(shapes)
    turned = [rotation_angle(pose.rotation) for pose in poses]
    scales = np.array([pose.scale for pose in poses])
    return {
        "rotation_deg": {"median": round(float(np.median(turned)), 2), "max": round(float(np.max(turned)), 2)},
        "most_turned": ids[int(np.argmax(turned))],
        "scale_sd": round(float(scales.std(ddof=1) / scales.mean()), 4) if len(ids) > 1 else 0.0,
        "radius_mm": round(float(np.nanmax(np.linalg.norm(mean, axis=1))), 3),
    }


def _without(shapes: Array, ids: Sequence[str], names: Sequence[str], found: Iterable[Suspect]) -> Array:
    """The shapes without single points that are suspect: one slip of the hand must not turn the mean."""
    clean = shapes.copy()
    for one in found:
        if one.kind == "point":
            clean[ids.index(one.case), names.index(one.labels[0])] = np.nan
    return clean


def _landmark_rows(
    names: Sequence[str],
    landmarks: Sequence[Landmarks],
    shapes: Array,
    clean: Array,
    grids: Sequence[Grid],
    residual: Array,
) -> list[dict[str, Any]]:
    """Per landmark: how often defined, absent, unannotated and outside its image, and mm of spread: ``world_mm`` to the
    mean position in world, ``aligned_mm`` to the mean shape after a similarity, ``predicted_mm`` to where the other
    points put it. Means over cases, the first two over the points of ``clean`` only; None where unknown."""
    mean, poses = mean_shape(clean)
    states = [one.select(names).status for one in landmarks]
    outside = np.stack([~g.contains(np.nan_to_num(s)) for g, s in zip(grids, shapes, strict=True)])
    known = np.asarray(np.isfinite(shapes).all(2))
    sound = np.isfinite(clean)
    centre = np.where(sound, clean, 0).sum(0) / np.maximum(sound.sum(0), 1)
    world = np.linalg.norm(clean - centre, axis=2)
    aligned = np.stack([np.linalg.norm(p.apply(mean) - s, axis=1) for p, s in zip(poses, clean, strict=True)])
    many = len(shapes) > 1
    return [
        {
            "name": name,
            **{state.value: sum(row[i] is state for row in states) for state in Status},
            "outside": int((outside[:, i] & known[:, i]).sum()),
            "world_mm": _mean(world[:, i]) if many else None,
            "aligned_mm": _mean(aligned[:, i]) if many else None,
            "predicted_mm": _mean(residual[:, i]),
        }
        for i, name in enumerate(names)
    ]


def _mean(values: Array) -> float | None:
    seen = values[np.isfinite(values)]
    return round(float(seen.mean()), 3) if seen.size else None
