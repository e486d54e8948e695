"""How a brain model bears a moved head: Colin27 turned by up to 20 degrees and shifted by 20 mm, 20 seeded poses.

Each pose is tried both ways: written into the header (the voxels stay), and resampled onto the original grid (the head
moves in the picture and may leave it). Errors in mm against the experts' points, moved alike.

    python studies/brain_poses.py [MODEL] --out FILE.json
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import common
from anatomark import Image, Landmarks, load, read_image, read_landmarks
from anatomark.core.resample import resample
from anatomark.core.shape import Pose, random_rotation
from anatomark.demo import DATA, PERSON

HORNS = ("29", "30")  # left and right ventral occipital horn
POSES, DEGREES, SHIFT_MM = 20, 20.0, 20.0


def poses(centre: np.ndarray) -> list[Pose]:
    """Seeded rigid motions about ``centre``: any axis, up to 20 degrees; any direction, 20 mm."""
    out = []
    for i in range(POSES):
        rng = np.random.default_rng([2018, i])
        turn = random_rotation(rng, 3, DEGREES)
        out.append(common.about(centre, turn, common.random_shift(rng, SHIFT_MM, SHIFT_MM)))
    return out


def main(given: Sequence[str] | None = None) -> None:
    """Predict in all poses and write the figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("model", nargs="?", default="brain-afids", metavar="MODEL")
    args = parser.parse_args(given)
    model = load(args.model)
    image = read_image(DATA / f"{PERSON}_T1w.nii.gz")
    truth = read_landmarks(DATA / f"{PERSON}_afids.fcsv")

    def errors(image: Image, truth: Landmarks) -> np.ndarray:
        return model.predict(image).landmarks.errors_to(truth)

    errors(image, truth)  # the first call loads kernels
    straight, seconds = common.timed(lambda: errors(image, truth))
    others = np.array([n not in HORNS for n in model.names])
    figures = {
        "mean_mm": straight.mean(),
        "median_mm": np.median(straight),
        "mean_without_horns_mm": straight[others].mean(),
        "worst_landmark_mm": straight.max(),
        "seconds": seconds,
    }
    means: dict[str, list[float]] = {"header": [], "resampled": []}
    for pose in poses(image.grid.centre):
        moved, goal = common.moved(image, pose), truth.with_points(pose.apply(truth.points))
        for way, one in (("header", moved), ("resampled", resample(moved, image.grid))):
            means[way].append(np.nanmean(errors(one, goal)))
    for way, values in means.items():
        figures |= {f"{way}_mean_mm": np.mean(values), f"{way}_worst_mm": np.max(values)}
    common.record(args.out, figures, model=str(args.model))


if __name__ == "__main__":
    common.run(main)
