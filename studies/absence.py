"""Does a model say absent what is not in the image? Seeded crops that remove 20 to 50 % of the landmarks.

    python studies/absence.py MODEL CASES.csv --split test --out FILE.json [--margin-mm 3] [--crops 2] [--seed 0]

Each image of the split is cut along one or two of its axes, so that it is known which landmarks are outside. Landmarks
within the margin of a cut are left out (default: 4 % of the landmarks' reach). ``absence_recall`` and
``absence_precision`` on the crops; ``false_absences_uncropped``: share of the landmarks that are called absent in whole
images; ``mre_crops_mm``, ``mre_uncropped_mm``: mean error of those that are there and located.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import anatomark
from anatomark import Landmarks, load
from anatomark.cases.manifest import Case, read_manifest
from anatomark.errors import InputError
from anatomark.evaluation.metrics import Statistics, compare, statistics
from anatomark.io.atomic import write_json
from anatomark.model.confidence.presence import random_crop


def measure(
    model: Any, cases: Sequence[Case], *, crops: int = 2, seed: int = 0, margin_mm: float | None = None
) -> tuple[Statistics, Statistics, int]:
    """Figures in whole images and in ``crops`` crops of each, and how many crops could not be made or predicted."""
    whole: dict[str, Landmarks] = {}
    cut: dict[str, Landmarks] = {}
    found: dict[str, Landmarks] = {}
    failed = 0
    for number, case in enumerate(cases):
        image = model.flattened(case.read_image())
        whole[case.id] = case.read_landmarks(model.names)
        found[case.id] = model.predict(image)
        for k in range(crops):
            rng = np.random.default_rng([seed, number, k])
            name = f"{case.id} crop {k + 1}"
            try:
                part, cut[name] = random_crop(image, whole[case.id], rng, margin_mm=margin_mm)
                found[name] = model.predict(part)
            except InputError as error:
                cut.pop(name, None)
                failed += 1
                print(f"{name}: {error}")
    return statistics(compare(whole, found, model.names)), statistics(compare(cut, found, model.names)), failed


def main() -> None:
    """Measure on one split and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("cases", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--margin-mm", type=float)
    parser.add_argument("--crops", type=int, default=2, help="of each image")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, cases = load(args.model), read_manifest(args.cases).split(args.split)
    whole, cut, failed = measure(model, cases, crops=args.crops, seed=args.seed, margin_mm=args.margin_mm)
    known = {
        "absence_recall": cut.absence_recall,
        "absence_precision": cut.absence_precision,
        "false_absences_uncropped": whole.false_absences / whole.pairs if whole.pairs else None,
        "mre_crops_mm": cut.mre,
        "mre_uncropped_mm": whole.mre,
        "absent": cut.absent,
        "present": cut.pairs,
        "false_absences": cut.false_absences,
        "failed_crops": failed,
    }
    figures = {name: round(float(value), 4) for name, value in known.items() if value is not None}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {
        "figures": figures,
        "machine": platform.processor() or platform.machine(),
        "commit": commit,
        "anatomark": anatomark.__version__,
        "model": model.name,
        "manifest": args.cases.name,
        "split": args.split,
        "cases": len(cases),
        "crops": args.crops,
        "seed": args.seed,
        "margin_mm": args.margin_mm,
        "threshold": (model.calibration.get("presence") or {}).get("threshold"),
    }
    write_json(args.out, facts)
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
