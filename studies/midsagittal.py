"""The mid-sagittal plane of Colin27 turned by 15 degrees, found by the bundled brain model, against the experts' one.

The head is turned both ways about each scanner axis and about four seeded ones, each time in two ways: in the header
(the voxels stay), and resampled onto the original grid (the head moves in the picture). Angle in degrees; offset in mm
at the middle of the true slice, and the mean over it; the planes of the ready definition brain-afids.

    python studies/midsagittal.py [MODEL] [--data DIR] --out FILE.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import common
from anatomark import Landmarks, load, read_image, read_landmarks
from anatomark.core.resample import resample
from anatomark.core.shape import Pose, rotation_from_vector
from anatomark.demo import DATA, PERSON
from anatomark.tools.definitions import read_definition
from anatomark.tools.planes.errors import plane_rows
from anatomark.tools.planes.schema import PlaneSet

DEGREES, SEEDED, SEED = 15.0, 4, 15


def turns(centre: np.ndarray) -> dict[str, Pose]:
    """Rotations about ``centre``, by name."""
    axes = {f"{'+-'[i % 2]}{'xyz'[i // 2]}": np.eye(3)[i // 2] * (1, -1)[i % 2] for i in range(6)}
    drawn = np.random.default_rng(SEED).normal(size=(SEEDED, 3))
    axes |= {f"seeded{i}": v / np.linalg.norm(v) for i, v in enumerate(drawn)}
    return {name: common.about(centre, rotation_from_vector(np.radians(DEGREES) * axis)) for name, axis in axes.items()}


def main(given: Sequence[str] | None = None) -> None:
    """Predict in every turn and write the figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("model", nargs="?", default="brain-afids", metavar="MODEL")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder with {PERSON}_T1w.nii.gz, {PERSON}_afids.fcsv")
    args = parser.parse_args(given)
    model, planes = load(args.model), read_definition("brain-afids", PlaneSet, "planes")
    image = read_image(args.data / f"{PERSON}_T1w.nii.gz")
    straight = read_landmarks(args.data / f"{PERSON}_afids.fcsv")
    truth: dict[str, Landmarks] = {"straight": straight}
    predicted: dict[str, Landmarks | None] = {"straight": model.predict(image).landmarks}
    for name, pose in turns(image.grid.centre).items():
        moved = common.moved(image, pose)
        for way, one in (("header", moved), ("resampled", resample(moved, image.grid))):
            truth[f"{name} {way}"] = straight.with_points(pose.apply(straight.points))
            predicted[f"{name} {way}"] = model.predict(one).landmarks
    rows = plane_rows(planes, truth, predicted)
    figures: dict[str, float] = {}
    for plane in planes.planes:
        for way in ("straight", "header", "resampled"):
            own = [r for r in rows if r["plane"] == plane and r["case"].endswith(way)]
            figures[f"{plane}_{way}_undefined"] = sum(r["state"] != "measured" for r in own)
            for key in ("angle_deg", "offset_mm", "mean_mm"):
                values = [r[key] for r in own if r[key] is not None]
                figures[f"{plane}_{way}_{key}_median"] = float(np.median(values))
                figures[f"{plane}_{way}_{key}_worst"] = float(np.max(values))
    common.record(args.out, figures, model=str(args.model), rows=rows)


if __name__ == "__main__":
    common.run(main)
