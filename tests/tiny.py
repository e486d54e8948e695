"""A method that learns in a second: two linear stages that regress points from a coarse grid of the image. For tests
of the engine; ``run`` is the command line with this method in its table."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anatomark import methods
from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import resample
from anatomark.methods.base import Batch, Evidence, Facts, Method, MethodConfig, Stage, Study


class TinyConfig(MethodConfig):
    side: int = 8
    width: int = 16
    dropout: float = 0.2
    ema: float | None = None
    collected: bool = False
    steps_rough: int = 30
    steps_fine: int = 20


class TinyFacts(Facts):
    size_mm: float


class Tiny(Method):
    Config = TinyConfig
    Facts = TinyFacts
    presets = {"recommended": {}, "small": {"side": 4}}
    READ = "image"  # the working image's name

    def __init__(self, config: TinyConfig, facts: TinyFacts):
        super().__init__()
        self.config, self.facts = config, facts
        self.size = facts.size_mm
        n = config.side**facts.ndim
        out = len(facts.names) * facts.ndim
        self.rough = nn.Sequential(nn.Linear(n, config.width), nn.Dropout(config.dropout), nn.Linear(config.width, out))
        self.fine = nn.Sequential(
            nn.Linear(n, config.width), nn.BatchNorm1d(config.width), nn.Linear(config.width, out)
        )
        nn.init.zeros_(self.fine[2].weight)
        nn.init.zeros_(self.fine[2].bias)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.begun: list[tuple[str, Evidence]] = []

    @classmethod
    def prepare(cls, config: TinyConfig, study: Study) -> TinyFacts:
        extent = max(float(c.image().grid.extent_mm.max()) for c in study.cases[:2])
        return TinyFacts(**study.facts(), size_mm=extent)

    def stages(self) -> list[Stage]:
        c = self.config
        return [
            Stage("rough", c.steps_rough, 4, lr=3e-3, modules=("rough",), ema=c.ema),
            Stage(
                "fine",
                c.steps_fine,
                4,
                lr=1e-3,
                schedule="constant",
                modules=("fine",),
                clip_norm=1.0,
                share=0.5,
                index=1,
            ),
        ]

    def begin(self, stage: Stage, evidence: Evidence) -> None:
        self.begun.append((stage.name, evidence))

    def working_images(self, image: Image) -> dict[str, Image]:
        scale = max(1e-6, float(np.abs(image.array).max()))
        return {self.READ: Image((image.array[:1] / scale).astype(np.float32), image.grid)}

    def _look(self, image: Image, shift: np.ndarray) -> torch.Tensor:
        d, side = image.ndim, self.config.side
        grid = Grid.centred((side,) * d, np.eye(d)[:, ::-1] * self.size / side, image.grid.centre + shift)
        return torch.from_numpy(resample(image, grid).array.ravel())

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        assert all(p.is_meta for p in self.parameters())
        image = case.images[self.READ]
        shift = rng.normal(0, 0.02 * self.size, image.ndim)
        target = (case.landmarks.points - image.grid.centre - shift) / self.size
        known = np.isfinite(target)
        return {
            "x": self._look(image, shift),
            "y": torch.from_numpy(np.where(known, target, 0)).float().ravel(),
            "mask": torch.from_numpy(known).float().ravel(),
        }

    def collect(self, cases: Sequence[Case], stage: Stage, rng: np.random.Generator) -> Iterator[Batch] | None:
        if not (self.config.collected and stage.index == 1):
            return None
        return self._collected(cases, stage, rng)

    def _collected(self, cases: Sequence[Case], stage: Stage, rng: np.random.Generator) -> Iterator[Batch]:
        from anatomark.training.examples import weightless

        maker = weightless(self)
        for _ in range(7):
            chosen = [maker.examples(cases[int(rng.integers(len(cases)))], stage, rng) for _ in range(stage.batch)]
            self.eval()
            with torch.no_grad():  # the current weights have a say
                hard = [float((self._points(e["x"][None])[0] - e["y"]).abs().mean()) for e in chosen]
            order = np.argsort(hard)
            yield {k: torch.stack([chosen[i][k] for i in order]) for k in chosen[0]}

    def _points(self, x: torch.Tensor) -> torch.Tensor:
        return self.rough(x) + self.fine(x)

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        out = self.rough(batch["x"]) if stage.index == 0 else self._points(batch["x"])
        error = ((out - batch["y"]) * batch["mask"]) ** 2
        return {"loss": error.sum() / batch["mask"].sum().clamp(min=1), "largest": error.detach().max()}

    def after_step(self, stage: Stage) -> None:
        self.seen += 1

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        x = self._look(self.working_images(image)[self.READ], np.zeros(image.ndim))
        y = self._points(x[None]).detach().double().numpy().reshape(len(self.facts.names), -1)
        cover = np.stack([np.eye(image.ndim)] * len(y))
        return Landmarks(
            tuple(self.facts.names), y * self.size + image.grid.centre, score=np.full(len(y), 0.93), covariance=cover
        )


def register() -> None:
    """Make the method known as ``tiny``."""
    methods.add("tiny", "tiny:Tiny")


def write_study(folder: Path, cases: int = 4, ndim: int = 3, splits: Sequence[str] = (), size: int = 24) -> Path:
    """Images with bright blobs at three landmarks, their ``.mrk.json`` / CSV, and the manifest, which is returned."""
    from anatomark.io.images import write_image
    from anatomark.io.landmarks import write_landmarks

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(cases):
        image, landmarks = blobs(k, ndim, size)
        name = f"case{k}"
        picture = f"{name}.nii.gz" if ndim == 3 else f"{name}.png"
        marks = f"{name}.mrk.json" if ndim == 3 else f"{name}.csv"
        write_image(image, folder / picture)
        write_landmarks(landmarks, folder / marks)
        split = splits[k] if k < len(splits) else "train"
        rows.append(
            {"case": name, "image": picture, "landmarks": marks, "split": split, "spacing": "2" if ndim == 2 else ""}
        )
    with open(folder / "cases.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "cases.csv"


def blobs(seed: int, ndim: int = 3, size: int = 24) -> tuple[Image, Landmarks]:
    """An image of 2 mm voxels with three blobs, and their centres."""
    rng = np.random.default_rng(seed)
    grid = Grid.from_axes((size,) * ndim, np.eye(ndim)[:, ::-1] * 2.0, np.zeros(ndim))
    base = np.array([[12.0, 14, 20], [30, 16, 24], [22, 34, 18]])[:, :ndim]
    points = base + rng.normal(0, 2, ndim) + rng.normal(0, 0.5, base.shape)
    world = grid.points()
    array = sum(np.exp(-((world - p) ** 2).sum(-1) / 60) * (100 + 50 * i) for i, p in enumerate(points))
    array = np.asarray(array) + rng.normal(0, 1, grid.shape)
    return Image(np.clip(array, 0, 255)[None].astype(np.uint8), grid), Landmarks(("a", "b", "c"), points)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def main() -> None:
    """The command line with this method known; ``TINY_SAVE_EVERY_S`` sets how often checkpoints are written."""
    from anatomark.cli.app import main as cli
    from anatomark.training import loop

    loop.SAVE_EVERY_S = float(os.environ.get("TINY_SAVE_EVERY_S", loop.SAVE_EVERY_S))
    sys.modules["tiny"] = sys.modules[__name__]
    register()
    cli()


if __name__ == "__main__":
    main()
