"""Do the 90 % radii cover 90 %? Cross-conformal: each group of cases by radii learned from the other groups' errors.

    python studies/coverage.py CASES.csv --predictions DIR DIR ... --out FILE.json

Each DIR holds predictions (``STEM.json``) of a model that did not learn from these cases, such as the ``predictions``
folder of an evaluation of one fold's model. CASES.csv has the truth of all of them, whatever their split. For each
group a landmark's scale is learned from the errors in all other groups; the share of its landmarks inside their radii
counts. The interval comes from 2,000 bootstrap samples over cases.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from anatomark.cases.manifest import read_manifest
from anatomark.io.atomic import write_json
from anatomark.io.landmarks import read_landmarks
from anatomark.model.confidence.radius import calibrated, radii


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    cases = {c.id: c for c in read_manifest(args.cases).cases}
    names: tuple[str, ...] = ()
    groups, taken = [], set()
    for folder in args.predictions:
        group = []
        for file in sorted(folder.glob("*.json")):
            case = cases.get(file.name.removesuffix(".json"))
            if file.name.endswith(".mrk.json") or case is None or case.id in taken:
                continue
            taken.add(case.id)
            found = read_landmarks(file)
            names = names or found.names
            group.append((case.id, found.select(names), found.select(names).errors_to(case.read_landmarks(names))))
        groups.append(group)
    inside, radius = [], []
    for k, group in enumerate(groups):
        others = [x for j, g in enumerate(groups) if j != k for x in g]
        known = calibrated(np.stack([e for *_, e in others]), [f for _, f, _ in others], names)
        for _, found, error in group:
            r = radii(found, known)
            assert r is not None
            inside.append(np.where(np.isfinite(error), error <= r, np.nan))
            radius.append(r)
    shares = np.nanmean(np.stack(inside), 1)
    draws = np.random.default_rng(0).integers(0, len(shares), (2000, len(shares)))
    low, high = np.quantile(shares[draws].mean(1), [0.025, 0.975])
    figures = {
        "cases": len(shares), "groups": len(groups), "coverage90": float(shares.mean()),
        "ci95_low": float(low), "ci95_high": float(high), "mean_radius_mm": float(np.nanmean(radius)),
        "mean_error_mm": float(np.nanmean([e for g in groups for *_, e in g])),
    }  # fmt: skip
    write_json(args.out, {"figures": {k: round(v, 4) for k, v in figures.items()}})
    print(figures)


if __name__ == "__main__":
    main()
