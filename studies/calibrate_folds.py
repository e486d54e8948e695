"""Calibration of a final model by fold models that were trained one by one.

    python studies/calibrate_folds.py MODEL CASES.csv --out MODEL2 --fold RUN CASES.csv --fold RUN CASES.csv ...

Each fold's RUN did not learn from the cases that its CASES.csv calls ``test``; their errors, and crops of them, give
the radii, the threshold of absence and the review flag of MODEL2, a copy of MODEL, whose training cases are those of
the first CASES.csv. ``anatomark fit --folds`` does this by itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from anatomark.cases.division import Source
from anatomark.cases.manifest import read_manifest
from anatomark.errors import InputError
from anatomark.model.confidence.presence import Trials, case_trials
from anatomark.model.run_folder import load_run
from anatomark.progress import Reporter
from anatomark.training.calibrate import calibrate
from anatomark.training.validate import Residuals


def left_out(run: str, cases: str, seed: int) -> Residuals:
    """A fold model's predictions in its test cases, and in one crop of each. Raises InputError."""
    trained = load_run(run)
    method, names = trained.method(), trained.plan.names
    sources = [Source(c, c.read_landmarks().select(names)) for c in read_manifest(cases).split("test")]
    found, trials = [], Trials()
    for source in sources:
        image = source.image()
        found.append(method.locate(image))
        trials += case_trials(method.locate, source.id, image, source.landmarks, found[-1], seed)
    return Residuals(tuple(s.id for s in sources), tuple(found), tuple(s.landmarks for s in sources), trials)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fold", nargs=2, action="append", required=True, metavar=("RUN", "CASES.csv"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        parts = [left_out(run, cases, given.seed) for run, cases in given.fold]
        pooled = Residuals(
            tuple(c for p in parts for c in p.cases),
            tuple(x for p in parts for x in p.predictions),
            tuple(x for p in parts for x in p.truths),
            sum((p.trials for p in parts if p.trials is not None), Trials()),
        )
        done = calibrate(given.model, given.cases, given.out, out_of_fold=pooled, report=Reporter())
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(done.lines()))


if __name__ == "__main__":
    main()
