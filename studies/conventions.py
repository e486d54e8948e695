"""How much of an error is the observer's? Predictions against each observer, and moved into each one's habits.

    python studies/conventions.py CASES.csv PREDICTIONS --learned senior --out FILE.json

CASES.csv names landmarks of a table with several observers; PREDICTIONS is a folder of predictions for its test cases
by a model that learned ``--learned``'s points. An observer's habits are his median offset to the learned one, for each
landmark over the **training** cases and along the image's axes; they are added to the predictions before these are
measured against him (for the mean of two, half of them). Nothing is taken from the test cases' truth. The same is done
with the test cases' mean of all observers in place of a model: what is left there, no model can know that learned from
these training cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.manifest import Case, read_manifest
from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.evaluation.metrics import compare, statistics
from anatomark.io.atomic import write_json
from anatomark.io.landmarks import read_landmarks
from anatomark.io.tables import mean_of

MEAN = "mean"
Marks = dict[str, Landmarks]


def observed(cases: tuple[Case, ...], names: tuple[str, ...]) -> dict[str, Marks]:
    """Points by observer (their mean too) and case."""
    found: dict[str, Marks] = {}
    for case in cases:
        marks = case.observers(names)
        for observer, points in {**marks, MEAN: mean_of(marks)}.items():
            found.setdefault(observer, {})[case.id] = points.select(names)
    return found


def habits(train: Mapping[str, Marks], learned: str) -> dict[str, Array]:
    """(N, D) mm by observer: from the learned one's points to his, median over the training cases."""
    own = train[learned]
    return {
        observer: np.nanmedian([points.points - own[case].points for case, points in marks.items()], 0)
        for observer, marks in train.items()
    }


def figures(truth: Marks, predicted: Marks, names: tuple[str, ...]) -> dict[str, Any]:
    """Mean error with its interval over cases, SDR."""
    made = statistics(compare(truth, predicted, names)).to_json()
    return {key: made[key] for key in ("pairs", "failures", "mre_mm", "mre_ci95_mm", "median_mm", "sdr")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--learned", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    manifest = read_manifest(args.cases)
    names = manifest.split("train")[0].read_landmarks().names
    away = habits(observed(manifest.split("train"), names), args.learned)
    truth = observed(manifest.split(args.split), names)
    model = {c: read_landmarks(args.predictions / f"{c}.json").select(names) for c in truth[MEAN]}
    rows: dict[str, dict[str, Any]] = {}
    for observer, marks in truth.items():
        moved = {c: p.with_points(p.points + away[observer]) for c, p in model.items()}
        centre = {c: p.with_points(p.points + away[observer] - away[MEAN]) for c, p in truth[MEAN].items()}
        rows[observer] = {
            "as predicted": figures(marks, model, names),
            "in this observer's habits": figures(marks, moved, names),
        }
        if observer != MEAN:
            rows[observer]["the mean of all, in these habits"] = figures(marks, centre, names)
    write_json(args.out, {"cases": len(model), "learned": args.learned, "truth": rows})
    for observer, kinds in rows.items():
        for kind, row in kinds.items():
            shares = ", ".join(f"{100 * share:.1f} % within {t} mm" for t, share in row["sdr"].items())
            print(f"truth {observer}, {kind}: {row['mre_mm']:.3f} mm, {shares}")


if __name__ == "__main__":
    main()
