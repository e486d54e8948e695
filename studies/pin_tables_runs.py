"""The trainings of ``pin_tables.py``: reduced settings, data, one training with its errors, baselines."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from anatomark import Image
from anatomark.cases.case import Case
from anatomark.core.resample import resample
from anatomark.methods.base import Batch, Evidence, Stage, Study
from anatomark.methods.kit.working import working_grid
from anatomark.methods.pin.paper import PaperPIN, PaperPINConfig, to_voxels
from anatomark.model.memory import keep_freed_memory
from data import data_folder
from manifests import SETS

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
    """One training: settings of :class:`PaperPINConfig`, and the rules to measure it with."""

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

    learn: list[Case]
    measure: list[Case]
    study: Study = field(repr=False)


def jobs_of(name: str, seed: int) -> list[Job]:
    """All trainings of one data set and seed."""
    landmarks = DATA[name].landmarks
    jobs = [
        Job(name, seed, f"classification {landmarks[0]}", single(landmarks[0], alpha=1.0), ("A",)),
        Job(name, seed, f"regression {landmarks[0]}", single(landmarks[0], alpha=0.0), ("B",)),
    ]
    for i, landmark in enumerate(landmarks):
        rules: tuple[str, ...] = ("A", "B", "C", "c-pair") if i == 0 else ("C", "c-pair")
        jobs.append(Job(name, seed, f"joint {landmark}", single(landmark), rules, early=True))
    for variant, settings in VARIANTS.items():
        rules = ("B", "C", "c-pair")
        jobs.append(Job(name, seed, variant, {"mode": "multiple", "landmarks": list(landmarks), **settings}, rules))
    return jobs


def multiple_of(name: str) -> Job:
    """The first seed's multiple model."""
    return next(job for job in jobs_of(name, 0) if job.name == "multiple")


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
        chosen = common.cases_of(SETS[name](data_folder() / name, Path(folder)), "train")
        chosen = common.select(chosen, setting.landmarks)
    cases = [replace(c, held=working_image(c.image(), setting.spacing_mm)) for c in chosen]
    learn = [c for i, c in enumerate(cases) if not setting.measured(i, c.id)]
    measure = [c for i, c in enumerate(cases) if setting.measured(i, c.id)]
    return Cases(learn, measure, common.study_of(learn))


def working_image(image: Image, spacing_mm: float) -> Image:
    """One float32 channel on the grid that PIN would choose, so that it takes this image as it is."""
    image = image.canonical()
    image = Image(image.array.mean(0, keepdims=True, dtype=np.float32), image.grid)
    return resample(image, working_grid(image.grid, spacing_mm))


# ---------------------------------------------------------------------- training


def build(job: Job, steps: int) -> PaperPIN:
    """The untrained model of a job."""
    config = PaperPINConfig(
        **job.settings,
        patch_px=PATCH_PX,
        spacing_mm=DATA[job.data].spacing_mm,
        intensity="study",
        batch=BATCH,
        steps=steps,
        seed=job.seed,
    )
    torch.manual_seed(job.seed)
    return PaperPIN(config, PaperPIN.prepare(config, cases_of(job.data).study))


def prepared(method: PaperPIN, cases: Sequence[Case]) -> list[Case]:
    """The cases as this method reads them: its intensities, its landmarks."""
    return [replace(c, images=method.working_images(c.image()), given=c.landmarks.select(method.names)) for c in cases]


def batches(method: PaperPIN, stage: Stage, cases: Sequence[Case], seed: int) -> Iterator[Batch]:
    """Endless batches, images drawn uniformly."""
    rng = np.random.default_rng([seed, 1])
    stream = method.collect(cases, stage, rng)
    if stream is not None:
        yield from stream
    while True:
        drawn = [method.examples(cases[k], stage, rng) for k in rng.integers(len(cases), size=stage.batch)]
        yield {key: torch.stack([d[key] for d in drawn]) for key in drawn[0]}


def train(method: PaperPIN, job: Job, at: dict[int, Callable[[], None]]) -> float:
    """Adam at the constant published rate; calls ``at[step]`` after those steps. Seconds of training alone."""
    stage, spent = method.stages()[0], 0.0
    learn = prepared(method, cases_of(job.data).learn)
    method.begin(stage, Evidence())
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


def measured(method: PaperPIN, cases: Sequence[Case]) -> tuple[list[list[float]], float]:
    """Errors in mm by case and landmark, and mean seconds per image (already on the working grid)."""
    located, seconds = common.timed(lambda: [method.locate(case.image()) for case in cases])
    errors = [a.errors_to(c.landmarks.select(a.names)).tolist() for a, c in zip(located, cases, strict=True)]
    return errors, seconds / len(cases)


def calibrated(names: Sequence[str], seconds: float) -> int:
    """Steps that the slowest data set's multiple model does in this time."""
    each = []
    for name in names:
        job = multiple_of(name)
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
    method = build(multiple_of(name), 1)
    space = method.spaces[0]
    mean = space.decode(np.zeros((1, space.size)))[0]
    out: dict[str, list[np.ndarray]] = {"centre": [], "mean": [], "pca": []}
    for case in cases.measure:
        grid = case.image().grid
        truth = to_voxels(grid, case.landmarks.points)
        state = space.encode(truth)
        assert state is not None  # every landmark is annotated in these cases
        centre = (np.array(grid.shape[::-1]) - 1) / 2
        for key, points in (("centre", centre), ("mean", mean), ("pca", space.decode(state[None])[0])):
            out[key].append(np.linalg.norm(points - truth, axis=1) * spacing)
    return {key: np.array(value) for key, value in out.items()}
