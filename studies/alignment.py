"""How often, how closely and how fast the alignment finds an image's pose, from random poses written into headers.

    python studies/alignment.py --out FILE.json [--count 100]

- ``brains``: the template is made of four of the five population templates; the fifth is turned by up to 60 degrees
  about any axis, shifted by up to 20 mm and resized by 0.9 to 1.1. ``colin27``: the same with the person instead.
- ``skulls``: four folds of the 16 training skulls; a left-out one lies as it came off the scanner, or in any pose.

An alignment is compared with the similarity that lays the template's mean shape onto the experts' points: degrees, and
mm at the landmarks' centre. It counts as found within 5 degrees and 5 mm (skulls: 8 degrees and 1 mm). The data folder
is ANATOMARK_DATA (see ``manifests.py``); a data set that is not there is left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import common
from anatomark.cases.case import Case
from anatomark.core.shape import Pose, procrustes, random_rotation, rotation_angle
from anatomark.model.align.aligner import AlignConfig, Aligner
from data import data_set
from manifests import TEST_BRAIN, brain, mouse_skull

Row = tuple[float, float, float]  # degrees, mm, seconds
SEED = 60


def load_cases(write: Callable[[Path, Path], Path], folder: Path, split: str | None = None) -> list[Case]:
    """The cases of a manifest (of one split), in memory."""
    with tempfile.TemporaryDirectory() as place:
        cases = common.cases_of(write(folder, Path(place)), split)
        return [replace(c, held=c.image()) for c in common.select(cases, cases[0].landmarks.names)]


def aligner(cases: Sequence[Case], config: AlignConfig) -> Aligner:
    """An aligner whose template is made of ``cases``."""
    return Aligner(config, Aligner.prepare(config, common.study_of(cases)))


def random_motion(seed: Sequence[int], centre: np.ndarray, degrees: float, shift_mm: float, size: float) -> Pose:
    """A seeded turn about ``centre``, a shift in any direction and a resizing between 1/size and size."""
    rng = np.random.default_rng([SEED, *seed])
    turn = random_rotation(rng, 3, degrees)
    shift = common.random_shift(rng, 0, shift_mm)
    return common.about(centre, turn, shift, float(np.exp(rng.uniform(-1, 1) * np.log(size))))


def measured(own: Aligner, case: Case, motion: Pose) -> Row:
    """Degrees and mm that the alignment of a moved case errs by, and its seconds."""
    moved = common.moved(case.image(), motion)
    alignment, seconds = common.timed(lambda: own.align(moved))
    true = procrustes(own.mean_shape, motion.apply(case.landmarks.points))
    u, _, vt = np.linalg.svd(alignment.affine[:3, :3])
    away = float(np.linalg.norm(alignment.affine[:3, 3] - true.translation))
    return rotation_angle((u @ vt).T @ true.rotation), away, seconds


def brains(folder: Path, config: AlignConfig, count: int) -> dict[str, list[Row]]:
    """``count`` poses of the left-out templates together, and as many of the person."""
    cases = load_cases(brain, folder)
    person = next(c for c in cases if c.id == TEST_BRAIN)
    templates = [c for c in cases if c.id != TEST_BRAIN]
    rows: dict[str, list[Row]] = {"brains": [], "colin27": []}
    for held, left_out in enumerate(templates):
        own = aligner([c for c in templates if c is not left_out], config)
        for i in range(held, count, len(templates)):
            for name, case in (("brains", left_out), ("colin27", person)):
                motion = random_motion([i], case.image().grid.centre, 60, 20, 1.1)
                rows[name].append(measured(own, case, motion))
    return rows


def skulls(folder: Path, config: AlignConfig, count: int, folds: int = 4) -> dict[str, list[Row]]:
    """``count`` poses of the training skulls, each left out of its template; every skull first as it was scanned."""
    cases = load_cases(mouse_skull, folder, "train")
    rows = []
    for fold in range(folds):
        own = aligner([c for k, c in enumerate(cases) if k % folds != fold], config)
        for i in range(count):
            at = i % len(cases)
            if at % folds == fold:
                motion = random_motion([i], cases[at].image().grid.centre, 180, 2, 1.05)
                rows.append(measured(own, cases[at], motion if i >= len(cases) else Pose.identity(3)))
    return {"skulls": rows}


def summary(name: str, rows: Sequence[Row], most_deg: float, most_mm: float) -> dict[str, float]:
    """Share found, medians and 95th percentiles."""
    degrees, mm, seconds = np.array(rows).T
    figures: dict[str, float] = {
        "count": len(rows),
        "found_share": float(((degrees <= most_deg) & (mm <= most_mm)).mean()),
    }
    for key, values in (("deg", degrees), ("mm", mm), ("seconds", seconds)):
        figures |= {f"{key}_median": float(np.median(values)), f"{key}_p95": float(np.percentile(values, 95))}
    return {f"{name}_{key}": value for key, value in figures.items()}


def main(given: Sequence[str] | None = None) -> None:
    """Align everything and write the figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("--count", type=int, default=100, help="poses per kind of image")
    args = parser.parse_args(given)
    config, figures = AlignConfig(), {}
    for part, align_all, limits in (("brain", brains, (5.0, 5.0)), ("mouse_skull", skulls, (8.0, 1.0))):
        if (folder := data_set(part)) is not None:
            for name, rows in align_all(folder, config, args.count).items():
                figures.update(summary(name, rows, *limits))
    common.record(args.out, figures, config=config.model_dump())


if __name__ == "__main__":
    common.run(main)
