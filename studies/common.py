"""What the studies share: their arguments, where figures go, models and cases, times and memory, images made up."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from anatomark import Grid, Image, InputError, Landmarks
from anatomark.benchmark.provenance import commit, machine
from anatomark.cases.case import Case
from anatomark.cases.manifest import read_manifest
from anatomark.core.intensity import guess_modality, intensity_rule
from anatomark.core.shape import Pose, random_rotation
from anatomark.io.atomic import write_json
from anatomark.methods.base import Study
from anatomark.methods.kit.precision import use_bf16

T = TypeVar("T")
Calls = dict[str, Callable[[], Any]]


# ---------------------------------------------------------------------- arguments and figures


def arguments(doc: str | None, *positional: str, split: str | None = None) -> argparse.ArgumentParser:
    """The arguments of a study with this docstring: ``positional`` ones (paths, but for ``model``, which may be a name
    of the zoo), ``--out``, and ``--split`` where a default is given."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in positional:
        metavar = {"cases": "CASES.csv"}.get(name, name.upper())
        parser.add_argument(name, type=str if name == "model" else Path, metavar=metavar)
    if split is not None:
        parser.add_argument("--split", default=split)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    return parser


def speed_arguments(doc: str | None, presets: Sequence[str], preset: str, repeats: int) -> argparse.ArgumentParser:
    """Those of a study that measures times of some ``presets``."""
    parser = arguments(doc)
    parser.add_argument("--preset", choices=(*presets, "both"), default=preset)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def chosen(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """``both`` are all of them."""
    return tuple(names) if name == "both" else (name,)


def record(out: Path, figures: Mapping[str, float | None], **facts: Any) -> None:
    """Write and print ``figures``, with the machine and the commit they come from and further ``facts``. Numbers have
    five digits; what is not finite is null."""
    rounded = {k: rounded_figure(v) for k, v in figures.items()}
    write_json(out, {"figures": rounded, "machine": machine(), "commit": commit(), **facts})
    for name, value in rounded.items():
        print(f"{name}: {value}")


def rounded_figure(value: float | None) -> float | None:
    """Five digits, whole numbers as they are; None for what is not finite."""
    if isinstance(value, int | np.integer):
        return int(value)
    return None if value is None or not np.isfinite(value) else float(f"{value:.5g}")


def run(main: Callable[[], None]) -> None:
    """Bad input ends a study with one line."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")


# ---------------------------------------------------------------------- cases


def cases_of(manifest: Path, split: str | None = None) -> tuple[Case, ...]:
    """The cases of a manifest, or of one split. Raises InputError."""
    table = read_manifest(manifest)
    return table.cases if split is None else table.split(split)


def select(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases with these landmarks alone, in this order."""
    return [c.with_landmarks(c.landmarks.select(names)) for c in cases]


def study_of(cases: Sequence[Case], modality: str | None = None) -> Study:
    """Cases with the same landmarks as ``prepare`` reads them."""
    images = [c.image() for c in cases]
    modality = modality or guess_modality(images)
    return Study(cases, cases[0].landmarks.names, modality, intensity_rule(modality, images))


# ---------------------------------------------------------------------- poses


def about(centre: np.ndarray, rotation: np.ndarray, shift: np.ndarray | float = 0.0, scale: float = 1.0) -> Pose:
    """Turned and resized about ``centre``, then shifted (mm)."""
    return Pose(rotation, centre - scale * rotation @ centre + shift, scale)


def random_shift(rng: np.random.Generator, least_mm: float, most_mm: float) -> np.ndarray:
    """(3,) mm in any direction."""
    shift = rng.normal(size=3)
    length = rng.uniform(least_mm, most_mm) if least_mm < most_mm else most_mm
    return shift * length / np.linalg.norm(shift)


def moved(image: Image, pose: Pose) -> Image:
    """The same voxels on a grid that lies elsewhere."""
    grid, axes = image.grid, pose.scale * pose.rotation @ image.grid.axes
    return Image(image.array, Grid.from_axes(grid.shape, axes, pose.apply(grid.origin)), image.meta)


# ---------------------------------------------------------------------- times and memory


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def least(calls: Calls, repeats: int) -> dict[str, float]:
    """Seconds of the fastest of some rounds of these calls, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            times[name].append(timed(call)[1])
    return {name: min(values[1:]) for name, values in times.items()}


def both_precisions(name: str, call: Callable[[], Any]) -> Calls:
    """``<name>_s`` as the machine is fastest and ``<name>_float32_s``."""

    def at(bf16: bool | None) -> Callable[[], Any]:
        def run_once() -> Any:
            use_bf16(bf16)
            try:
                return call()
            finally:
                use_bf16(None)

        return run_once

    return {f"{name}_s": at(None), f"{name}_float32_s": at(False)}


def peak_gb(work: Callable[..., object], *given: object) -> float:
    """The most memory in GB that ``work(*given)`` takes above what its imports and arguments do, in a process of its
    own with as many threads as this one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peak_gb, torch.get_num_threads(), work, given).result()


def _peak_gb(threads: int, work: Callable[..., object], given: Sequence[object]) -> float:
    torch.set_num_threads(threads)
    before = _resident_gb("VmRSS")
    work(*given)
    return _resident_gb("VmHWM") - before


def _resident_gb(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process. Linux's own count, because a child's ``ru_maxrss`` starts at
    its parent's; elsewhere ``ru_maxrss`` for both."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


# ---------------------------------------------------------------------- images and cases made up


def upright(array: np.ndarray, spacing_mm: float) -> Image:
    """An array (z, y, x) or (y, x) as an image along the world's axes, its first voxel at the origin."""
    d = array.ndim
    return Image(array[None], Grid.from_axes(array.shape, np.eye(d)[:, ::-1] * spacing_mm, np.zeros(d)))


def blobs(rng: np.random.Generator, shape: Sequence[int], coarse: Sequence[int], low: float, high: float) -> np.ndarray:
    """Smooth random values of this shape, from a coarse lattice."""
    lattice = rng.uniform(low, high, (1, 1, *coarse))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    smooth = F.interpolate(torch.from_numpy(lattice).float(), size=tuple(shape), mode=mode, align_corners=True)
    return smooth[0, 0].numpy()


def star(rng: np.random.Generator, count: int, ndim: int, least_mm: float, most_mm: float) -> np.ndarray:
    """(N, D) mm: points in all directions from the origin at random distances."""
    shape = rng.normal(0, 1, (count, ndim))
    return shape * rng.uniform(least_mm, most_mm, (count, 1)) / np.linalg.norm(shape, axis=1, keepdims=True)


def made_study(
    image: Image,
    shape: np.ndarray,
    rng: np.random.Generator,
    *,
    cases: int,
    degrees: float,
    noise_mm: float,
    shift_mm: float = 0.0,
    modality: str = "mr",
) -> Study:
    """Cases with one image, in which ``shape`` (N, D), mm from the middle, is turned, blurred and shifted."""
    names, d = tuple(str(i + 1) for i in range(len(shape))), image.ndim
    made = []
    for i in range(cases):
        turn = random_rotation(rng, d, degrees)
        points = (shape + rng.normal(0, noise_mm, shape.shape)) @ turn.T + image.grid.centre
        points = points + (rng.normal(0, shift_mm, d) if shift_mm else 0.0)
        made.append(Case(str(i), given=Landmarks(names, points), held=image))
    return study_of(made, modality)
