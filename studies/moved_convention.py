"""A refined 2D model that learned one observer's points, moved into the habits of the mean of all.

    python studies/moved_convention.py MODEL CASES.csv --learned senior --out MODEL2

An observer's habits are the median offset of his points, for each landmark over the **training** cases, in the frame of the
mean shape (``conventions.py`` measures the same along the image's axes). Each landmark has votes of its own in
the refiner, and a displacement that is added to all of them is a bias of its last layer: MODEL2 is MODEL but for two
numbers for each landmark, as fast, and no better or worse than the same training on the mean would be, whose truth differs from
``observers=combined`` by just this offset. Its radii and flag are still MODEL's: ``anatomark calibrate`` learns them anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import common
from anatomark import InputError
from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.shape import procrustes
from anatomark.io.tables import mean_of
from anatomark.model.refine.refiner import STRIDE, Refiner
from anatomark.model.run_folder import load_run, write_weights


def habits(cases: Sequence[Case], names: tuple[str, ...], learned: str, frame: Array) -> Array:
    """(N, D) mm in the frame of the mean shape ``frame`` (N, D): from the learned observer's points to the mean of all,
    median over the cases. Raises InputError where one lacks the observer."""
    away = []
    for case in cases:
        observers = case.observers(names)
        if learned not in observers:
            raise InputError(f"case {case.id!r}: has no observer {learned!r}; it has {', '.join(observers)}")
        own, mean = observers[learned].select(names).points, mean_of(observers).select(names).points
        pose = procrustes(frame, own)
        away.append(pose.invert(mean) - pose.invert(own))
    return np.asarray(np.nanmedian(away, 0))


def move(refiner: Refiner, offset: Array) -> None:
    """Add ``offset`` (N, 2) mm in the frame of the mean shape to what the last level answers."""
    cell = refiner.facts.levels[-1].spacing_mm * STRIDE
    with torch.no_grad():
        refiner.nets[-1].bias[:, 1:] += torch.from_numpy(offset / cell).float()


def main(given: Sequence[str] | None = None) -> None:
    """Write the model."""
    parser = common.arguments(__doc__, "model", "cases")
    parser.add_argument("--learned", required=True)
    args = parser.parse_args(given)
    run = load_run(args.model)
    composed = run.build()
    refiner = composed.refine
    if not isinstance(refiner, Refiner) or refiner.ndim != 2:
        raise InputError(f"{args.model}: is no 2D model with a refiner")
    names = tuple(refiner.names)
    offset = habits(common.cases_of(args.cases, "train"), names, args.learned, np.asarray(refiner.mean))
    move(refiner, offset)
    out = Path(args.out)
    shutil.copytree(run.folder, out, ignore=shutil.ignore_patterns("weights.safetensors", "last.ckpt", "cache"))
    write_weights(out, composed, half=run.config.weights == "half")
    lengths = np.linalg.norm(offset, axis=1)
    print(
        f"moved by {lengths.mean():.2f} mm on average, {names[int(lengths.argmax())]} by {lengths.max():.2f} mm: {out}"
    )


if __name__ == "__main__":
    common.run(main)
