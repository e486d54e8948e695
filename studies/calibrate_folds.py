"""Calibration of a final model by fold models that were trained one by one.

    python studies/calibrate_folds.py MODEL CASES.csv --out MODEL2 --fold RUN CASES.csv --fold RUN CASES.csv ...

Each fold's RUN did not learn from the cases that its CASES.csv calls ``test``; their errors, and crops of them, give
the radii, the threshold of absence and the review flag of MODEL2, a copy of MODEL, whose training cases are those of
the first CASES.csv. ``anatomark fit --folds`` does this by itself. ``--radii-only``: MODEL's threshold and flag stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import common
from anatomark.io.atomic import read_json, write_json
from anatomark.model.confidence.review import REFERENCE
from anatomark.model.residuals import Residuals, residuals_in
from anatomark.model.run_files import write_list
from anatomark.model.run_folder import load_run
from anatomark.progress import Reporter
from anatomark.training.calibrate import CALIBRATION, calibrate


def left_out(run: str, manifest: str, seed: int) -> Residuals:
    """A fold model's predictions in its test cases, and in one crop of each. Raises InputError."""
    trained = load_run(run)
    cases = common.select(common.cases_of(Path(manifest), "test"), trained.plan.names)
    return residuals_in(trained.build(), cases, cropped=range(len(cases)), seed=seed)


def main(given: Sequence[str] | None = None) -> None:
    """Calibrate and say what came of it."""
    parser = common.arguments(__doc__, "model", "cases")
    parser.add_argument("--fold", nargs=2, action="append", required=True, metavar=("RUN", "CASES.csv"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--radii-only", action="store_true")
    args = parser.parse_args(given)
    pooled = Residuals.pooled([left_out(run, cases, args.seed) for run, cases in args.fold])
    done = calibrate(Path(args.model), args.cases, args.out, out_of_fold=pooled, report=Reporter())
    if args.radii_only:
        kept = load_run(args.model).folder
        learned = {key: done.facts[key] for key in ("source", "cases", "pooled", "landmarks")}
        write_json(args.out / CALIBRATION, read_json(kept / CALIBRATION) | learned)
        shutil.copyfile(kept / REFERENCE, args.out / REFERENCE)
        write_list(args.out)
    print("\n".join(done.lines()))


if __name__ == "__main__":
    common.run(main)
