"""How well points are carried between images that share them: what ``anatomark simulate --points`` relies on.

From the manifest's first case of a split to each other one, mean and median distance in mm to landmarks that were not
used: copied as they lie; by the affine map of the other half of the landmarks; by registration of the images from
where they lie; by registration from that affine map, which is what simulate does.

    python studies/carried_points.py CASES.csv [--split train] --out FILE.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

import common
from anatomark.core.grid import Array
from anatomark.tools.simulate.spread import PointMap, deformable_map, linear_map


def halves(source: Array, target: Array, after: Callable[[PointMap], PointMap] = lambda carry: carry) -> Array:
    """(N,) mm: each landmark carried by a map that was fitted to the other half of them and refined by ``after``."""
    out = np.empty(len(source))
    for odd in (0, 1):
        left = np.arange(len(source)) % 2 == odd
        carry = after(linear_map(source[~left], target[~left]))
        out[left] = np.linalg.norm(carry(source[left]) - target[left], axis=1)
    return out


def main(given: Sequence[str] | None = None) -> None:
    """Carry the landmarks of the first case to all others and write the figures."""
    args = common.arguments(__doc__, "cases", split="train").parse_args(given)
    first, *others = common.cases_of(args.cases, args.split)
    here, image = first.landmarks, first.image()
    figures: dict[str, float] = {}
    for case in others:
        there, other = case.landmarks.select(here.names), case.image()
        both = here.defined & there.defined
        source, target = here.points[both], there.points[both]
        begun = time.process_time()
        errors = {
            "copied": np.linalg.norm(source - target, axis=1),
            "affine": halves(source, target),
            "registered": np.linalg.norm(deformable_map(image, other, lambda world: world)(source) - target, axis=1),
            "affine_registered": halves(source, target, lambda f, other=other: deformable_map(image, other, f)),
        }
        seconds = (time.process_time() - begun) / 3
        for way, e in errors.items():
            figures |= {f"{case.id}_{way}_mm": e.mean(), f"{case.id}_{way}_median_mm": np.median(e)}
        figures[f"{case.id}_cpu_s"] = seconds
        row = " | ".join(f"{e.mean():.2f} ({np.median(e):.2f})" for e in errors.values())
        print(f"| {case.id} | {row} | {seconds:.0f} |", flush=True)
    common.record(args.out, figures, manifest=args.cases.name, split=args.split, first=first.id)


if __name__ == "__main__":
    common.run(main)
