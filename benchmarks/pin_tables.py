"""The kind of PIN's Tables 1 and 2 (Li et al. 2018) on mouse skulls (3D) and cephalograms (2D), at equal small budgets.

    python benchmarks/pin_tables.py --out tables.json [--data mouse_skull cephalogram] [--steps N | --seconds S]
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import manifests
from anatomark.core.image import Image
from anatomark.core.resample import resample
from anatomark.data.intensity import guess_modality, intensity_rule
from anatomark.engine.memory import keep_freed_memory
from anatomark.io.atomic import write_json, write_text
from anatomark.io.manifest import read_manifest
from anatomark.methods.base import Batch, Stage, Study, StudyCase, TrainingCase
from anatomark.methods.pin.published import PublishedConfig, PublishedPIN
from anatomark.methods.pin.working import to_voxels, working_grid
from anatomark.nets.pin import conv_dtype

PATCH_PX, BATCH, SHARED = 31, 32, 5  # SHARED single models share one budget


@dataclass(frozen=True)
class Data:
    """A data set's reduced setting; the first landmark is Table 1's. ``measured(i, id)``: not learned from."""

    short: str
    spacing_mm: float
    landmarks: tuple[str, ...]
    measured: Callable[[int, str], bool]
    split: str


DATA = {
    "mouse_skull": Data(
        "mouse",
        0.6,
        ("9", "21", "12", "1", "13"),  # spread over the skull: each the farthest from those before it
        lambda i, case: i % 4 == 3,
        "12 of the 16 training skulls to learn from, every fourth (4) to measure",
    ),
    "cephalogram": Data(
        "ceph",
        2.0,
        ("sella", "nasion", "menton", "gonion", "anterior nasal spine"),
        lambda i, case: int(case) > 120,
        "001-120 to learn from, 121-150 to measure, observer senior",
    ),
}


@dataclass(frozen=True)
class Job:
    """One training: settings of :class:`PublishedConfig`, and the rules to measure it with."""

    data: str
    seed: int
    name: str
    settings: dict[str, Any]
    rules: tuple[str, ...]
    early: bool = False  # measured after a fifth of the steps too

    @property
    def key(self) -> str:
        """What a line of the JSON-lines file is found by."""
        return f"{self.data}/{self.seed}/{self.name}"


@dataclass(frozen=True)
class Cases:
    """A data set on its working grid, in memory."""

    learn: list[TrainingCase]
    measure: list[TrainingCase]
    study: Study = field(repr=False)


def jobs_of(name: str, seed: int) -> list[Job]:
    """All trainings of one data set and seed."""
    marks = DATA[name].landmarks
    jobs = [
        Job(name, seed, f"classification {marks[0]}", single(marks[0], alpha=1.0), ("A",)),
        Job(name, seed, f"regression {marks[0]}", single(marks[0], alpha=0.0), ("B",)),
    ]
    for i, mark in enumerate(marks):
        rules: tuple[str, ...] = ("A", "B", "C", "c-pair") if i == 0 else ("C", "c-pair")
        jobs.append(Job(name, seed, f"joint {mark}", single(mark), rules, early=True))
    for variant, settings in VARIANTS.items():
        rules = ("B", "C", "c-pair")
        jobs.append(Job(name, seed, variant, {"mode": "multiple", "landmarks": list(marks), **settings}, rules))
    return jobs


def single(landmark: str, alpha: float = 0.5) -> dict[str, Any]:
    """Settings of one landmark's model."""
    return {"mode": "single", "landmarks": [landmark], "alpha": alpha}


VARIANTS: dict[str, dict[str, Any]] = {
    "multiple": {},
    "autoencoder": {"shape_model": "autoencoder"},
    "whiten": {"whiten": True},
    "multiscale": {"sampling": "multiscale"},
}


# ---------------------------------------------------------------------- data


