"""Does the review flag find what goes wrong, and leave alone what does not?

    python studies/trust.py MODEL CASES.csv --out FILE.json
        [--split test] [--wrong IMAGE ...] [--most 40] [--repeats 1] [--turn]

MODEL is a run folder with a reference (``reference.safetensors``). Every case of the split is predicted as it is: the
share that is flagged or refused there is of false flags, and ``auroc_worst_decile`` says how well suspicion, the mean
radius and both find the tenth of cases with the largest mean error (null below 20 cases). In at most ``--most`` of them
failures are induced: cut along its axes so that 20 to 50 % of the landmarks are gone; noise of a quarter of the values'
range; contrast inverted and bent, as another modality would look; ``--turn``: turned by 45 degrees about its middle,
for models that know no such poses. ``--wrong``: images of something else (a 3D image is projected along its three axes
for a 2D model). A refusal counts as found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import common
from anatomark import Grid, Image, InputError, Landmarks, load, read_image
from anatomark.cases.case import Case
from anatomark.core.resample import resample
from anatomark.core.shape import rotation_from_vector
from anatomark.evaluation.metrics import area_under_roc
from anatomark.model.confidence.presence_trials import random_crop
from anatomark.model.model import Model

NOISE, TURN = 0.25, 45.0
ENOUGH = 20  # cases without which a worst decile says nothing
Break = Callable[[Image, Landmarks, np.random.Generator], Image]


def cropped(image: Image, truth: Landmarks, rng: np.random.Generator) -> Image:
    """Cut so that 20 to 50 % of the landmarks are absent."""
    return random_crop(image, truth, rng)[0]


def noisy(image: Image, truth: Landmarks, rng: np.random.Generator) -> Image:
    """Gaussian noise in every voxel."""
    low, high = np.percentile(image.subsample(), [1, 99])
    values = image.array + rng.normal(0, NOISE * (high - low), image.array.shape)
    return Image(values.astype(np.float32), image.grid, image.meta)


def other_modality(image: Image, truth: Landmarks, rng: np.random.Generator) -> Image:
    """Foreground inverted and bent; the background stays dark."""
    low, high = np.percentile(image.subsample(), [1, 99])
    x = np.clip((image.array.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    values = np.where(x > 0.08, (1 - x) ** float(rng.uniform(0.7, 1.4)), x)
    return Image(values.astype(np.float32), image.grid, image.meta)


def turned(image: Image, truth: Landmarks, rng: np.random.Generator) -> Image:
    """Turned about the image's middle; what comes in from outside is as dark as the darkest."""
    axis = rng.normal(size=image.ndim * 2 - 3)  # in 2D its sign alone counts
    turn = rotation_from_vector(axis / np.linalg.norm(axis) * np.radians(TURN))
    grid = Grid.centred(image.grid.shape, turn @ image.grid.axes, image.grid.centre)
    there = resample(image, grid, fill=float(image.subsample().min()))
    return Image(there.array, image.grid, image.meta)


def wrong(model: Model, paths: Sequence[Path]) -> Iterator[tuple[str, Image]]:
    """Images of something else, as the model can read them."""
    for path in paths:
        image = read_image(path, 1.0 if path.suffix in (".png", ".jpg") else None)
        if image.ndim == model.ndim:
            yield path.name, image
        elif model.ndim == 2:
            for axis in range(3):
                flat = image.array.mean(axis + 1, dtype=np.float32)
                assert model.run.review is not None  # main has seen to it
                mm = np.delete(np.linalg.norm(image.grid.axes, axis=0), axis)
                # of the size of what the model knows, so that size alone does not give it away
                size = model.run.review.reference.radius * 2.4 / (np.array(flat.shape[1:]) * mm).max()
                grid = Grid.centred(flat.shape[1:], np.diag(mm * size)[:, ::-1], np.zeros(2))
                yield f"{path.name} along {axis}", Image(flat, grid)


@dataclass(frozen=True)
class Judged:
    """What a model says of an image: why it is flagged (a refusal is a flag), and its landmarks unless refused."""

    flags: tuple[str, ...]
    suspicion: float
    landmarks: Landmarks | None = None


def judged(model: Model, image: Image) -> Judged:
    """A prediction, or a refusal."""
    try:
        prediction = model.predict(image)
    except InputError as error:
        return Judged((f"refused: {error}",), float("inf"))
    return Judged(tuple(prediction.flags), float(prediction.suspicion), prediction.landmarks)


