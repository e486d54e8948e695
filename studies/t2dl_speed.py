"""How fast T2DL is with many landmarks: a volume of 182 x 218 x 182 voxels of 1 mm, random weights.

    python studies/t2dl_speed.py --out FILE.json [--preset paper|recommended|both] [--threads 2] [--plot FILE.png]

``landmarks_<N>_s`` is the time of ``locate`` for N landmarks in an image that is aligned already, of the preset
``recommended``, ``paper_landmarks_<N>_s`` that of ``paper``; ``align_s`` the time of the alignment before it. Times are
the least of several repeats, in seconds for a volume, after imports, reading and one warm-up; what is compared takes
turns, so that a busy machine slows all of it alike. ``times_from_100_to_2000`` is the cost of twenty times as many
landmarks. Peaks are resident memory above that after imports and reading, at 1200 landmarks, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import common
from anatomark import Image, methods
from anatomark.methods.base import Method, Study
from anatomark.model.align.aligner import AlignConfig, Aligner

SHAPE = (182, 218, 182)  # z, y, x
COUNTS = (100, 200, 500, 1200, 2000)
PEAK_AT = 1200
PRESETS = ("paper", "recommended")
CLASSES = {preset: methods.find("t2dl", preset) for preset in PRESETS}
FASTER = {"recommended": {"warped_copies": 20}, "paper": {}}  # warps cost time in `fit` only
CASES = 4


def make_image() -> Image:
    """int16 at 1 mm: an ellipsoid of smooth blobs and noise in the dark."""
    rng = np.random.default_rng(0)
    smooth = common.blobs(rng, SHAPE, [n // 13 for n in SHAPE], 200, 1000)
    noisy = smooth * (radius_in(np.stack(np.indices(SHAPE), -1)) < 1) + rng.normal(0, 20, SHAPE)
    return common.upright(np.clip(noisy, 0, 2000).astype(np.int16), 1.0)


def radius_in(index: np.ndarray) -> np.ndarray:
    """Of voxels (..., 3), from the middle of the head, 1 at its surface."""
    size = np.asarray(SHAPE)
    return np.linalg.norm((index - (size - 1) / 2) / (0.42 * size), axis=-1)


def study(image: Image, count: int) -> Study:
    """Nearly upright cases with points all over the head."""
    rng = np.random.default_rng(1)
    drawn = rng.uniform(0, SHAPE, (10 * count, 3))
    shape = image.grid.to_world(drawn[radius_in(drawn) < 0.9][:count]) - image.grid.centre
    return common.made_study(image, shape, rng, cases=CASES, degrees=5, noise_mm=2)


def build(preset: str, image: Image, count: int) -> Method:
    """A preset's method without its refiner, with random weights."""
    torch.manual_seed(1)
    cls = CLASSES[preset]
    config = cls.Config(**cls.presets.get(preset, {}), **FASTER[preset])
    return cls(config, cls.prepare(config, study(image, count))).eval()


def locate(preset: str, image: Image) -> None:
    """Build the model and locate, for its memory."""
    build(preset, image, PEAK_AT).locate(image)


# ---------------------------------------------------------------------- measuring


def figure_name(preset: str, rest: str) -> str:
    """Those of ``recommended`` are the main ones."""
    return rest if preset == "recommended" else f"{preset}_{rest}"


def locating(presets: tuple[str, ...], image: Image, repeats: int) -> dict[str, float]:
    """Seconds of every preset and number of landmarks."""
    built = {figure_name(p, f"landmarks_{n}_s"): build(p, image, n) for p in presets for n in COUNTS}
    figures = common.least({name: lambda m=method: m.locate(image) for name, method in built.items()}, repeats)
    for preset in presets:
        few, many = (figures[figure_name(preset, f"landmarks_{n}_s")] for n in (COUNTS[0], COUNTS[-1]))
        figures[figure_name(preset, "times_from_100_to_2000")] = many / few
    return figures


def aligning(image: Image, repeats: int) -> dict[str, float]:
    """Seconds of the alignment of one volume."""
    config = AlignConfig()
    aligner = Aligner(config, Aligner.prepare(config, study(image, COUNTS[0])))
    return common.least({"align_s": lambda: aligner.align(image)}, max(2, repeats // 2))


def plot(figures: dict[str, float], presets: tuple[str, ...], file: Path) -> None:
    """Seconds against landmarks."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.6), layout="constrained")
    for preset in presets:
        seconds = [figures[figure_name(preset, f"landmarks_{n}_s")] for n in COUNTS]
        axes.plot(COUNTS, seconds, "o-", label=f"T2DL, {preset}")
    label = f"seconds for a volume, {torch.get_num_threads()} threads"
    axes.set(xlabel="landmarks", ylabel=label, xlim=(0, None), ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    parser = common.speed_arguments(__doc__, PRESETS, "recommended", 5)
    parser.add_argument("--plot", type=Path, help="seconds against landmarks, a picture")
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    presets, image = common.chosen(args.preset, PRESETS), make_image()
    figures = {figure_name(preset, "peak_gb"): common.peak_gb(locate, preset, image) for preset in presets}
    figures |= locating(presets, image, args.repeats) | aligning(image, args.repeats)
    if args.plot is not None:
        plot(figures, presets, args.plot)
    common.record(args.out, figures, threads=args.threads)


if __name__ == "__main__":
    common.run(main)