@cache
def cases_of(name: str) -> Cases:
    """Reads a data set once in each process."""
    setting = DATA[name]
    with tempfile.TemporaryDirectory() as folder:
        table = manifests.SETS[name](manifests.data_folder() / name, Path(folder))
        chosen = [c for c in read_manifest(table).cases if c.split == "train"]
        marks = [c.read_landmarks() for c in chosen]
    cases = []
    for case, landmarks in zip(chosen, marks, strict=True):
        work = working_image(case.read_image(), setting.spacing_mm)
        cases.append(TrainingCase(case.id, {"work": work}, landmarks.select(setting.landmarks)))
    learn = [c for i, c in enumerate(cases) if not setting.measured(i, c.id)]
    measure = [c for i, c in enumerate(cases) if setting.measured(i, c.id)]
    images = [c.images["work"] for c in learn]
    modality = guess_modality(images)
    rule = intensity_rule(modality, images)
    study = Study([study_case(c) for c in learn], setting.landmarks, modality, rule)
    return Cases(learn, measure, study)


def working_image(image: Image, spacing_mm: float) -> Image:
    """One float32 channel on the grid that PIN would choose, so that it takes this image as it is."""
    image = image.canonical()
    image = Image(image.array.mean(0, keepdims=True, dtype=np.float32), image.grid)
    return resample(image, working_grid(image.grid, spacing_mm))


def study_case(case: TrainingCase) -> StudyCase:
    """The same case for ``prepare``."""
    return StudyCase(case.id, case.landmarks, lambda: case.images["work"])


# ---------------------------------------------------------------------- training


def build(job: Job, steps: int) -> PublishedPIN:
    """The untrained model of a job."""
    config = PublishedConfig(
        **job.settings,
        patch_px=PATCH_PX,
        spacing_mm=DATA[job.data].spacing_mm,
        intensity="study",
        batch=BATCH,
        steps=steps,
        seed=job.seed,
    )
    torch.manual_seed(job.seed)
    return PublishedPIN(config, PublishedPIN.prepare(config, cases_of(job.data).study))


def prepared(method: PublishedPIN, cases: Sequence[TrainingCase]) -> list[TrainingCase]:
    """The cases as this method reads them: its intensities, its landmarks."""
    return [
        TrainingCase(c.id, method.working_images(c.images["work"]), c.landmarks.select(method.names)) for c in cases
    ]


def batches(method: PublishedPIN, stage: Stage, cases: Sequence[TrainingCase], seed: int) -> Iterator[Batch]:
    """Endless batches, images drawn uniformly."""
    rng = np.random.default_rng([seed, 1])
    stream = method.collect(cases, stage, rng)
    if stream is not None:
        yield from stream
    while True:
        drawn = [method.examples(cases[k], stage, rng) for k in rng.integers(len(cases), size=stage.batch)]
        yield {key: torch.stack([d[key] for d in drawn]) for key in drawn[0]}


def train(method: PublishedPIN, job: Job, at: dict[int, Callable[[], None]]) -> float:
    """Adam at the constant published rate; calls ``at[step]`` after those steps. Seconds of training alone."""
    stage, spent = method.stages()[0], 0.0
    learn = prepared(method, cases_of(job.data).learn)
    method.begin(stage, {})
    optimizer = torch.optim.Adam(method.nets.parameters(), lr=stage.lr, fused=True)
    stream = batches(method, stage, learn, job.seed)
    for step in range(1, stage.steps + 1):
        began = time.perf_counter()
        method.nets.train()
        optimizer.zero_grad(set_to_none=True)
        method.loss(next(stream), stage)["loss"].backward()
        optimizer.step()
        spent += time.perf_counter() - began
        if step in at:
            at[step]()
    return spent


