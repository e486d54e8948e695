"""Do the 90 % radii cover 90 %? Cross-conformal: each group of cases by radii learned from the other groups' errors.

    python studies/coverage.py CASES.csv --predictions DIR DIR ... --out FILE.json

Each DIR holds predictions (``STEM.json``) of a model that did not learn from these cases, such as the ``predictions``
folder of an evaluation of one fold's model. CASES.csv has the truth of all of them, whatever their split. For each
group a landmark's scale is learned from the errors in all other groups; the share of its landmarks inside their radii
counts. The interval comes from 2,000 bootstrap samples over cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import common
from anatomark import Landmarks, read_landmarks
from anatomark.core.grid import Array
from anatomark.model.confidence.radius import calibrated, radii

Group = list[tuple[Landmarks, Array]]  # predictions and their errors (N,) mm


def read_groups(manifest: Path, folders: Sequence[Path]) -> tuple[list[Group], tuple[str, ...]]:
    """The predictions in each folder with their errors, a case only once, and the landmarks' names."""
    cases = {c.id: c for c in common.cases_of(manifest)}
    names: tuple[str, ...] = ()
    groups: list[Group] = []
    for folder in folders:
        group: Group = []
        for file in sorted(folder.glob("*.json")):
            case = None if file.name.endswith(".mrk.json") else cases.pop(file.stem, None)
            if case is not None:
                prediction = read_landmarks(file)
                names = names or prediction.names
                prediction = prediction.select(names)
                group.append((prediction, prediction.errors_to(case.landmarks.select(names))))
        groups.append(group)
    return groups, names


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    parser = common.arguments(__doc__, "cases")
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, metavar="DIR")
    args = parser.parse_args(given)
    groups, names = read_groups(args.cases, args.predictions)
    inside, radius = [], []
    for k, group in enumerate(groups):
        others = [x for j, g in enumerate(groups) if j != k for x in g]
        calibration = calibrated(np.stack([e for _, e in others]), [p for p, _ in others], names)
        for prediction, error in group:
            r = radii(prediction, calibration)
            assert r is not None
            inside.append(np.where(np.isfinite(error), error <= r, np.nan))
            radius.append(r)
    shares = np.nanmean(np.stack(inside), 1)
    draws = np.random.default_rng(0).integers(0, len(shares), (2000, len(shares)))
    low, high = np.quantile(shares[draws].mean(1), [0.025, 0.975])
    error_mm = np.nanmean([e for group in groups for _, e in group])
    figures = {"cases": len(shares), "groups": len(groups), "coverage90": shares.mean(), "ci95_low": low}
    figures |= {"ci95_high": high, "mean_radius_mm": np.nanmean(radius), "mean_error_mm": error_mm}
    common.record(args.out, figures)


if __name__ == "__main__":
    common.run(main)
