"""How much of an error is the observer's? Predictions against each observer, and moved into each one's habits.

    python studies/conventions.py CASES.csv PREDICTIONS --learned senior --out FILE.json

CASES.csv names landmarks of a table with several observers; PREDICTIONS is a folder of predictions for its test cases
by a model that learned ``--learned``'s points. An observer's habits are his median offset to the learned one, for each
landmark over the **training** cases and along the image's axes; they are added to the predictions before these are
measured against him (for the mean of two, half of them). Nothing is taken from the test cases' truth. The same is done
with the test cases' mean of all observers in place of a model: what is left there, no model can know that learned from
these training cases. Figures: ``<observer>_<what>_mre_mm`` and ``..._sdr2``; the file holds more under ``truth``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import common
from anatomark import Landmarks, read_landmarks
from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.evaluation.metrics import compare, statistics
from anatomark.io.tables import mean_of

MEAN = "mean"
KEYS = ("pairs", "failures", "mre_mm", "mre_ci95_mm", "median_mm", "sdr")
ByCase = dict[str, Landmarks]
KINDS = {  # as a figure's name has it, in words
    "as_predicted": "as predicted",
    "in_habits": "in this observer's habits",
    "mean_in_habits": "the mean of all, in these habits",
}


def observed(cases: Sequence[Case], names: tuple[str, ...]) -> dict[str, ByCase]:
    """Points by observer (their mean too) and case."""
    points: dict[str, ByCase] = {}
    for case in cases:
        observers = case.observers(names)
        for observer, landmarks in {**observers, MEAN: mean_of(observers)}.items():
            points.setdefault(observer, {})[case.id] = landmarks.select(names)
    return points


def habits(train: Mapping[str, ByCase], learned: str) -> dict[str, Array]:
    """(N, D) mm by observer: from the learned one's points to his, median over the training cases."""
    own = train[learned]
    return {
        observer: np.nanmedian([landmarks.points - own[case].points for case, landmarks in points.items()], 0)
        for observer, points in train.items()
    }


def measured(truth: ByCase, predicted: ByCase, names: tuple[str, ...]) -> dict[str, Any]:
    """Mean error with its interval over cases, SDR."""
    made = vars(statistics(compare(truth, predicted, names)))
    return {key: made[key] for key in KEYS}


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    parser = common.arguments(__doc__, "cases", "predictions", split="test")
    parser.add_argument("--learned", required=True)
    args = parser.parse_args(given)
    train = common.cases_of(args.cases, "train")
    names = train[0].landmarks.names
    away = habits(observed(train, names), args.learned)
    truth = observed(common.cases_of(args.cases, args.split), names)
    model = {c: read_landmarks(args.predictions / f"{c}.json").select(names) for c in truth[MEAN]}
    rows: dict[str, dict[str, Any]] = {}
    figures: dict[str, float | None] = {"cases": len(model)}
    for observer, points in truth.items():
        moved = {c: p.with_points(p.points + away[observer]) for c, p in model.items()}
        centre = {c: p.with_points(p.points + away[observer] - away[MEAN]) for c, p in truth[MEAN].items()}
        predicted = {"as_predicted": model, "in_habits": moved}
        predicted |= {"mean_in_habits": centre} if observer != MEAN else {}
        rows[observer] = {KINDS[kind]: measured(points, p, names) for kind, p in predicted.items()}
        for kind in predicted:
            row = rows[observer][KINDS[kind]]
            shares = ", ".join(f"{100 * share:.1f} % within {t} mm" for t, share in row["sdr"].items())
            print(f"truth {observer}, {KINDS[kind]}: {row['mre_mm']:.3f} mm, {shares}")
            figures |= {f"{observer}_{kind}_mre_mm": row["mre_mm"], f"{observer}_{kind}_sdr2": row["sdr"]["2"]}
    common.record(args.out, figures, learned=args.learned, truth=rows)


if __name__ == "__main__":
    common.run(main)
