"""What each part of T2DL adds: mean shape, vote of the cells as the first stage's loss has them, learned vote, all.

    python studies/t2dl_ablation.py MODEL CASES.csv --split test --out FILE.json

The parts of one trained model of ``--method t2dl`` (its ``decode`` setting is switched; alignment and passes stay as
they are), without the mean picture of the training images, then with it (``picture``). The row ``stage1`` is of
weights that the second stage has trained on, read by the fixed vote. A refiner, if the model has one, is left out,
and measured with everything else in the last row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from anatomark import load
from anatomark.cases.manifest import read_manifest
from anatomark.evaluation.metrics import compare, statistics
from anatomark.io.atomic import write_json
from anatomark.model.compose import Composed

ROWS = ("mean", "stage1", "votes", "full")


def main() -> None:
    """Measure every row on one split and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("cases", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = load(args.model)
    whole = model.method
    method = whole.method if isinstance(whole, Composed) else whole
    refined = isinstance(whole, Composed) and whole.refine is not None
    cases = read_manifest(args.cases).split(args.split)
    truth = {c.id: c.read_landmarks(model.names) for c in cases}
    images = {c.id: model.flattened(c.read_image()) for c in cases}
    known = {}  # what the alignment finds does not depend on the method: it is found once for each image
    if isinstance(whole, Composed) and whole.aligner is not None:
        known = {case: whole.aligner.align(image) for case, image in images.items()}
    rows, picture = {}, getattr(method, "picture", None)
    for row in (*ROWS, *(["picture"] if picture is not None else []), *(["refined"] if refined else [])):
        method.config.decode = row if row in ROWS else "full"
        method.picture = None if row in ROWS else picture
        if refined:
            whole.begun = row == "refined"
        found = {}
        for case, image in images.items():
            if case in known:
                image.meta["alignment"] = known[case].affine
            found[case] = model.predict(image)
        result = statistics(compare(truth, found, model.names))
        rows[row] = {"mre_mm": result.mre, "median_mm": result.median, "p95_mm": result.p95}
        print(f"{row:8s} {result.mre:.3f} mm", flush=True)
    write_json(args.out, {"model": model.name, "cases": len(cases), "rows": rows})


if __name__ == "__main__":
    main()
