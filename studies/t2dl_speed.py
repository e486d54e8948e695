"""How fast T2DL is with many landmarks: a volume of 182 x 218 x 182 voxels of 1 mm, random weights.

    python studies/t2dl_speed.py --out speed.json [--preset paper|recommended|both] [--threads 2] [--plot speed.png]

``landmarks_<N>_s`` is the time of ``locate`` for N landmarks in an image that is aligned already, of the preset
``recommended``, ``paper_landmarks_<N>_s`` that of ``paper``; ``align_s`` the time of the alignment before it. Times are
the least of several repeats, in seconds for a volume, after imports, reading and one warm-up; what is compared takes
turns, so that a busy machine slows all of it alike. ``times_from_100_to_2000`` is the cost of twenty times as many
landmarks. Peaks are resident memory above that after imports and reading, at 1200 landmarks, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from anatomark import methods
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.intensity import intensity_rule
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import random_rotation
from anatomark.methods.base import Method, Study, StudyCase
from anatomark.model.align.aligner import AlignConfig, Aligner
from pin_speed import commit, least, machine, resident_gb

SHAPE = (182, 218, 182)  # z, y, x
COUNTS = (100, 200, 500, 1200, 2000)
PEAK_AT = 1200
PRESETS = ("paper", "recommended")
FASTER = {"recommended": {"warped_copies": 20}, "paper": {}}  # warps cost time in `fit` only
CASES = 4


def make_volume() -> np.ndarray:
    """(z, y, x) int16: an ellipsoid of smooth blobs and noise in the dark."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(200, 1000, (1, 1, *(n // 13 for n in SHAPE)))).float()
    smooth = F.interpolate(coarse, size=SHAPE, mode="trilinear", align_corners=True)[0, 0].numpy()
    noisy = smooth * (radius_in(np.stack(np.indices(SHAPE), -1)) < 1) + rng.normal(0, 20, SHAPE)
    return np.clip(noisy, 0, 2000).astype(np.int16)


def radius_in(index: np.ndarray) -> np.ndarray:
    """Of voxels (..., 3), from the middle of the head, 1 at its surface."""
    size = np.asarray(SHAPE)
    return np.linalg.norm((index - (size - 1) / 2) / (0.42 * size), axis=-1)


def make_image(volume: np.ndarray) -> Image:
    """The volume at 1 mm."""
    return Image(volume[None], Grid.from_axes(volume.shape, np.eye(3)[:, ::-1], np.zeros(3)))


def make_study(image: Image, count: int) -> Study:
    """Nearly upright cases with points all over the head."""
    rng = np.random.default_rng(1)
    drawn = rng.uniform(0, SHAPE, (10 * count, 3))
    shape = image.grid.to_world(drawn[radius_in(drawn) < 0.9][:count]) - image.grid.centre
    names = tuple(str(i + 1) for i in range(count))
    cases = []
    for i in range(CASES):
        points = (shape + rng.normal(0, 2, shape.shape)) @ random_rotation(rng, 3, 5).T + image.grid.centre
        cases.append(StudyCase(str(i), Landmarks(names, points), lambda: image))
    return Study(cases, names, "mr", intensity_rule("mr", [image]))


def build(preset: str, image: Image, count: int) -> Method:
    """A preset's method without its refiner, with random weights."""
    torch.manual_seed(1)
    cls = methods.find("t2dl", preset)
    config = cls.Config(**cls.presets[preset], **FASTER[preset])
    return cls(config, cls.prepare(config, make_study(image, count))).eval()


# ---------------------------------------------------------------------- measuring


def figure_name(preset: str, rest: str) -> str:
    """Those of ``recommended`` are the main ones."""
    return rest if preset == "recommended" else f"{preset}_{rest}"


def locating(presets: tuple[str, ...], image: Image, repeats: int) -> dict[str, float]:
    """Seconds of every preset and number of landmarks."""
    built = {figure_name(p, f"landmarks_{n}_s"): build(p, image, n) for p in presets for n in COUNTS}
    figures = least({name: lambda m=method: m.locate(image) for name, method in built.items()}, repeats)
    for preset in presets:
        few, many = (figures[figure_name(preset, f"landmarks_{n}_s")] for n in (COUNTS[0], COUNTS[-1]))
        figures[figure_name(preset, "times_from_100_to_2000")] = many / few
    return figures


def aligning(image: Image, repeats: int) -> dict[str, float]:
    """Seconds of the alignment of one volume."""
    config = AlignConfig()
    aligner = Aligner(config, Aligner.prepare_facts(config, make_study(image, COUNTS[0])))
    return least({"align_s": lambda: aligner.align(image)}, max(2, repeats // 2))


def peak_gb(file: Path, preset: str, threads: int) -> float:
    """Of a fresh process that builds the model and locates in one volume; see :func:`report_peak`."""
    command = [sys.executable, __file__, "--peak-of", str(file), "--preset", preset, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def report_peak(file: Path, preset: str) -> None:
    """Prints peak resident memory minus that after imports and reading, in GB."""
    methods.find("t2dl", preset)  # an import, not part of the peak
    image = make_image(np.load(file))
    before = resident_gb("VmRSS")
    build(preset, image, PEAK_AT).locate(image)
    print(resident_gb("VmHWM") - before)


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


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="seconds against landmarks, a picture")
    parser.add_argument("--preset", choices=(*PRESETS, "both"), default="recommended")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """See the module."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.peak_of is not None:
        report_peak(options.peak_of, options.preset)
        return
    presets = PRESETS if options.preset == "both" else (options.preset,)
    volume = make_volume()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "volume.npy"
        np.save(file, volume)
        for preset in presets:
            figures[figure_name(preset, "peak_gb")] = peak_gb(file, preset, options.threads)
    image = make_image(volume)
    figures |= locating(presets, image, options.repeats)
    figures |= aligning(image, options.repeats)
    if options.plot is not None:
        plot(figures, presets, options.plot)
    text = json.dumps({"figures": figures, "machine": machine(), "commit": commit()}, indent=2)
    print(text)
    if options.out is not None:
        partial = options.out.with_name(options.out.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, options.out)


if __name__ == "__main__":
    main()