def run_job(job: Job, steps: int) -> dict[str, Any]:
    """Train and measure: one line of the JSON-lines file."""
    began = time.perf_counter()
    method = build(job, steps)
    record: dict[str, Any] = {"job": job.key, "errors": {}, "seconds": {}}

    def measure(prefix: str, rules: Sequence[str]) -> None:
        for rule in rules:
            method.config.rule = rule
            errors, seconds = measured(method, cases_of(job.data).measure)
            record["errors"][prefix + rule], record["seconds"][prefix + rule] = errors, seconds
        method.config.rule = "C"

    at = {max(1, steps // SHARED): lambda: measure("early ", ("C",))} if job.early else {}
    record["train_s"] = train(method, job, at)
    measure("", job.rules)
    record["total_s"] = time.perf_counter() - began
    return record


def measured(method: PublishedPIN, cases: Sequence[TrainingCase]) -> tuple[list[list[float]], float]:
    """Errors in mm by case and landmark, and mean seconds per image (already on the working grid)."""
    found, began = [], time.perf_counter()
    for case in cases:
        found.append(method.locate(case.images["work"]))
    seconds = (time.perf_counter() - began) / len(cases)
    return [f.errors_to(c.landmarks.select(f.names)).tolist() for f, c in zip(found, cases, strict=True)], seconds


def calibrated(names: Sequence[str], seconds: float) -> int:
    """Steps that the slowest data set's multiple model does in this time."""
    each = []
    for name in names:
        job = next(j for j in jobs_of(name, 0) if j.name == "multiple")
        train(build(job, 2), job, {})
        each.append(train(build(job, 10), job, {}) / 10)
    return max(SHARED, int(seconds / max(each)))


def start_worker() -> None:
    """Settings of a process that trains."""
    torch.set_num_threads(1)
    keep_freed_memory()


# ---------------------------------------------------------------------- baselines


def baselines(name: str) -> dict[str, np.ndarray]:
    """Errors (cases, landmarks) in mm of what no learning is needed for, and of a perfect search in the PCA."""
    cases, spacing = cases_of(name), DATA[name].spacing_mm
    method = build(next(j for j in jobs_of(name, 0) if j.name == "multiple"), 1)
    space = method.spaces[0]
    mean = space.decode(np.zeros((1, space.size)))[0]
    out: dict[str, list[np.ndarray]] = {"centre": [], "mean": [], "pca": []}
    for case in cases.measure:
        grid = case.images["work"].grid
        truth = to_voxels(grid, case.landmarks.points)
        state = space.encode(truth)
        assert state is not None  # every landmark is annotated in these cases
        centre = (np.array(grid.shape[::-1]) - 1) / 2
        for key, points in (("centre", centre), ("mean", mean), ("pca", space.decode(state[None])[0])):
            out[key].append(np.linalg.norm(points - truth, axis=1) * spacing)
    return {key: np.array(value) for key, value in out.items()}


# ---------------------------------------------------------------------- tables


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
        found = {"mm": self.errors.mean(), "sd_mm": spread(self.errors.ravel()), "s": self.seconds}
        if len(self.errors) > 1:
            found["seeds_sd_mm"] = spread(self.by_seed)
        return {f"{name}_{key}": round(float(value), 4) for key, value in found.items()}


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


def rows_of(name: str, records: dict[str, Any], seeds: int) -> tuple[dict[str, Row], dict[str, Row]]:
    """Rows of Table 1 and of Table 2."""
    marks = DATA[name].landmarks

    def row(trainings: Sequence[str], variant: str) -> Row:
        found = [[records[f"{name}/{seed}/{t}"] for t in trainings] for seed in range(seeds)]
        errors = [np.concatenate([np.array(r["errors"][variant]) for r in of_seed], 1) for of_seed in found]
        seconds = [sum(r["seconds"][variant] for r in of_seed) for of_seed in found]
        return Row(np.stack(errors), float(min(seconds)))

    one = {key: row([f"{t} {marks[0]}"], rule) for key, (t, rule, *_) in TABLE1.items()}
    joint = [f"joint {mark}" for mark in marks]
    two = {key: row(joint if t is None else [t], variant) for key, (t, variant, _) in TABLE2.items()}
    return one, two


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
        for k, mark in enumerate(DATA[name].landmarks):
            out[f"{short}_table2_{key}_{slug(mark)}_mm"] = round(float(row.errors[..., k].mean()), 4)
    for key, errors in baselines(name).items():
        if key != "pca":
            out[f"{short}_table1_{key}_mm"] = round(float(errors[:, 0].mean()), 4)
        out[f"{short}_table2_{key}_mm"] = round(float(errors.mean()), 4)
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
        f"Li et al. 2018, Tables 1 and 2, on our data with `PublishedPIN`: every model {s['steps']} optimiser steps of "
        f"{BATCH} examples (Adam 1e-3, constant) and {s['seeds']} seeds. This is a **reduced setting** of the paper's "
        f"(100,000 steps, patches of 101 pixels at 0.5 mm), the same in all rows: patches of {PATCH_PX} pixels on a "
        "coarser grid, as said below, and intensities normalised by percentiles (the paper: none). Errors: mean ± SD "
        "over images (and landmarks), all seeds pooled; then the mean of each seed. Seconds per image, for "
        f"all landmarks of the row, on {s['threads']} CPU thread, without reading and resampling, in the fastest seed: "
        "to be compared with each other only. The test cases of the data sets were not read.",
        "",
        "The figures compare losses, rules and models under one small budget; they are not what a PIN trained to the "
        "end reaches.",
    ]
    for name, (one, two) in tables.items():
        lines += section(name, one, two, results["figures"])
    reproduce = f"python benchmarks/pin_tables.py --out pin_tables.json --steps {s['steps']} --seeds {s['seeds']}"
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
        f"**Table 1**, landmark {setting.landmarks[0]}:",
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
        f"Better than the training mean: {', '.join(better) or 'none'}.",
        "",
        f"**Table 2**, landmarks {', '.join(setting.landmarks)} (paper: single 6.42 mm in 0.94 s, multiple 5.59 mm in "
        "0.44 s, ten landmarks); rule C unless said:",
        "",
        f"| model | error mm | by seed | s per image | {' | '.join(setting.landmarks)} |",
        "|---|---|---|---|" + "---|" * len(setting.landmarks),
    ]
    for key, row in two.items():
        each = " | ".join(f"{v:.2f}" for v in row.errors.mean((0, 1)))
        out.append(f"| {TABLE2[key][2]} | {cell(row)} | {each} |")
    plain = {key: two[key] for key, (_, variant, _) in TABLE2.items() if variant.endswith("C")}
    blank = " |" * (2 + len(setting.landmarks))
    out += [
        f"| training mean (start b = 0), no learning | {f['table2_mean_mm']:.2f} |{blank}",
        f"| image centre, no learning | {f['table2_centre_mm']:.2f} |{blank}",
        f"| true points projected onto the PCA: its floor | {f['table2_pca_mm']:.2f} |{blank}",
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
        sys.exit(f"{path}: was begun with other settings ({kept}); remove it or choose another --out")
    return steps, {line["job"]: line for line in lines[1:]}


def commit() -> str:
    """The checkout's commit, empty where there is none."""
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=manifests.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", choices=tuple(DATA), default=list(DATA))
    parser.add_argument("--steps", type=int, help="optimiser steps for every model")
    parser.add_argument("--seconds", type=float, default=25, help="per training, where --steps is not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, a thread each")
    options = parser.parse_args()
    there = [n for n in options.data if (manifests.data_folder() / n).is_dir()]
    for name in options.data:
        if name not in there:
            print(f"skipped {name}: there is no folder {manifests.data_folder() / name} (set ANATOMARK_DATA)")
    if not there:
        return 0
    options.data = there
    start_worker()
    lines = options.out.with_name(options.out.name + "l")
    steps, records = settle(lines, options)
    jobs = [job for seed in range(options.seeds) for name in there for job in jobs_of(name, seed)]
    todo = [job for job in jobs if job.key not in records]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), start_worker) as pool:
        # one at a time needs no second process, which would read the data again
        each = pool.map if options.jobs > 1 else map
        for record in each(run_job, todo, [steps] * len(todo)):
            records[record["job"]] = record
            append(lines, record)
            print(f"{len(records)}/{len(jobs)} {record['job']}: {record['total_s']:.1f} s", flush=True)
    tables = {name: rows_of(name, records, options.seeds) for name in there}
    figures = {k: v for name in there for k, v in figures_of(name, *tables[name]).items()}
    settings = {"steps": steps, "batch": BATCH, "seeds": options.seeds, "patch_px": PATCH_PX, "threads": 1}
    settings |= {f"{DATA[n].short}_spacing_mm": DATA[n].spacing_mm for n in there} | {"convolutions": str(conv_dtype())}
    results = {"figures": figures, "settings": settings, "torch": torch.__version__, "commit": commit()}
    write_json(options.out, results)
    write_text(options.out.with_name(options.out.name + ".md"), markdown(results, tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
