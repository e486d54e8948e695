"""How well points are carried between images that share them: what ``anatomark simulate --points`` relies on.

From the manifest's first case of a split to each other one, mean and median distance in mm to landmarks that were not
used: copied as they lie; by the affine map of the other half of the landmarks; by registration of the images from
where they lie; by registration from that affine map, which is what simulate does.

    python studies/carried_points.py CASES.csv [--split train] --out FILE.json
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from pathlib import Path

import numpy as np

import anatomark
from anatomark.cases.division import fitting_image
from anatomark.cases.manifest import read_manifest
from anatomark.core.grid import Array
from anatomark.io.atomic import write_json
from anatomark.tools.simulate.spread import PointMap, linear_map, registered


def halves(source: Array, target: Array, after: object = None) -> Array:
    """(N,) mm: each landmark carried by a map that was fitted to the other half of them; ``after(map)`` refines it."""
    out = np.empty(len(source))
    for odd in (0, 1):
        left = np.arange(len(source)) % 2 == odd
        carry: PointMap = linear_map(source[~left], target[~left])
        carry = after(carry) if callable(after) else carry
        out[left] = np.linalg.norm(carry(source[left]) - target[left], axis=1)
    return out


def main() -> None:
    """Carry the landmarks of the first case to all others and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    first, *others = read_manifest(args.manifest).split(args.split)
    marks = first.read_landmarks()
    image = fitting_image(first, marks.ndim)
    figures: dict[str, float] = {}
    for case in others:
        there = case.read_landmarks(marks.names)
        both = marks.defined & there.defined
        source, target, other = marks.points[both], there.points[both], fitting_image(case, marks.ndim)
        begun = time.process_time()
        errors = {
            "copied": np.linalg.norm(source - target, axis=1),
            "affine": halves(source, target),
            "registered": np.linalg.norm(registered(image, other, lambda world: world)(source) - target, axis=1),
            "affine_registered": halves(source, target, lambda f, other=other: registered(image, other, f)),
        }
        seconds = (time.process_time() - begun) / 3
        for way, e in errors.items():
            figures |= {f"{case.id}_{way}_mm": e.mean(), f"{case.id}_{way}_median_mm": np.median(e)}
        figures[f"{case.id}_cpu_s"] = seconds
        row = " | ".join(f"{e.mean():.2f} ({np.median(e):.2f})" for e in errors.values())
        print(f"| {case.id} | {row} | {seconds:.0f} |", flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"figures": {k: round(float(v), 4) for k, v in figures.items()}, "commit": commit}
    facts |= {"machine": platform.processor() or platform.machine(), "anatomark": anatomark.__version__}
    write_json(args.out, {**facts, "manifest": args.manifest.name, "split": args.split, "from": first.id})


if __name__ == "__main__":
    main()
