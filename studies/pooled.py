"""Several evaluations as one: a cross-validation whose folds were trained and evaluated by themselves.

    python studies/pooled.py EVALUATION... --out FILE.json [--truth "landmark files"]

An EVALUATION is a folder that ``anatomark evaluate`` wrote, or an ``out_of_fold.csv`` of ``fit --folds``. No case may
occur twice. Figures: ``mre_mm`` with its 95 % interval (bootstrap over cases), ``median_mm``, ``p95_mm``,
``worst_case_mm``, ``cases``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import common
from anatomark import InputError
from anatomark.io.sheets import read_sheet

SAMPLES = 2000


def read_errors(path: Path, truth: str | None) -> dict[str, list[float]]:
    """Errors in mm by case; of one truth where the evaluation holds several. Raises InputError."""
    file = path / "errors.csv" if path.is_dir() else path
    errors: dict[str, list[float]] = defaultdict(list)
    for _, row in read_sheet(file).rows:
        if row["error_mm"] and (truth is None or row.get("truth", truth) == truth):
            errors[row["case"]].append(float(row["error_mm"]))
    if not errors:
        raise InputError(f"{file}: holds no errors" + (f" against {truth!r}" if truth else ""))
    return errors


def pooled(paths: Sequence[Path], truth: str | None) -> dict[str, float]:
    """The figures of all cases together. Raises InputError where a case occurs twice."""
    cases: dict[str, list[float]] = {}
    for path in paths:
        for case, errors in read_errors(path, truth).items():
            if case in cases:
                raise InputError(f"{path}: case {case!r} was evaluated before")
            cases[case] = errors
    errors = list(cases.values())
    total, count = np.array([sum(e) for e in errors]), np.array([len(e) for e in errors])
    draws = np.random.default_rng(0).integers(len(errors), size=(SAMPLES, len(errors)))
    low, high = np.percentile(total[draws].sum(1) / count[draws].sum(1), [2.5, 97.5])
    flat = np.concatenate(errors)
    figures = {"mre_mm": flat.mean(), "low_mm": low, "high_mm": high, "median_mm": np.median(flat)}
    figures |= {"p95_mm": np.percentile(flat, 95), "worst_case_mm": (total / count).max(), "cases": len(errors)}
    return figures


def main(given: Sequence[str] | None = None) -> None:
    """Pool and write the figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="EVALUATION")
    parser.add_argument("--truth")
    args = parser.parse_args(given)
    common.record(args.out, pooled(args.evaluations, args.truth))


if __name__ == "__main__":
    common.run(main)
