"""The kind of PIN's Tables 1 and 2 (Li et al. 2018) on mouse skulls (3D) and cephalograms (2D), at equal small budgets.

    python studies/pin_tables.py --out FILE.json [--data mouse_skull cephalogram] [--steps N | --seconds S]
                                    [--seeds 3] [--jobs 1]

Table 1: training losses against update rules for one landmark. Table 2: five single-landmark models against one model
with a shape model, and our variants of that one. All models of a run get the same number of optimiser steps and the
same batch: ``--steps``, or as many as the slower multiple model does in ``--seconds``. The setting is a reduced one of
the paper's (patch, working grid, steps), the same in all rows; the released test cases are not read: part of the
training cases is measured. Data: see ``manifests.py``.

Each finished training is one line of ``<out>.jsonl``; the same command again goes on from there. At the end: ``<out>``
with flat figures and ``<out>.md``, the tables.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from anatomark import InputError
from anatomark.io.atomic import write_text
from anatomark.methods.pin.paper_net import conv_dtype
from data import data_set
from pin_tables_runs import (
    BATCH,
    DATA,
    PATCH_PX,
    baselines,
    build,
    calibrated,
    jobs_of,
    multiple_of,
    run_job,
    start_worker,
)


@dataclass(frozen=True)
class Row:
    """Errors (seeds, cases, landmarks) in mm and seconds per image, of the seed with the least."""

    errors: np.ndarray
    seconds: float

    @property
    def by_seed(self) -> np.ndarray:
        """(seeds,) mean error."""
        return np.asarray(self.errors.mean((1, 2)))

    def figures(self, name: str) -> dict[str, float]:
        """Mean, SD over images and landmarks, SD between the seeds' means, seconds."""
        own = {"mm": self.errors.mean(), "sd_mm": spread(self.errors.ravel()), "s": self.seconds}
        if len(self.errors) > 1:
            own["seeds_sd_mm"] = spread(self.by_seed)
        return {f"{name}_{key}": float(value) for key, value in own.items()}