@dataclass
class Tally:
    """What was judged so far. Of each case as it is: ``suspicion``, mean ``radius`` and ``error`` in mm (NaN where it
    was refused), and why it was flagged; of each kind of failure whether it was found; and those that were missed."""

    suspicion: list[float] = field(default_factory=list)
    radius: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    flagged: dict[str, list[Any]] = field(default_factory=dict)
    induced: dict[str, list[bool]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def clean(self, model: Model, name: str, image: Image, truth: Landmarks) -> None:
        """Judge a case as it is."""
        verdict = judged(model, image)
        landmarks, radius, error = verdict.landmarks, np.nan, np.nan
        if landmarks is not None:
            error = float(np.nanmean(landmarks.errors_to(truth)))
            radius = np.nan if landmarks.radius90 is None else float(np.nanmean(landmarks.radius90))
        self.suspicion.append(verdict.suspicion)
        self.radius.append(radius)
        self.error.append(error)
        if verdict.flags:
            self.flagged[name] = [None if landmarks is None else round(error, 3), *verdict.flags]

    def failure(self, model: Model, kind: str, name: str, image: Image) -> None:
        """Judge what should be flagged."""
        verdict = judged(model, image)
        self.induced.setdefault(kind, []).append(bool(verdict.flags))
        self.missed += [] if verdict.flags else [f"{name} {kind}: {verdict.suspicion:.1f}"]
        print(name, kind, bool(verdict.flags), verdict.flags[:2], flush=True)

    def figures(self) -> dict[str, float]:
        """Shares and areas under the curve; NaN where too few cases support one."""
        every = [x for v in self.induced.values() for x in v]
        return {
            "cases": len(self.error), "false_flags": len(self.flagged) / len(self.error),
            **{f"found_{k.replace(' ', '_')}": float(np.mean(v)) for k, v in self.induced.items()},
            "found_of_all_induced": float(np.mean(every)) if every else float("nan"), **self._areas(),
        }  # fmt: skip

    def _areas(self) -> dict[str, float]:
        there = np.isfinite(self.error)
        suspicion, radius, error = (np.array(v)[there] for v in (self.suspicion, self.radius, self.error))
        ranks = {"suspicion": suspicion, "mean radius": radius}
        if np.isfinite(radius).all() and np.isfinite(suspicion).all():
            ranks["both"] = np.argsort(np.argsort(suspicion)) + np.argsort(np.argsort(radius))
        enough = len(error) >= ENOUGH
        worst = error >= np.quantile(error, 0.9) if enough else there[:0]
        return {
            f"auroc_worst_decile_{k.replace(' ', '_')}": area_under_roc(v, worst) if enough else float("nan")
            for k, v in ranks.items()
        }


def induce(model: Model, tally: Tally, case: Case, n: int, kinds: Mapping[str, Break], repeats: int) -> None:
    """Judge the ``n``-th case broken in each of the ways; one that cannot be broken so is left out."""
    image, truth = case.image(), case.landmarks.select(model.names)
    for kind, r in itertools.product(kinds, range(repeats)):
        try:
            broken = kinds[kind](image, truth, np.random.default_rng([5, n, r]))
        except InputError:
            continue
        tally.failure(model, kind, case.id, broken)


def main(given: Sequence[str] | None = None) -> None:
    """Judge every case and what was made of it, and write the figures."""
    parser = common.arguments(__doc__, "model", "cases", split="test")
    parser.add_argument("--wrong", type=Path, nargs="*", default=[], metavar="IMAGE")
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=1, help="of each kind of failure in each case")
    parser.add_argument("--turn", action="store_true")
    args = parser.parse_args(given)
    model = load(args.model)
    if not isinstance(model, Model) or model.run.review is None:
        raise InputError(f"{args.model} has no reference of its training images; anatomark calibrate makes one")
    cases = common.cases_of(args.cases, args.split)
    kinds: dict[str, Break] = {"cropped": cropped, "noise": noisy, "other modality": other_modality}
    kinds |= {"turned": turned} if args.turn else {}
    every, tally = max(1, len(cases) // args.most), Tally()
    for n, case in enumerate(cases):
        tally.clean(model, case.id, case.image(), case.landmarks.select(model.names))
        print(n + 1, case.id, f"{tally.suspicion[-1]:.1f}", flush=True)
        if n % every == 0:
            induce(model, tally, case, n, kinds, args.repeats)
    for name, image in wrong(model, args.wrong):
        tally.failure(model, "wrong anatomy", name, image)
    induced = {k: len(v) for k, v in tally.induced.items()}
    facts = {"model": Path(args.model).name, "split": args.split, "induced": induced}
    common.record(args.out, tally.figures(), **facts, flagged=tally.flagged, missed=tally.missed)


if __name__ == "__main__":
    common.run(main)
