"""What each step of the recommended PIN adds: the error after the pose, after the shape level, after the free levels.

python studies/pin_steps.py MODEL CASES.csv --split val --out FILE.json
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import common
from anatomark import load
from anatomark.methods.base import Evidence


def main(given: Sequence[str] | None = None) -> None:
    """Measure on one split and write the figures."""
    args = common.arguments(__doc__, "model", "cases", split="val").parse_args(given)
    method, cases = load(args.model).composed.method, common.cases_of(args.cases, args.split)
    levels, stages = method.levels, method.stages()
    figures: dict[str, float | None] = {}
    for count in range(len(levels) + 1):
        name = "pose" if count == 0 else f"level{count}_{levels[count - 1].update}"
        method.begin(stages[count], Evidence())  # locate leaves out what is trained later
        errors, seconds = [], []
        for case in cases:
            image = case.image()
            landmarks, took = common.timed(lambda image=image: method.locate(image))
            seconds.append(took)
            errors.append(landmarks.errors_to(case.landmarks))
        figures |= {f"{name}_mean_mm": np.nanmean(errors), f"{name}_median_mm": np.nanmedian(errors)}
        figures[f"{name}_s"] = np.median(seconds)
    common.record(args.out, figures, cases=len(cases))


if __name__ == "__main__":
    common.run(main)