def spread(values: np.ndarray) -> float:
    """Standard deviation (n - 1)."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


TABLE1 = {  # row: (training, rule, in words, Li et al.'s error in mm and seconds)
    "classification_A": ("classification", "A", "classification, rule A", "7.53 mm, 3.56 s"),
    "regression_B": ("regression", "B", "regression, rule B", "6.45 mm, 0.09 s"),
    "joint_A": ("joint", "A", "both, rule A", "6.34 mm, 3.50 s"),
    "joint_B": ("joint", "B", "both, rule B", "6.08 mm, 0.09 s"),
    "joint_C": ("joint", "C", "both, rule C", "5.47 mm, 0.09 s"),
    "joint_pair": ("joint", "c-pair", "both, rule C-pair (ours)", "-"),
}
PAPER_ORDER = ("joint_C", "joint_B", "joint_A", "regression_B", "classification_A")
SHORT_NAMES = {
    "joint_C": "C+R C",
    "joint_B": "C+R B",
    "joint_A": "C+R A",
    "regression_B": "R B",
    "classification_A": "C A",
    "joint_pair": "C+R C-pair",
}
NONE_BETTER = "none, so the order here tells how far each has come in these steps, not where it ends"
TABLE2 = {  # row: (training or None for the five single ones, prefix and rule, in words)
    "single": (None, "C", "single: 5 models, each the full budget"),
    "single_pair": (None, "c-pair", "single, rule C-pair (ours)"),
    "single_shared": (None, "early C", "single_shared: 5 models, each a fifth of the budget"),
    "multiple": ("multiple", "C", "multiple: 1 model, PCA"),
    "multiple_B": ("multiple", "B", "multiple, rule B"),
    "multiple_pair": ("multiple", "c-pair", "multiple, rule C-pair (ours)"),
    "autoencoder": ("autoencoder", "C", "autoencoder in place of the PCA"),
    "autoencoder_pair": ("autoencoder", "c-pair", "autoencoder, rule C-pair (ours)"),
    "whiten": ("whiten", "C", "whiten: multiple, b in standard deviations (ours)"),
    "whiten_B": ("whiten", "B", "whiten, rule B (ours)"),
    "whiten_pair": ("whiten", "c-pair", "whiten, rule C-pair (ours)"),
    "multiscale": ("multiscale", "C", "multiscale: multiple, half the states near the truth (ours)"),
    "multiscale_pair": ("multiscale", "c-pair", "multiscale, rule C-pair (ours)"),
}


def complete(name: str, records: dict[str, Any], most: int, trainings: Sequence[str]) -> int:
    """Seeds, from 0 on, of which all these trainings are finished."""
    done = [all(f"{name}/{seed}/{t}" in records for t in trainings) for seed in range(most)]
    return done.index(False) if False in done else most


def rows_of(name: str, records: dict[str, Any], most: int) -> tuple[dict[str, Row], dict[str, Row]]:
    """Rows of Table 1 and of Table 2, each of the seeds that are complete for it; empty without any."""
    landmarks = DATA[name].landmarks
    first = {key: ([f"{t} {landmarks[0]}"], rule) for key, (t, rule, *_) in TABLE1.items()}
    joint = [f"joint {landmark}" for landmark in landmarks]
    second = {key: (joint if t is None else [t], variant) for key, (t, variant, _) in TABLE2.items()}

    def rows(wanted: dict[str, tuple[list[str], str]]) -> dict[str, Row]:
        seeds = complete(name, records, most, [t for trainings, _ in wanted.values() for t in trainings])
        return {key: row(*value, seeds) for key, value in wanted.items()} if seeds else {}

    def row(trainings: Sequence[str], variant: str, seeds: int) -> Row:
        by_seed = [[records[f"{name}/{seed}/{t}"] for t in trainings] for seed in range(seeds)]
        errors = [np.concatenate([np.array(r["errors"][variant]) for r in own], 1) for own in by_seed]
        seconds = [sum(r["seconds"][variant] for r in own) for own in by_seed]
        return Row(np.stack(errors), float(min(seconds)))

    return rows(first), rows(second)


def slug(text: str) -> str:
    """A landmark's name inside a figure's name."""
    return "".join(c if c.isalnum() else "_" for c in text)


def figures_of(name: str, one: dict[str, Row], two: dict[str, Row]) -> dict[str, float]:
    """Flat figures of one data set."""
    short, out = DATA[name].short, dict[str, float]()
    for table, rows in (("table1", one), ("table2", two)):
        for key, row in rows.items():
            out |= row.figures(f"{short}_{table}_{key}")
    for key, row in two.items():
        for k, landmark in enumerate(DATA[name].landmarks):
            out[f"{short}_table2_{key}_{slug(landmark)}_mm"] = float(row.errors[..., k].mean())
    for key, errors in baselines(name).items():
        if key != "pca":
            out[f"{short}_table1_{key}_mm"] = float(errors[:, 0].mean())
        out[f"{short}_table2_{key}_mm"] = float(errors.mean())
    out[f"{short}_table2_pca_modes"] = float(build(multiple_of(name), 1).spaces[0].size)
    out[f"{short}_table1_paper_pairs_in_order"] = float(sum(pairs_in_order(one)))
    return out


def pairs_in_order(one: dict[str, Row]) -> list[bool]:
    """For each two of the paper's five rows: do their means stand in the paper's order?"""
    mean = [one[key].errors.mean() for key in PAPER_ORDER]
    return [mean[i] < mean[j] for i in range(len(mean)) for j in range(i + 1, len(mean))]


def ordering(rows: dict[str, Row], names: dict[str, str]) -> str:
    """``a 1.00 < b 1.20 (2/3) < ...``: from the smallest mean, and in how many seeds each step is in that order."""
    order = sorted(rows, key=lambda key: rows[key].errors.mean())
    text = f"{names[order[0]]} {rows[order[0]].errors.mean():.2f}"
    for a, b in pairwise(order):
        agree = int((rows[a].by_seed < rows[b].by_seed).sum())
        text += f" < {names[b]} {rows[b].errors.mean():.2f} ({agree}/{len(rows[b].by_seed)})"
    return text


def cell(row: Row) -> str:
    """``mean ± SD | seeds | seconds``."""
    seeds = ", ".join(f"{v:.2f}" for v in row.by_seed)
    return f"{row.errors.mean():.2f} ± {spread(row.errors.ravel()):.2f} | {seeds} | {row.seconds:.3f}"


def markdown(results: dict[str, Any], tables: dict[str, tuple[dict[str, Row], dict[str, Row]]]) -> str:
    """The tables and computed sentences, ready to read."""
    s = results["settings"]
    lines = [
        "# PIN's published tables, in kind",
        "",
        f"Li et al. 2018, Tables 1 and 2, on our data with `PaperPIN`: every model {s['steps']} optimiser steps of "
        f"{BATCH} examples (Adam 1e-3, constant), seed after seed. This is a **reduced setting** of the paper's "
        f"(100,000 steps, patches of 101 pixels at 0.5 mm), the same in all rows: patches of {PATCH_PX} pixels on a "
        "coarser grid, as said below, and intensities normalised by percentiles (the paper: none). Errors: mean ± SD "
        "over images (and landmarks), all seeds pooled; then the mean of each seed. Seconds per image, for "
        f"all landmarks of the row, on {s['threads']} CPU thread, without reading and resampling, in the fastest seed: "
        "to be compared with each other only. The test cases of the data sets were not read.",
        "",
        "The figures compare losses, rules and models under one small budget; they are not what a PIN trained to the "
        "end reaches. Rows closer together than one row's own seeds are not told apart. Nothing keeps an iteration "
        "inside the image (as published), so a badly trained model can end far outside.",
    ]
    for name, (one, two) in tables.items():
        lines += section(name, one, two, results["figures"])
    reproduce = f"python studies/pin_tables.py --out pin_tables.json --steps {s['steps']}"
    return "\n".join([*lines, "", f"Reproduce: `{reproduce}`.", ""])


def section(name: str, one: dict[str, Row], two: dict[str, Row], figures: dict[str, float]) -> list[str]:
    """One data set's tables."""
    setting = DATA[name]
    f = {key.removeprefix(setting.short + "_"): value for key, value in figures.items()}
    words1 = {key: words for key, (_, _, words, _) in TABLE1.items()}
    paper = {key: value for key, (*_, value) in TABLE1.items()}
    mean_mm, side_mm = f["table1_mean_mm"], PATCH_PX * setting.spacing_mm
    better = [words1[key] for key, row in one.items() if row.errors.mean() < mean_mm]
    out = [
        "",
        f"## {name}",
        "",
        f"Working grid {setting.spacing_mm:g} mm, so a patch is {side_mm:.0f} mm wide; {setting.split}.",
        "",
        f"**Table 1**, landmark {setting.landmarks[0]}, {len(one['joint_C'].errors)} seeds:",
        "",
        "| loss, rule | error mm | by seed | s per image | paper (fetal head) |",
        "|---|---|---|---|---|",
        *(f"| {words1[key]} | {cell(row)} | {paper[key]} |" for key, row in one.items()),
        f"| training mean, no learning | {mean_mm:.2f} | | | |",
        f"| image centre (the first start), no learning | {f['table1_centre_mm']:.2f} | | | |",
        "",
        f"Order in the paper: {' < '.join(SHORT_NAMES[k] for k in PAPER_ORDER)}. Here: "
        f"{ordering(one, SHORT_NAMES)}; in brackets, in how many seeds the two neighbours stand so. Of the "
        f"paper's ten pairs {sum(pairs_in_order(one))} are in its order. "
        f"Better than the training mean: {'; '.join(better) or NONE_BETTER}.",
        "",
        f"**Table 2**, landmarks {', '.join(setting.landmarks)} (paper: single 6.42 mm in 0.94 s, multiple 5.59 mm in "
        f"0.44 s, ten landmarks); rule C unless said; {len(two['multiple'].errors)} seeds:",
        "",
        f"| model | error mm | by seed | s per image | {' | '.join(setting.landmarks)} |",
        "|---|---|---|---|" + "---|" * len(setting.landmarks),
    ]
    for key, row in two.items():
        each = " | ".join(f"{v:.2f}" for v in row.errors.mean((0, 1)))
        out.append(f"| {TABLE2[key][2]} | {cell(row)} | {each} |")
    plain = {key: two[key] for key, (_, variant, _) in TABLE2.items() if variant.endswith("C")}
    floor = f"true points projected onto the PCA ({f['table2_pca_modes']:.0f} modes): its floor"
    blank = " |" * (2 + len(setting.landmarks))
    out += [
        f"| training mean (start b = 0), no learning | {f['table2_mean_mm']:.2f} |{blank}",
        f"| image centre, no learning | {f['table2_centre_mm']:.2f} |{blank}",
        f"| {floor} | {f['table2_pca_mm']:.2f} |{blank}",
        "",
        f"Order in the paper: multiple < single. Here, with rule C: {ordering(plain, {key: key for key in plain})}; in "
        "brackets as above.",
    ]
    return out


