"""How many wrong annotations are found, and how many right ones are named? Seeded errors of known kinds.

    python studies/wrong_annotations.py CASES.csv --split train --out FILE.json [--cases 40] [--rounds 5] [--seed 0]

``named_clean``: share of the cases that are named as they are; the first ``--cases`` of the split are taken, or all.
Then each kind of error is put into a tenth of the cases, ``--rounds`` times: ``swap`` (two neighbours change labels),
``block`` (a landmark and its three nearest lie elsewhere, by half of the shape's radius), ``point_N`` (one landmark is
off by N times its usual residual), ``mirror`` (x has the other sign). ``found_*``: share of the wrong cases that are
named, with a label that is wrong; ``false_*``: share of the other cases that are named and were not when clean;
``left_out_*``: share of the wrong points that ``fit`` would leave out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

import common
from anatomark import Landmarks
from anatomark.cases.look.distrust import certain_errors
from anatomark.cases.look.medians import distance
from anatomark.cases.look.shape_check import ShapeStudy
from anatomark.cases.look.suspects import suspects
from anatomark.core.grid import Array

Spoil = Callable[[Array, np.random.Generator], list[int]]  # changes a shape (N, D) and returns what it changed
TIMES_USUAL = (5, 10, 20)


def named(names: Sequence[str], shapes: Array) -> list[set[str]]:
    """The labels that are named of each case."""
    found = suspects([str(m) for m in range(len(shapes))], [Landmarks(tuple(names), one) for one in shapes]).suspects
    return [{label for one in found if one.case == str(m) for label in one.labels} for m in range(len(shapes))]


def kinds(typical: Array) -> dict[str, Spoil]:
    """The kinds of error; ``typical`` (N,) mm is the usual residual of each landmark."""

    def marked(shape: Array, rng: np.random.Generator) -> tuple[int, list[int]]:
        """A landmark and all others, the nearest first."""
        seen = np.flatnonzero(np.isfinite(shape).all(1))
        i = int(rng.choice(seen))
        return i, [int(j) for j in seen[np.argsort(distance(shape[seen], shape[i]))] if j != i]

    def off(rng: np.random.Generator, shape: Array, mm: float) -> Array:
        direction = rng.normal(size=shape.shape[1])
        return np.asarray(direction / np.linalg.norm(direction) * mm)

    def swap(shape: Array, rng: np.random.Generator) -> list[int]:
        i, others = marked(shape, rng)
        j = int(rng.choice(others[:5]))
        shape[[i, j]] = shape[[j, i]]
        return [i, j]

    def block(shape: Array, rng: np.random.Generator) -> list[int]:
        i, others = marked(shape, rng)
        moved = [i, *others[:3]]
        shape[moved] += off(rng, shape, 0.5 * float(np.nanmax(distance(shape, np.nanmean(shape, 0)))))
        return moved

    def point(times: float) -> Spoil:
        def spoil(shape: Array, rng: np.random.Generator) -> list[int]:
            i, _ = marked(shape, rng)
            shape[i] += off(rng, shape, times * float(typical[i]))
            return [i]

        return spoil

    def mirror(shape: Array, rng: np.random.Generator) -> list[int]:
        shape[:, 0] *= -1
        return list(range(len(shape)))

    return {"swap": swap, "block": block, "mirror": mirror} | {f"point_{t}": point(t) for t in TIMES_USUAL}


def measure(names: Sequence[str], shapes: Array, rounds: int, seed: int) -> dict[str, float]:
    """The figures of the docstring for ``shapes`` (M, N, D) world mm, NaN = missing."""
    began = time.process_time()
    clean = named(names, shapes)
    figures = {"seconds": time.process_time() - began, "named_clean": float(np.mean([bool(c) for c in clean]))}
    for number, (kind, spoil) in enumerate(kinds(ShapeStudy(shapes).typical).items()):
        found, false, left_out = [], [], []
        for turn in range(rounds):
            rng = np.random.default_rng([seed, number, turn])
            spoiled = shapes.copy()
            chosen = rng.choice(len(shapes), max(1, len(shapes) // 10), replace=False)
            wrong = {int(m): spoil(spoiled[m], rng) for m in chosen}
            said, certain = named(names, spoiled), certain_errors(spoiled)
            found += [bool(said[m] & {names[i] for i in points}) for m, points in wrong.items()]
            false += [bool(said[m]) and not clean[m] for m in range(len(shapes)) if m not in wrong]
            left_out += [certain[m][points].mean() for m, points in wrong.items()]
        shares = {"found": found, "false": false, "left_out": left_out}
        figures |= {f"{what}_{kind}": float(np.mean(share)) for what, share in shares.items()}
    return figures


def main(given: Sequence[str] | None = None) -> None:
    """Measure on one split and write the figures."""
    parser = common.arguments(__doc__, "cases", split="train")
    parser.add_argument("--cases", type=int, default=10_000, dest="most", help="at most, the first ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(given)
    cases = common.cases_of(args.cases, args.split)[: args.most]
    names = cases[0].landmarks.names
    shapes = np.stack([case.landmarks.select(names).points for case in cases])
    settings = {"rounds": args.rounds, "seed": args.seed}
    figures = measure(names, shapes, **settings)
    common.record(args.out, figures, manifest=args.cases.name, split=args.split, cases=len(cases), **settings)


if __name__ == "__main__":
    common.run(main)
