"""Other tools and ours on the same images, truth, minutes and cores: see README.md beside this.

    python studies/peers/compare.py CASES.csv --python PEERS/bin/python --minutes 10 --threads 1 --work DIR --out F.json

2D manifests. Of each: ``mm`` (mean over landmarks and test cases), ``sdr2`` (share within 2 mm), ``seconds`` (median of
an image, reading included), ``gb`` (most memory), ``lines`` (what a user writes), ``minutes`` of training.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.model.predict import load

PEERS = ("landmarker_unet", "dlib_trees")
OURS = 2  # lines: fit, predict


def prepared(cases: Sequence[Case], folder: Path, split: str) -> list[dict[str, Any]]:
    """Images as 8-bit PNG and points as (y, x) pixels, for tools that read nothing else."""
    rows = []
    for case in cases:
        image, path = case.image().canonical(), (folder / f"{case.id}.png").resolve()
        low, high = np.quantile(image.array[0], [0.001, 0.999])
        Picture.fromarray((np.clip((image.array[0] - low) / (high - low), 0, 1) * 255).astype(np.uint8)).save(path)
        row: dict[str, Any] = {"case": case.id, "image": str(path)}
        if split == "train":
            row["points"] = image.grid.to_index(case.landmarks.points).tolist()
        rows.append(row)
    (folder / f"{split}.json").write_text(json.dumps(rows))
    return rows


def measured(points: dict[str, Array], cases: Sequence[Case]) -> dict[str, float]:
    """Errors of world points (N, 2) by case."""
    apart = np.stack([np.linalg.norm(points[c.id] - c.landmarks.points, axis=1) for c in cases])
    return {"mm": float(np.nanmean(apart)), "sdr2": float(np.nanmean(apart[np.isfinite(apart)] <= 2))}


def ran(command: Sequence[object], threads: int) -> tuple[float, float]:
    """Minutes and GB that a program took. Raises RuntimeError with its last words."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
    began = time.monotonic()
    with subprocess.Popen(
        [*map(str, command)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as p:
        assert p.stderr is not None
        said = p.stderr.read()
        _, status, used = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
    if p.returncode:
        raise RuntimeError(said.decode(errors="replace")[-2000:])
    return (time.monotonic() - began) / 60, used.ru_maxrss * 1024 / 1e9


def lines_of(script: Path) -> int:
    """Of code between the two marks."""
    text = re.split(r"^# ---- .*$", script.read_text(), flags=re.M)[1]
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


def main(given: Sequence[str] | None = None) -> None:
    """Prepare, run all, measure all."""
    parser = common.arguments(__doc__, "cases")
    parser.add_argument("--python", type=Path, required=True, help="of the environment that has the peers")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["anatomark", *PEERS])
    args = parser.parse_args(given)
    args.work.mkdir(parents=True, exist_ok=True)
    every = common.cases_of(args.cases)
    train, test = ([c for c in every if c.split in wanted] for wanted in (("train", "val"), ("test",)))
    prepared(train, args.work, "train")
    prepared(test, args.work, "test")
    results: dict[str, Any] = {}
    for name in args.only:
        if name == "anatomark":
            run = args.work / "ours"
            command = [sys.executable, "-m", "anatomark", "fit", args.cases, "--out", run, "--minutes", args.minutes]
            minutes, gb = ran([*command, "--threads", args.threads], args.threads)
            model, times, points = load(run, threads=args.threads), [], {}
            for case in test:
                began = time.perf_counter()
                answer = model.predict(case.image())
                times.append(time.perf_counter() - began)
                points[case.id] = answer.landmarks.select(case.landmarks.names).points
            facts = {"seconds": float(np.median(times)), "lines": OURS}
        else:
            script = Path(__file__).with_name(f"{name}.py")
            minutes, gb = ran([args.python, script, args.work, args.minutes, args.threads], args.threads)
            answer = json.loads((args.work / f"{name}.json").read_text())
            grids = {c.id: c.image().canonical().grid for c in test}
            points = {k: grids[k].to_world(np.array(at, float)) for k, at in answer.pop("points").items()}
            facts = {**answer, "lines": lines_of(script)}
        results[name] = {"minutes": minutes, "gb": gb, **facts, **measured(points, test)}
        results[name] = {k: common.rounded_figure(v) for k, v in results[name].items()}
        print(name, results[name], flush=True)
    figures = {f"{name}_{k}": v for name, row in results.items() for k, v in row.items()}
    common.record(args.out, figures, data=args.cases.stem, threads=args.threads)


if __name__ == "__main__":
    common.run(main)
