"""How a brain model bears a moved head: Colin27 turned by up to 20 degrees and shifted by 20 mm, 20 seeded poses.

Each pose is tried both ways: written into the header (the voxels stay), and resampled onto the original grid (the head
moves in the picture and may leave it). Errors in mm against the experts' points, moved alike.

    python studies/brain_poses.py [MODEL] --out FILE.json
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from pathlib import Path

import numpy as np

import anatomark
from anatomark import Grid, Image, Landmarks, load, read_image, read_landmarks
from anatomark.core.resample import resample
from anatomark.core.shape import Pose, random_rotation
from anatomark.demo import DATA, PERSON
from anatomark.io.atomic import write_json

HORNS = ("29", "30")  # left and right ventral occipital horn
POSES, DEGREES, SHIFT_MM = 20, 20.0, 20.0


def poses(centre: np.ndarray) -> list[Pose]:
    """Seeded rigid motions about ``centre``: any axis, up to 20 degrees; any direction, 20 mm."""
    out = []
    for i in range(POSES):
        rng = np.random.default_rng([2018, i])
        turn = random_rotation(rng, 3, DEGREES)
        shift = rng.normal(size=3)
        shift *= SHIFT_MM / np.linalg.norm(shift)
        out.append(Pose(turn, centre - turn @ centre + shift))
    return out


def moved_header(image: Image, pose: Pose) -> Image:
    """The same voxels on a moved grid."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = pose.rotation, pose.translation
    return Image(image.array, Grid(image.grid.shape, affine @ image.grid.affine), image.meta)


def main() -> None:
    """Run all poses and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="brain-afids")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = load(args.model)
    image = read_image(DATA / f"{PERSON}_T1w.nii.gz")
    truth = read_landmarks(DATA / f"{PERSON}_afids.fcsv")
    model.predict(image)  # the first call loads kernels
    start = time.perf_counter()
    found = model.predict(image)
    seconds = time.perf_counter() - start
    errors = found.errors_to(truth)
    others = np.array([n not in HORNS for n in found.names])
    figures = {
        "mean_mm": errors.mean(),
        "median_mm": np.median(errors),
        "mean_without_horns_mm": errors[others].mean(),
        "worst_landmark_mm": errors.max(),
        "seconds": seconds,
    }
    ways: dict[str, list[float]] = {"header": [], "resampled": []}
    for pose in poses(image.grid.centre):
        goal = truth.with_points(pose.apply(truth.points))
        ways["header"].append(_mean(model.predict(moved_header(image, pose)), goal))
        turned = resample(moved_header(image, pose), image.grid)
        ways["resampled"].append(_mean(model.predict(turned), goal))
    for way, means in ways.items():
        figures[f"{way}_mean_mm"], figures[f"{way}_worst_mm"] = float(np.mean(means)), float(np.max(means))
    figures = {k: round(float(v), 4) for k, v in figures.items()}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"figures": figures, "machine": platform.processor() or platform.machine(), "commit": commit}
    write_json(args.out, {**facts, "model": str(args.model), "anatomark": anatomark.__version__})
    for name, value in figures.items():
        print(f"{name}: {value}")


def _mean(found: Landmarks, truth: Landmarks) -> float:
    return float(np.nanmean(found.errors_to(truth)))


if __name__ == "__main__":
    main()
