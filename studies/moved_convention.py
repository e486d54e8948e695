"""A model that learned one observer's points, moved into the habits of the mean of all.

    python studies/moved_convention.py MODEL CASES.csv --learned senior --out MODEL2

An observer's habits are the median offset of his points, for each landmark over the cases that MODEL **learned from**
(not those that its training held out), in the frame of the mean shape (``conventions.py`` measures the same along the
image's axes). MODEL2 is MODEL with these offsets as ``settle`` in its plan.json, which are added to what it finds. Its
radii and flag are still MODEL's: ``anatomark calibrate MODEL2 CASES_MEAN.csv --out MODEL3`` learns them anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import common
from anatomark import InputError
from anatomark.cases.case import Case
from anatomark.cases.division import read_division
from anatomark.core.grid import Array
from anatomark.core.shape import procrustes
from anatomark.io.atomic import write_json
from anatomark.io.tables import mean_of
from anatomark.model.run_files import write_list
from anatomark.model.run_folder import load_run
from anatomark.model.settle import SettleFacts


def habits(cases: Sequence[Case], names: tuple[str, ...], learned: str, frame: Array) -> Array:
    """(N, D) mm in the frame of the mean shape ``frame`` (N, D): from the learned observer's points to the mean of all,
    median over the cases. Raises InputError where one lacks the observer."""
    away = []
    for case in cases:
        observers = case.observers(names)
        if learned not in observers:
            raise InputError(f"case {case.id!r}: has no observer {learned!r}; it has {', '.join(observers)}")
        own, mean = observers[learned].select(names).points, mean_of(observers).select(names).points
        both = np.all([np.isfinite(o.select(names).points).all(1) for o in observers.values()], 0)
        own = np.where(both[:, None], own, np.nan)
        pose = procrustes(frame, own)
        away.append(pose.invert(mean) - pose.invert(own))
    seen = np.isfinite(away).all(2).any(0)
    if not seen.all():
        raise InputError(f"no case in which all observers placed {names[int(np.argmin(seen))]!r}")
    return np.asarray(np.nanmedian(away, 0))


def main(given: Sequence[str] | None = None) -> None:
    """Write the model."""
    parser = common.arguments(__doc__, "model", "cases")
    parser.add_argument("--learned", required=True)
    args = parser.parse_args(given)
    run = load_run(args.model)
    if run.plan.settle is not None:
        raise InputError(f"{args.model}: settles on a mean shape already")
    names, frame = tuple(run.plan.names), np.asarray(run.plan.method.mean_shape)
    config = run.config
    division = read_division(args.cases, names=names, val_fraction=config.val_fraction, seed=config.seed)
    offset = habits(division.train, names, args.learned, frame)
    settle = SettleFacts(mean_shape=frame.tolist(), weight=1, offset_mm=offset.tolist())
    out = Path(args.out)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another --out")
    shutil.copytree(run.folder, out)
    write_json(out / "plan.json", replace(run.plan, settle=settle).to_json())
    write_list(out)
    lengths = np.linalg.norm(offset, axis=1)
    most = int(lengths.argmax())
    print(f"moved by {lengths.mean():.2f} mm on average, {names[most]} by {lengths[most]:.2f} mm: {out}")


if __name__ == "__main__":
    common.run(main)
