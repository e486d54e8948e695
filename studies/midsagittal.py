"""The mid-sagittal plane of Colin27 turned by 15 degrees, found by the bundled brain model, against the experts' one.

The head is turned both ways about each scanner axis and about four seeded ones, each time in two ways: in the header
(the voxels stay), and resampled onto the original grid (the head moves in the picture). Angle in degrees; offset in mm
at the middle of the true slice, and the mean over it; the planes of the ready definition brain-afids.

    python studies/midsagittal.py [MODEL] [--data DIR] --out FILE.json
"""

from __future__ import annotations

import argparse
import platform
import subprocess
from pathlib import Path

import numpy as np

import anatomark
from anatomark import Grid, Image, Landmarks, load, read_image, read_landmarks
from anatomark.core.resample import resample
from anatomark.core.shape import Pose, rotation_from_vector
from anatomark.demo import DATA, PERSON
from anatomark.io.atomic import write_json
from anatomark.tools.definitions import read_definition
from anatomark.tools.planes.errors import plane_rows
from anatomark.tools.planes.schema import PlaneSet

DEGREES, SEEDED, SEED = 15.0, 4, 15


def turns(centre: np.ndarray) -> dict[str, Pose]:
    """Rotations about ``centre``, by name."""
    axes = {f"{'+-'[i % 2]}{'xyz'[i // 2]}": np.eye(3)[i // 2] * (1, -1)[i % 2] for i in range(6)}
    drawn = np.random.default_rng(SEED).normal(size=(SEEDED, 3))
    axes |= {f"seeded{i}": v / np.linalg.norm(v) for i, v in enumerate(drawn)}
    rotations = {name: rotation_from_vector(np.radians(DEGREES) * v) for name, v in axes.items()}
    return {name: Pose(r, centre - r @ centre) for name, r in rotations.items()}


def turned(image: Image, pose: Pose) -> Image:
    """The same voxels on a turned grid."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = pose.rotation, pose.translation
    return Image(image.array, Grid(image.grid.shape, affine @ image.grid.affine), image.meta)


def main() -> None:
    """Find the landmarks in every turn and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="brain-afids")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder with {PERSON}_T1w.nii.gz, {PERSON}_afids.fcsv")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, planes = load(args.model), read_definition("brain-afids", PlaneSet, "planes")
    image = read_image(args.data / f"{PERSON}_T1w.nii.gz")
    marks = read_landmarks(args.data / f"{PERSON}_afids.fcsv")
    truth: dict[str, Landmarks] = {"straight": marks}
    found: dict[str, Landmarks | None] = {"straight": model.predict(image)}
    for name, pose in turns(image.grid.centre).items():
        moved = turned(image, pose)
        for way, one in (("header", moved), ("resampled", resample(moved, image.grid))):
            truth[f"{name} {way}"] = marks.with_points(pose.apply(marks.points))
            found[f"{name} {way}"] = model.predict(one)
    rows = plane_rows(planes, truth, found)
    figures: dict[str, float] = {}
    for plane in planes.planes:
        for way in ("straight", "header", "resampled"):
            own = [r for r in rows if r["plane"] == plane and r["case"].endswith(way)]
            figures[f"{plane}_{way}_undefined"] = sum(r["state"] != "measured" for r in own)
            for key in ("angle_deg", "offset_mm", "mean_mm"):
                values = [r[key] for r in own if r[key] is not None]
                figures[f"{plane}_{way}_{key}_median"] = round(float(np.median(values)), 3)
                figures[f"{plane}_{way}_{key}_worst"] = round(float(np.max(values)), 3)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"figures": figures, "machine": platform.processor() or platform.machine(), "commit": commit}
    write_json(args.out, {**facts, "model": str(args.model), "anatomark": anatomark.__version__, "rows": rows})
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
