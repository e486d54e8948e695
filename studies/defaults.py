"""What does the default `fit` give on a data set, beside answers that cost nothing, and beside single methods?

    python studies/defaults.py CASES.csv --minutes 10 --work DIR --out FILE.json
        [--first N ...] [--methods auto pin "heatmap tree" ...] [--without CASE ...] [--threads 2]

For each number N of training cases (the first ones; 0: all) and each method (`auto` is what `fit` does by itself; a
second word is the preset) a model is trained for so many minutes and looks at the test split. A training that is there
already is not repeated; the file is written anew after each. Of a row: ``error`` (mean over cases, mm), beside
``mean_position`` and ``mean_shape`` (of the training cases, placed perfectly by a similarity); ``square`` (2D: mean
squared error of a coordinate relative to the image's size); ``auroc`` (how well suspicion finds the tenth of cases with
the largest error; not of a single case), ``flagged_worst`` and ``flagged_others`` (shares of that tenth and of the
rest that are flagged); ``inside90`` (share of points within their 90 % radius); ``seconds`` (median of a prediction).
``--without``: test cases whose truth is known to be wrong; a second set of figures leaves them out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import anatomark
import common
from anatomark import Landmarks
from anatomark.cases.case import Case
from anatomark.cases.manifest import read_manifest
from anatomark.core.grid import Array
from anatomark.core.shape import mean_shape, robust_pose
from anatomark.evaluation.metrics import area_under_roc
from anatomark.io.atomic import read_json
from anatomark.model.config import make_config, read_config
from anatomark.model.predict import load
from anatomark.model.prediction import Prediction
from learning_curve import subset


def trained(manifest: Path, method: str, minutes: float, run: Path, threads: int) -> float:
    """The minutes that a training took; NaN for one that is there already."""
    if (run / "weights.safetensors").exists():
        return float("nan")
    began = time.monotonic()
    name, _, preset = method.partition(" ")
    given: dict[str, Any] = {} if name == "auto" else {"method": name, "preset": preset or None}
    anatomark.fit(
        manifest, run, make_config(None, [f"threads={threads}"], **given, minutes=minutes), resume=run.exists()
    )
    return (time.monotonic() - began) / 60


def error(found: Landmarks, truth: Landmarks) -> float:
    """Of a case: the mean over its landmarks, mm."""
    return float(np.nanmean(found.errors_to(truth)))


def figures(cases: Sequence[Case], found: dict[str, Prediction], train: Sequence[Case]) -> dict[str, Any]:
    """The figures of the module's docstring for some cases of the test."""
    names = train[0].landmarks.names
    shapes = np.stack([c.landmarks.select(names).points for c in train])
    ndim = shapes.shape[2]
    mean, _ = mean_shape(shapes)
    position = np.nanmean(shapes - np.stack([c.grid(ndim).centre for c in train])[:, None], 0)
    rows: list[list[float]] = []
    squares: list[Array] = []
    inside: list[Array] = []
    for case in cases:
        truth, grid = case.landmarks.select(names), case.grid(ndim)
        landmarks = found[case.id].landmarks.select(names)
        placed = robust_pose(mean, truth.points).apply(mean)
        free = [truth.with_points(points + 0 * truth.points) for points in (position + grid.centre, placed)]
        rows.append([error(points, truth) for points in (landmarks, *free)])
        size = (np.array(grid.shape) * grid.spacing)[::-1]
        squares.append(((landmarks.points - truth.points) / size).ravel() ** 2)
        if landmarks.radius90 is not None:
            apart = landmarks.errors_to(truth)
            known = np.isfinite(apart) & np.isfinite(landmarks.radius90)
            inside.append((apart <= landmarks.radius90)[known])
    errors = np.array([r[0] for r in rows])
    out = {"error": errors.mean(), "median": np.median(errors), "p95": np.quantile(errors, 0.95)}
    out |= {"mean_position": np.mean([r[1] for r in rows]), "mean_shape": np.mean([r[2] for r in rows])}
    if ndim == 2:
        out["square"] = np.nanmean(np.concatenate(squares))
    worst = errors >= np.quantile(errors, 0.9)
    flagged = np.array([bool(found[c.id].flags) for c in cases])
    suspicion = [found[c.id].suspicion for c in cases]
    if all(s is not None for s in suspicion) and not worst.all():
        out["auroc"] = area_under_roc(np.array(suspicion, dtype=float), worst)
    out |= {"flagged_worst": flagged[worst].mean()}
    if not worst.all():
        out["flagged_others"] = flagged[~worst].mean()
    if inside:
        out["inside90"] = np.concatenate(inside).mean()
    out["seconds"] = np.median([found[c.id].seconds for c in cases])
    return {k: round(float(v), 5) for k, v in out.items()}


def looked(run: Path, cases: Sequence[Case]) -> dict[str, Prediction]:
    """The model's predictions, timed."""
    model, out = load(run), {}
    for case in cases:
        image = case.image()
        began = time.perf_counter()
        prediction = model.predict(image)
        out[case.id] = replace(prediction, seconds=time.perf_counter() - began)
    return out


def main(given: Sequence[str] | None = None) -> None:
    """Train, look, and write the rows."""
    parser = common.arguments(__doc__, "cases")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--first", type=int, nargs="*", default=[0])
    parser.add_argument("--methods", nargs="*", default=["auto"])
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(given)
    args.work.mkdir(parents=True, exist_ok=True)
    for count in args.first:
        manifest = subset(args.cases, count) if count else args.cases
        for method in args.methods:
            run = args.work / f"{args.cases.stem}_{count or 'all'}_{method.replace(' ', '_')}_{args.minutes:g}min"
            took = trained(manifest, method, args.minutes, run, args.threads)
            every = read_manifest(manifest, need_landmarks=True, check_images=False).cases
            train, test = ([c for c in every if c.split == s] for s in ("train", "test"))
            found = looked(run, test)
            config = read_config(run / "config.yaml")
            row: dict[str, Any] = {
                "data": args.cases.stem,
                "cases": len(train),
                "method": method,
                "minutes": args.minutes,
            }
            row |= {"took": common.rounded_figure(took), "chosen": f"{config.method.name} {config.method.preset}"}
            row |= {"align": config.align.enabled, "refine": config.refine.enabled, "tried": config.reasons}
            row |= {"settled": read_json(run / "plan.json")["facts"].get("settle", {}).get("weight", 1.0)}
            row |= figures(test, found, train)
            if args.without:
                kept = [c for c in test if c.id not in args.without]
                row["without"] = figures(kept, found, train)
            print({k: v for k, v in row.items() if k != "tried"}, flush=True)
            rows = read_json(args.out)["rows"] if args.out.exists() else []
            key = ("data", "cases", "method", "minutes")
            rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
            numbers = {f"{r['data']}_{r['cases']}_{r['method']}_{r['minutes']:g}min": r["error"] for r in rows}
            common.record(args.out, numbers, rows=rows)


if __name__ == "__main__":
    common.run(main)
