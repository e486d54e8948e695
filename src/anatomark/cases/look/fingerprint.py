"""What a manifest's training cases look like: images, spacings, poses, landmark spread, suspect annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.division import spread
from anatomark.cases.look.medians import distance
from anatomark.cases.look.places import shared_images
from anatomark.cases.look.sizes import odd_sizes
from anatomark.cases.look.splits import look_at
from anatomark.cases.look.suspects import disagreements
from anatomark.cases.manifest import SPLITS, Manifest
from anatomark.core.grid import Array, Grid
from anatomark.core.intensity import guess_modality
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import Pose, mean_shape, nanmean, rotation_angle
from anatomark.errors import InputError
from anatomark.io.landmarks import landmark_format, split_observer
from anatomark.progress import Reporter

MODALITY_CASES = 3  # images that are read in full; of all others only the header
OBLIQUE_DEG = 5.0


def fingerprint(manifest: Manifest, report: Reporter | None = None) -> dict[str, Any]:
    """The training cases of ``manifest`` in numbers, plain JSON; other splits are counted, and looked through for
    suspect annotations. Of the images three are read, of the rest the headers.

    ``cases`` per split, training images ``without landmarks`` apart (in ``image_formats`` and ``megabytes`` they
    count), ``dimension``, ``image_formats``, ``landmark_formats``, ``modality``, ``images`` (``spacing_mm``,
    ``extent_mm``, ``size`` as min, median, max along x, y[, z]; ``orientations``; ``megabytes`` as float32), ``poses``
    (degrees of each case to the mean shape, scale), ``landmarks`` (a row each), ``extra_names`` that the first case
    lacks, ``observers``, ``names`` of the first case, ``suspects`` of all splits, ``suspects_note`` where these could
    not be judged; ``images.odd_sizes``: lines on images of another size than the others. Raises InputError for files
    that cannot be read or do not fit together.
    """
    cases, blank = manifest.labelled(), manifest.blank
    held = [c for c in manifest.cases if c.split in ("val", "test")]
    everyone = [*cases, *held]
    ndim, names = cases[0].landmarks.ndim, cases[0].landmarks.names
    for case in everyone:
        if case.landmarks.ndim != ndim:
            raise InputError(
                f"case {case.id!r}, row {case.row}: {case.landmarks.ndim}D landmarks; the first case's are {ndim}D"
            )
    if not any(case.landmarks.defined.any() for case in cases):
        raise InputError(f"{manifest.name}: no training case has a defined landmark; there is nothing to learn from")
    looked = [*cases, *blank, *held]
    with (report or Reporter(quiet=True)).bar("reading headers", len(looked)) as bar:
        for number, case in enumerate(looked):
            case.grid(ndim)
            bar.update(number + 1)
    verdict = look_at(everyone, [case.landmarks.select(names) for case in everyone], len(cases), report)
    landmarks, grids = [case.landmarks.select(names) for case in cases], [case.grid(ndim) for case in cases]
    shapes, ids = np.stack([one.points for one in landmarks]), [case.id for case in cases]
    for one in verdict.suspects:  # one slip of the hand must not turn the mean
        if one.kind in ("point", "placeholder") and one.case in ids:
            shapes[ids.index(one.case), [names.index(label) for label in one.labels]] = np.nan
    if not np.isfinite(shapes).any():
        shapes = np.stack([one.points for one in landmarks])
    mean, poses = mean_shape(shapes)
    observed = [list(case.observers(names).values()) for case in cases]
    apart, disagreed = disagreements(observed)
    splits = {case.id: case.split for case in looked}
    found = [*verdict.suspects, *shared_images(looked), *disagreed]
    training = [*cases, *blank]
    sizes = [case.grid(ndim) for case in training]
    counts = {split or "unused": sum(c.split == split for c in manifest.cases) for split in SPLITS}
    return {
        "cases": {**counts, "train": len(cases), "without landmarks": len(blank)},
        "dimension": ndim,
        "image_formats": dict(Counter(_suffix(case.path) for case in training)),
        "landmark_formats": dict(Counter(landmark_format(split_observer(c.source or "")[0]) for c in cases)),
        "modality": guess_modality([cases[i].image() for i in spread(len(cases), MODALITY_CASES)]),
        "images": {
            **_image_facts(grids),
            "megabytes": round(sum(float(np.prod(g.shape)) for g in sizes) * 4 / 2**20, 1),
            "odd_sizes": odd_sizes([case.id for case in training], sizes),
        },
        "poses": _pose_facts(ids, mean, poses),
        "landmarks": _landmark_rows(
            landmarks, grids, {**_spreads(shapes, mean, poses), "predicted_mm": verdict.residual_mm}
        ),
        "extra_names": sorted({n for case in cases for n in case.landmarks.names} - set(names)),
        "observers": {
            "cases": sum(len(o) > 1 for o in observed),
            "named": sum(two_observers(case) for case in cases),
            "mean_distance_mm": apart,
        },
        "names": list(names),
        "suspects": [{**one.to_json(), "split": splits.get(one.case)} for one in found],
        "suspects_note": verdict.note,
    }


def two_observers(case: Case) -> bool:
    """Whether a case's row names one of several observers who marked it. Raises InputError."""
    observers = case.observers() if case.observer else {}
    return case.observer in observers and len(observers) > 1


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
    }


def _pose_facts(ids: Sequence[str], mean: Array, poses: Sequence[Pose]) -> dict[str, Any]:
    turned = [rotation_angle(pose.rotation) for pose in poses]
    scales = np.array([pose.scale for pose in poses])
    return {
        "rotation_deg": {"median": round(float(np.median(turned)), 2), "max": round(float(np.max(turned)), 2)},
        "most_turned": ids[int(np.argmax(turned))],
        "scale_sd": round(float(scales.std(ddof=1) / scales.mean()), 4) if len(ids) > 1 else 0.0,
        "radius_mm": round(float(np.nanmax(np.linalg.norm(mean, axis=1))), 3),
    }


def _spreads(shapes: Array, mean: Array, poses: Sequence[Pose]) -> dict[str, Array]:
    """(M, N) mm of each point to the landmark's mean position in world, and to the mean shape after a similarity; NaN
    where missing, and for a single case."""
    if len(shapes) == 1:
        shapes = np.full_like(shapes, np.nan)
    aligned = np.stack([pose.apply(mean) for pose in poses])
    return {"world_mm": distance(shapes, nanmean(shapes)), "aligned_mm": distance(aligned, shapes)}


def _landmark_rows(
    landmarks: Sequence[Landmarks], grids: Sequence[Grid], spreads: Mapping[str, Array]
) -> list[dict[str, Any]]:
    """Per landmark: how often defined, absent, unannotated and outside its image, and the mean over cases of each of
    the ``spreads`` (M, N) mm; None where unknown."""
    outside = np.stack(
        [one.defined & ~g.contains(np.nan_to_num(one.points)) for one, g in zip(landmarks, grids, strict=True)]
    )
    return [
        {
            "name": name,
            **{state.value: sum(one.status[i] is state for one in landmarks) for state in Status},
            "outside": int(outside[:, i].sum()),
            **{key: _mean(values[:, i]) for key, values in spreads.items()},
        }
        for i, name in enumerate(landmarks[0].names)
    ]


def _mean(values: Array) -> float | None:
    finite = values[np.isfinite(values)]
    return round(float(finite.mean()), 3) if finite.size else None
