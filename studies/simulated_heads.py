"""Heads that templates do not show, with exact landmarks: to learn brains from, or to test them on.

From every training case of a manifest with the 32 anatomical fiducials, by turns: thick slices (3 to 6.5 mm), a brain
without its skull, a head cut off below or above, and heads of another shape (ventricles wider or narrower, occipital
horns longer or shorter), each with another contrast and noise. A skull is taken off with the mask of a case whose image
holds the brain alone, ``--brain``, carried by the landmarks.

    python studies/simulated_heads.py manifests/brain.csv --brain PD25 --each 6 --folder heads --out heads.json
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import common
from anatomark import Grid, Image, InputError, Landmarks
from anatomark.cases.case import Case
from anatomark.cases.manifest import read_manifest
from anatomark.core.resample import sample_index
from anatomark.core.warp import Warp
from anatomark.io.images import write_image
from anatomark.io.landmarks import write_landmarks
from anatomark.methods.kit.augment import random_bias
from anatomark.tools.register.thin_plate import ThinPlate

VENTRICLES = ("15", "16", "17", "18", "21", "22", "23", "24", "25", "26")
HORNS = ("29", "30")
REACH = 12.0  # mm, of a ventricle's change of width
HORN = 8.0  # mm, by which a horn's tip moves at most
Made = tuple[Image, Landmarks]


def thick(image: Image, marks: Landmarks, rng: np.random.Generator) -> Made:
    """Slices of 3 to 6.5 mm along a random axis of the grid, each the mean over its thickness."""
    axis, size = int(rng.integers(3)), float(rng.uniform(3, 6.5))
    block = max(1, round(size / image.grid.spacing[axis]))
    count = image.array.shape[axis + 1] // block
    kept = np.moveaxis(image.array[:1].astype(np.float32), axis + 1, 1)[:, : count * block]
    mean = np.moveaxis(kept.reshape(1, count, block, *kept.shape[2:]).mean(2), 1, axis + 1)
    affine = image.grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (block - 1) / 2
    affine[:3, axis] *= block
    return Image(np.ascontiguousarray(mean), Grid(mean.shape[1:], affine)), marks


def cut(image: Image, marks: Landmarks, rng: np.random.Generator) -> Made:
    """Without what lies below the lowest landmark, or above the highest, but for 5 to 25 mm."""
    z = marks.points[marks.defined, 2]
    down = bool(rng.random() < 0.5)
    at = z.min() - rng.uniform(5, 25) if down else z.max() + rng.uniform(5, 25)
    axis = int(np.abs(image.grid.axes[2]).argmax())  # the one that runs along the body
    heights = np.moveaxis(image.grid.points()[..., 2], axis, 0).mean((1, 2))
    rows = np.flatnonzero(heights >= at if down else heights <= at)
    array = image.array[:1].take(range(rows[0], rows[-1] + 1), axis + 1)
    affine = image.grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] * rows[0]
    return Image(np.ascontiguousarray(array), Grid(array.shape[1:], affine)), marks


def shaped(image: Image, marks: Landmarks, rng: np.random.Generator) -> Made:
    """Ventricles 40 % wider or 25 % narrower at most, the horns' tips up to 8 mm to the back or the front."""
    nodes = 48
    box = Grid.centred((nodes,) * 3, np.eye(3)[:, ::-1] * (260 / nodes), marks.points[marks.defined].mean(0))
    at, field = box.points(), np.zeros((*box.shape, 3))
    widen = float(rng.uniform(-0.25, 0.4))
    for name in VENTRICLES:
        off = at - marks[name]
        field -= widen * rng.uniform(0.5, 1) * off * np.exp(-0.5 * (off**2).sum(-1, keepdims=True) / (REACH / 2) ** 2)
    for name in HORNS:
        off = at - marks[name]
        move = np.array([rng.uniform(-2, 2), rng.uniform(-HORN, HORN), rng.uniform(-2, 2)])
        field -= move * np.exp(-0.5 * (off**2).sum(-1, keepdims=True) / REACH**2)
    warp = Warp(box, torch.from_numpy(np.moveaxis(field, -1, 0).astype(np.float32)))
    while warp.jacobian_minimum() < 0.2:
        warp = Warp(box, warp.field * 0.8)
    index = torch.from_numpy(image.grid.to_index(warp(image.grid.points())))
    tensor = torch.from_numpy(image.array[:1].astype(np.float32))
    out = sample_index(tensor, index, float(image.array.min())).numpy()
    return Image(out.astype(np.float32), image.grid), marks.with_points(warp.inverse(marks.points))


