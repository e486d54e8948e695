"""What each part of T2DL adds: mean shape, vote of the cells as the first stage's loss has them, learned vote, all.

    python studies/t2dl_ablation.py MODEL CASES.csv --split test --out FILE.json

The parts of one trained model of ``--method t2dl`` (its ``decode`` setting is switched; alignment and passes stay as
they are), without the mean picture of the training images, then with it (``picture``). The row ``stage1`` is of
weights that the second stage has trained on, read by the fixed vote. A refiner, if the model has one, is left out,
and measured with everything else in the last row.
"""

from __future__ import annotations

from collections.abc import Sequence

import common
from anatomark import load
from anatomark.evaluation.metrics import compare, statistics

ROWS = ("mean", "stage1", "votes", "full")


def main(given: Sequence[str] | None = None) -> None:
    """Measure every row on one split and write the figures."""
    args = common.arguments(__doc__, "model", "cases", split="test").parse_args(given)
    model, cases = load(args.model), common.cases_of(args.cases, args.split)
    method, refined = model.composed.method, model.composed.refine is not None
    truth = {c.id: c.landmarks.select(model.names) for c in cases}
    images = {c.id: c.image() for c in cases}
    figures: dict[str, float | None] = {"cases": len(cases)}
    picture = getattr(method, "picture", None)
    for row in (*ROWS, *(["picture"] if picture is not None else []), *(["refined"] if refined else [])):
        method.config.decode = row if row in ROWS else "full"
        method.picture = None if row in ROWS else picture
        model.composed.refines = row == "refined"
        predicted = {case: model.predict(image).landmarks for case, image in images.items()}
        result = statistics(compare(truth, predicted, model.names))
        figures |= {f"{row}_{key}": getattr(result, key) for key in ("mre_mm", "median_mm", "p95_mm")}
    common.record(args.out, figures, model=model.name)


if __name__ == "__main__":
    common.run(main)
