"""How many training cases does each method need? The same short training for all numbers, tested on the same images.

    python studies/learning_curve.py --manifests DIR --work DIR --out FILE.json --plot FILE.png
        [--only cephalogram|mouse_skull] [--methods pin global_to_local t2dl] [--threads 1]

``DIR`` holds ``cephalogram.csv`` and ``mouse_skull.csv`` of ``studies/manifests.py``. For 15, 50, 150 cephalograms
and 5, 10, 16 skulls (the first ones of the training split) each method's recommended preset, without the refiner, is
trained for :data:`STEPS` steps, about three minutes on one core, and evaluated on the test split. A training that is
there already is not repeated; the file is written anew after each. That is far too little for the best of any method:
compare, do not quote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anatomark
import common
from anatomark.io.atomic import read_json
from anatomark.io.sheets import read_sheet
from anatomark.model.config import make_config
from manifests import write_table

SIZES = {"cephalogram": (15, 50, 150), "mouse_skull": (5, 10, 16)}
METHODS = ("pin", "global_to_local", "t2dl")
STEPS = {  # what three minutes gave on one of two busy cores
    "cephalogram": {
        "pin": {"context": 476, "level1": 103, "level2": 129, "level3": 120},
        "global_to_local": {"global": 1854},
        "t2dl": {"patches": 1397, "joint": 2125},
    },
    "mouse_skull": {
        "pin": {"context": 540, "level1": 107, "level2": 137},
        "global_to_local": {"global": 667},
        "t2dl": {"patches": 620, "joint": 964},
    },
}


def subset(manifest: Path, count: int) -> Path:
    """The first ``count`` training cases and all of the test cases, as a manifest beside ``manifest``."""
    table = read_sheet(manifest)
    rows = [row for _, row in table.rows]
    train = [r for r in rows if r["split"] == "train"][:count]
    kept = [*train, *(r for r in rows if r["split"] != "train")]
    path = manifest.with_name(f"{manifest.stem}_first{count}.csv")
    return write_table(path, table.columns, [list(r.values()) for r in kept])


def measured(manifest: Path, method: str, count: int, work: Path, threads: int) -> dict[str, Any]:
    """Train and evaluate one of the points; what is there already is read."""
    name = f"{manifest.stem}_{method}_{count}"
    cases = subset(manifest, count)
    run = work / name
    if not (run / "weights.safetensors").exists():
        # the few cases are all for training: nothing here is chosen by validation
        wanted = ["val_fraction=0", "refine.enabled=false", "workers=0", f"threads={threads}", "weights=half"]
        config = make_config(None, wanted, method=method)
        config = config.model_copy(update={"stage_steps": STEPS[manifest.stem][method]})
        anatomark.fit(cases, run, config, resume=run.exists())
    if not (work / f"{name}_test" / "summary.json").exists():
        anatomark.evaluate(run, cases, work / f"{name}_test", split="test", overwrite=True)
    summary = read_json(work / f"{name}_test" / "summary.json")
    return {"data": manifest.stem, "method": method, "cases": count, "mre_mm": summary["mre_mm"], "summary": name}


def main(given: Sequence[str] | None = None) -> None:
    """Measure every point that is missing, and draw the plot."""
    parser = common.arguments(__doc__)
    parser.add_argument("--manifests", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(given)
    args.work.mkdir(parents=True, exist_ok=True)
    points = read_points(args.out)
    for data in args.only:
        for count in SIZES[data]:
            for method in args.methods:
                point = measured(args.manifests / f"{data}.csv", method, count, args.work, args.threads)
                points = read_points(args.out)  # another process may measure the other data
                points = [p for p in points if (p["data"], p["method"], p["cases"]) != (data, method, count)]
                points.append(point)
                figures = {f"{p['data']}_{p['method']}_{p['cases']}_mm": p["mre_mm"] for p in points}
                common.record(args.out, figures, cores=os.cpu_count(), points=points)
    if args.plot:
        draw(points, args.plot)


def read_points(out: Path) -> list[dict[str, Any]]:
    """What was measured before."""
    return read_json(out)["points"] if out.exists() else []


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Error against training cases, one panel per data set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = [d for d in SIZES if any(p["data"] == d for p in points)]
    figure, axes = plt.subplots(1, len(sets), figsize=(4.6 * len(sets), 3.6), squeeze=False)
    for axis, data in zip(axes[0], sets, strict=True):
        for method, colour in zip(METHODS, ("#0f766e", "#b45309", "#1d4ed8"), strict=True):
            own = sorted((p["cases"], p["mre_mm"]) for p in points if (p["data"], p["method"]) == (data, method))
            if own:
                axis.plot(*zip(*own, strict=True), "o-", color=colour, label=method)
        axis.set(title=data, xlabel="training cases", ylabel="mean radial error, mm", xscale="log", yscale="log")
        ticks = sorted({p["cases"] for p in points if p["data"] == data})
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        low, high = axis.get_ylim()
        marks = [t for t in (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20) if low <= t <= high]
        axis.set_yticks(marks, [f"{t:g}" for t in marks])
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    common.run(main)
