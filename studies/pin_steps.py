"""What each step of the recommended PIN adds: the error after the pose, after the shape level, after the free levels.

python studies/pin_steps.py MODEL CASES.csv --split val --out FILE.json
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from pathlib import Path

import numpy as np

from anatomark import load
from anatomark.cases.manifest import read_manifest
from anatomark.io.atomic import write_json


def main() -> None:
    """Measure on one split and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("cases", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    method = load(args.model).method
    cases = read_manifest(args.cases).split(args.split)
    levels = method.levels
    figures: dict[str, float] = {}
    for count in range(len(levels) + 1):
        name = "pose" if count == 0 else f"level{count}_{levels[count - 1].update}"
        method.use_levels(count)
        errors, seconds = [], []
        for case in cases:
            image = case.read_image()
            start = time.perf_counter()
            found = method.locate(image)
            seconds.append(time.perf_counter() - start)
            errors.append(found.errors_to(case.read_landmarks()))
        figures[f"{name}_mean_mm"] = round(float(np.nanmean(errors)), 4)
        figures[f"{name}_median_mm"] = round(float(np.nanmedian(errors)), 4)
        figures[f"{name}_s"] = round(float(np.median(seconds)), 4)
        print(name, figures[f"{name}_mean_mm"], "mm mean,", figures[f"{name}_median_mm"], "mm median")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = platform.processor() or platform.machine()
    write_json(args.out, {"figures": figures, "machine": machine, "commit": commit, "cases": len(cases)})


if __name__ == "__main__":
    main()