def stripped(brain: Case) -> Callable[[Image, Landmarks, np.random.Generator], Made]:
    """Without the skull, by the mask of ``brain`` carried along a thin-plate spline of the landmarks."""
    whole = brain.image()
    mask = Image((whole.array[:1] > 0).astype(np.float32), whole.grid)

    def made(image: Image, marks: Landmarks, rng: np.random.Generator) -> Made:
        carry = ThinPlate.fit(marks.points, brain.landmarks.select(marks.names).points)
        world = carry(image.grid.points().reshape(-1, 3)).reshape(*image.grid.shape, 3)
        inside = sample_index(torch.from_numpy(mask.array), torch.from_numpy(mask.grid.to_index(world)), 0.0).numpy()
        soft = F.avg_pool3d(torch.from_numpy(inside), 3, 1, 1).numpy() > 0.5
        return Image(np.where(soft, image.array[:1], image.array.min()).astype(np.float32), image.grid), marks

    return made


def recoloured(image: Image, rng: np.random.Generator) -> Image:
    """Another contrast (a random monotone curve), an uneven gain, and noise."""
    array = image.array[:1].astype(np.float32)
    low, high = np.percentile(array, (0.5, 99.5))
    x = np.clip((array - low) / max(1e-6, high - low), 0, 1.3)
    knots = np.cumsum(rng.uniform(0.4, 1.6, 6))
    y = np.interp(x, np.linspace(0, 1.3, 7), np.concatenate([[0], knots / knots[-1]]))
    y = y * random_bias(y.shape[1:], rng, 1.5).numpy()
    sd = float(rng.uniform(0, 0.04))
    noisy = np.hypot(y + rng.normal(0, sd, y.shape), rng.normal(0, sd, y.shape))  # Rician, as of magnitudes
    return Image(np.where(array > low, noisy, 0).astype(np.float32) * 1000, image.grid)


def main(given: Sequence[str] | None = None) -> None:
    """Make the heads, their landmarks and the manifest ``FOLDER/cases.csv`` with all of them."""
    parser = common.arguments(__doc__, "cases")
    parser.add_argument("--brain", required=True, metavar="CASE", help="whose image holds the brain alone")
    parser.add_argument("--each", type=int, default=6, help="new heads from a case")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--split", default="train")
    args = parser.parse_args(given)
    manifest = read_manifest(args.cases)
    brain = next((c for c in manifest.cases if c.id == args.brain), None)
    if brain is None:
        raise InputError(f"--brain {args.brain}: {args.cases} has no such case")
    if args.folder.exists():
        raise InputError(f"{args.folder}: exists already; choose another --folder")
    kinds = {"thick": thick, "stripped": stripped(brain), "cut": cut, "shaped": shaped}
    turns = ["thick", "stripped", "cut", *["shaped"] * max(1, args.each - 3)]
    args.folder.mkdir(parents=True)
    rows, counts = [], dict.fromkeys(kinds, 0)
    for at, case in enumerate(manifest.split(args.split)):
        image, marks = case.image(), case.landmarks
        for k in range(args.each):
            rng = np.random.default_rng([1804, at, k])
            kind = turns[k % len(turns)]
            kind = "shaped" if kind == "stripped" and case.id == brain.id else kind
            made, points = kinds[kind](image, marks, rng)
            name = f"{case.id}-{k}-{kind}"
            write_image(recoloured(made, rng), args.folder / f"{name}.nii.gz")
            write_landmarks(points, args.folder / f"{name}.mrk.json")
            rows.append([name, f"{name}.nii.gz", f"{name}.mrk.json", args.split])
            counts[kind] += 1
    with open(args.folder / "cases.csv", "w", newline="") as file:
        csv.writer(file).writerows([["case", "image", "landmarks", "split"], *rows])
    common.record(args.out, {"heads": len(rows), **counts})


if __name__ == "__main__":
    common.run(main)