# ---------------------------------------------------------------------- the run


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished trainings; a last line that was cut short is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return [json.loads(line) for line in whole.splitlines()]


def append(path: Path, record: dict[str, Any]) -> None:
    """One line, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def settle(path: Path, options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Steps for every model, and the trainings that ``path`` holds already; a new file gets its first line here."""
    lines = read_lines(path)
    fixed = {"patch_px": PATCH_PX, "batch": BATCH, "spacing_mm": {n: d.spacing_mm for n, d in DATA.items()}}
    if not lines:
        steps = options.steps or calibrated(options.data, options.seconds)
        append(path, {"settings": {"steps": steps, **fixed}})
        return steps, {}
    kept = lines[0]["settings"]
    steps = options.steps or kept["steps"]
    if kept != {"steps": steps, **fixed}:
        raise InputError(f"{path}: was begun with other settings ({kept}); remove it or choose another --out")
    return steps, {line["job"]: line for line in lines[1:]}


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, and write figures and tables."""
    parser = common.arguments(__doc__)
    parser.add_argument("--data", nargs="+", choices=tuple(DATA), default=list(DATA))
    parser.add_argument("--steps", type=int, help="optimiser steps for every model")
    parser.add_argument("--seconds", type=float, default=25, help="per training, where --steps is not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, a thread each")
    parser.add_argument("--tables", action="store_true", help="train nothing: tables of the seeds that are complete")
    options = parser.parse_args(given)
    options.data = [name for name in options.data if data_set(name) is not None]
    if not options.data:
        return
    start_worker()
    lines = options.out.with_name(options.out.name + "l")
    steps, records = settle(lines, options)
    jobs = [job for seed in range(options.seeds) for name in options.data for job in jobs_of(name, seed)]
    todo = [job for job in jobs if job.key not in records and not options.tables]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), start_worker) as pool:
        # one at a time needs no second process, which would read the data again
        each = pool.map if options.jobs > 1 else map
        for record in each(run_job, todo, [steps] * len(todo)):
            records[record["job"]] = record
            append(lines, record)
            print(f"{len(records)}/{len(jobs)} {record['job']}: {record['total_s']:.1f} s", flush=True)
    tables = {name: rows_of(name, records, options.seeds) for name in options.data}
    tables = {name: both for name, both in tables.items() if all(both)}
    figures = {k: v for name in tables for k, v in figures_of(name, *tables[name]).items()}
    settings: dict[str, Any] = {"steps": steps, "batch": BATCH, "patch_px": PATCH_PX, "threads": 1}
    for name in tables:
        short = DATA[name].short
        settings[f"{short}_spacing_mm"] = DATA[name].spacing_mm
        for k, rows in enumerate(tables[name], 1):
            settings[f"{short}_table{k}_seeds"] = len(next(iter(rows.values())).errors)
    settings["convolutions"] = str(conv_dtype(torch.device("cpu")))
    common.record(options.out, figures, settings=settings)
    text = markdown({"figures": figures, "settings": settings}, tables)
    write_text(options.out.with_name(options.out.name + ".md"), text)


if __name__ == "__main__":
    common.run(main)
