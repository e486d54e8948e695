"""Calibration of a final model by fold models that were trained one by one.

    python studies/calibrate_folds.py MODEL CASES.csv --out MODEL2 --fold RUN CASES.csv --fold RUN CASES.csv ...

Each fold's RUN did not learn from the cases that its CASES.csv calls ``test``; their errors, and crops of them, give
the radii, the threshold of absence and the review flag of MODEL2, a copy of MODEL, whose training cases are those of
the first CASES.csv. ``anatomark fit --folds`` does this by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common
from anatomark.model.confidence.presence import Trials, case_trials
from anatomark.model.run_folder import load_run
from anatomark.progress import Reporter
from anatomark.training.calibrate import calibrate
from anatomark.training.validate import Residuals


def left_out(run: str, manifest: str, seed: int) -> Residuals:
    """A fold model's predictions in its test cases, and in one crop of each. Raises InputError."""
    trained = load_run(run)
    method, names = trained.method(), trained.plan.names
    cases = common.cases_of(Path(manifest), "test")
    truths = tuple(common.landmarks_of(c, names) for c in cases)
    predictions, trials = [], Trials()
    for case, truth in zip(cases, truths, strict=True):
        image = common.image_of(case)
        predictions.append(method.locate(image))
        trials += case_trials(method.locate, case.id, image, truth, predictions[-1], seed)
    return Residuals(tuple(c.id for c in cases), tuple(predictions), truths, trials)


def main(given: Sequence[str] | None = None) -> None:
    """Calibrate and say what came of it."""
    parser = common.arguments(__doc__, "model", "cases")
    parser.add_argument("--fold", nargs=2, action="append", required=True, metavar=("RUN", "CASES.csv"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(given)
    parts = [left_out(run, cases, args.seed) for run, cases in args.fold]
    pooled = Residuals(
        tuple(c for p in parts for c in p.cases),
        tuple(x for p in parts for x in p.predictions),
        tuple(x for p in parts for x in p.truths),
        sum((p.trials for p in parts if p.trials is not None), Trials()),
    )
    done = calibrate(Path(args.model), args.cases, args.out, out_of_fold=pooled, report=Reporter())
    print("\n".join(done.lines()))


if __name__ == "__main__":
    common.run(main)
