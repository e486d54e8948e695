"""Does a model say absent what is not in the image? Seeded crops that remove 20 to 50 % of the landmarks.

    python studies/absence.py MODEL CASES.csv --split test --out FILE.json [--margin-mm 3] [--crops 2] [--seed 0]

Each image of the split is cut along one or two of its axes, so that it is known which landmarks are outside. Landmarks
within the margin of a cut are left out (default: 4 % of the landmarks' reach). ``absence_recall`` and
``absence_precision`` on the crops; ``false_absences_uncropped``: share of the landmarks that are called absent in whole
images; ``mre_crops_mm``, ``mre_uncropped_mm``: mean error of those that are there and located.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import common
from anatomark import InputError, Landmarks, load
from anatomark.cases.case import Case
from anatomark.evaluation.metrics import Statistics, compare, statistics
from anatomark.model.confidence.presence_trials import random_crop


def measure(
    model: Any, cases: Sequence[Case], *, crops: int = 2, seed: int = 0, margin_mm: float | None = None
) -> tuple[Statistics, Statistics, int]:
    """Figures in whole images and in ``crops`` crops of each, and how many crops could not be made or predicted."""
    whole: dict[str, Landmarks] = {}
    cut: dict[str, Landmarks] = {}
    predicted: dict[str, Landmarks] = {}
    failed = 0
    for number, case in enumerate(cases):
        image, whole[case.id] = case.image(), case.landmarks.select(model.names)
        predicted[case.id] = model.predict(image).landmarks
        for k in range(crops):
            rng = np.random.default_rng([seed, number, k])
            name = f"{case.id} crop {k + 1}"
            try:
                part, cut[name] = random_crop(image, whole[case.id], rng, margin_mm=margin_mm)
                predicted[name] = model.predict(part).landmarks
            except InputError as error:
                cut.pop(name, None)
                failed += 1
                print(f"{name}: {error}")
    return statistics(compare(whole, predicted, model.names)), statistics(compare(cut, predicted, model.names)), failed


def main(given: Sequence[str] | None = None) -> None:
    """Measure on one split and write the figures."""
    parser = common.arguments(__doc__, "model", "cases", split="test")
    parser.add_argument("--margin-mm", type=float)
    parser.add_argument("--crops", type=int, default=2, help="of each image")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(given)
    model, cases = load(args.model), common.cases_of(args.cases, args.split)
    settings = {"crops": args.crops, "seed": args.seed, "margin_mm": args.margin_mm}
    whole, cut, failed = measure(model, cases, **settings)
    figures = {
        "absence_recall": cut.absence_recall,
        "absence_precision": cut.absence_precision,
        "false_absences_uncropped": whole.false_absences / whole.pairs if whole.pairs else None,
        "mre_crops_mm": cut.mre_mm,
        "mre_uncropped_mm": whole.mre_mm,
        "absent": cut.absent,
        "present": cut.pairs,
        "false_absences": cut.false_absences,
        "failed_crops": failed,
    }
    threshold = (model.calibration.get("presence") or {}).get("threshold")
    facts = {"model": model.name, "manifest": args.cases.name, "split": args.split, "cases": len(cases)}
    common.record(args.out, figures, **facts, **settings, threshold=threshold)


if __name__ == "__main__":
    common.run(main)
