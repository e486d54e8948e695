"""How fast global-to-local is on a cephalogram and on a volume, on random weights and synthetic images.

    python studies/global_to_local_speed.py --out speed.json [--kind cephalogram|volume|both] [--threads 2]

A cephalogram: 1935 x 2400 pixels of 0.1 mm, 19 landmarks. A volume: 256 x 256 x 160 voxels of 1.5 mm, 8 landmarks. The
presets ``paper`` and ``recommended`` (with its refiner) locate in them. The yardstick in the same run is a literal
reading of the published algorithm: the whole image at full resolution, layer by layer, then one local network after
another, float32, torch's default layout, the same threads and weights. Times are the least of several repeats, in
seconds for an image, after imports, reading and one warm-up; what is compared takes turns, so that a busy machine slows
all of it alike. Peaks are resident memory above that after imports and reading, in a process of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.intensity import intensity_rule
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import random_rotation
from anatomark.methods.base import Method, Study, StudyCase
from anatomark.methods.global_to_local.paper import PublishedGlobalToLocal, cut
from anatomark.methods.global_to_local.paper_net import LocalFCNNs
from anatomark.methods.global_to_local.votes import decode
from anatomark.model.compose import assembled
from anatomark.model.config import make_config
from pin_speed import both_precisions, commit, least, machine, resident_gb

# array shape, spacing in mm, landmarks, their distance from the middle of the anatomy in mm, modality
KINDS: dict[str, tuple[tuple[int, ...], float, int, float, str]] = {
    "cephalogram": ((2400, 1935), 0.1, 19, 85.0, "xray"),
    "volume": ((160, 256, 256), 1.5, 8, 90.0, "mr"),
}
PRESETS = ("paper", "recommended")
CASES = 12
REFINER_ERROR_MM = {"cephalogram": (1.5, 0.8), "volume": (3.0, 1.5)}  # errors that the refiner's levels must cover


def make_array(kind: str) -> np.ndarray:
    """Smooth blobs and noise: bytes (2D) or short integers (3D)."""
    shape, rng = KINDS[kind][0], np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(20, 200, (1, 1, *(n // 16 for n in shape)))).float()
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    smooth = F.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0, 0].numpy()
    noisy = np.clip(smooth + rng.integers(-20, 20, shape), 0, 255)
    return noisy.astype(np.uint8 if len(shape) == 2 else np.int16)


def make_image(kind: str, array: np.ndarray) -> Image:
    """The array at its kind's spacing."""
    d = array.ndim
    return Image(array[None], Grid.from_axes(array.shape, np.eye(d)[:, ::-1] * KINDS[kind][1], np.zeros(d)))


def make_study(kind: str, image: Image) -> Study:
    """Upright cases with points around the image's middle."""
    _, _, count, radius, modality = KINDS[kind]
    rng, d = np.random.default_rng(1), image.ndim
    names = tuple(str(i + 1) for i in range(count))
    shape = rng.normal(0, 1, (count, d))
    shape *= rng.uniform(0.4, 1, (count, 1)) * radius / np.linalg.norm(shape, axis=1, keepdims=True)
    cases = []
    for i in range(CASES):
        turn = random_rotation(rng, d, 10)
        points = (shape + rng.normal(0, 0.04 * radius, shape.shape)) @ turn.T + image.grid.centre
        cases.append(StudyCase(str(i), Landmarks(names, points), lambda: image))
    return Study(cases, names, modality, intensity_rule(modality, [image]))


def build(kind: str, preset: str, image: Image) -> Method:
    """A preset's method (with its refiner, where it has one) as `fit` would compose it, with random weights."""
    torch.manual_seed(1)
    cls, settings = assembled(make_config(method="global_to_local", preset=preset))
    study = make_study(kind, image)
    method = cls(settings, cls.prepare(settings, study)).eval()
    if isinstance(method, PublishedGlobalToLocal):
        _settle(method, image)
        return method
    refining = 0
    for stage in method.stages():
        evidence: dict[str, Any] = {}
        if "refine" in stage.name:  # as large as trained models' errors make them
            evidence = _evidence(study, REFINER_ERROR_MM[kind][min(refining, 1)])
            refining += 1
        method.begin(stage, evidence)
    return method


def _evidence(study: Study, error_mm: float) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    truth = {c.id: c.landmarks for c in study.cases}
    found = {
        k: m.with_points(m.points + rng.normal(0, error_mm / m.ndim**0.5, m.points.shape)) for k, m in truth.items()
    }
    return {"predictions": found, "truth": truth, "independent": True}


def _settle(method: PublishedGlobalToLocal, image: Image) -> None:
    """Running statistics of the data, and heads whose votes are of a trained model's size."""
    array, n = method.working_images(image)["work"].array, len(method.names)
    rng, middle = np.random.default_rng(3), np.asarray(image.grid.shape) // 2
    for net, side, count in ((method.global_net, 16 * method.global_net.stride, 1), (method.local_nets, 16, 8 * n)):
        first = middle - side // 2 + rng.integers(-20, 21, (count, image.ndim)) * (count > 1)
        x = torch.from_numpy(cut(array[0], first, side)).float().unflatten(0, (-1, n if count > 1 else 1))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.momentum = 1.0
        with torch.no_grad():
            net.train()(x)
            for head, maps, size in zip((net.classify, net.regress), net.eval()(x), (1.0, 0.2), strict=True):
                head[4].weight.mul_(size / maps.std())
            net.classify[4].bias.fill_(-3.0)


# ---------------------------------------------------------------------- the yardstick


class Literal:
    """The published algorithm as written down, on a method's weights."""

    def __init__(self, method: PublishedGlobalToLocal):
        self.method = method
        state = method.local_nets.state_dict()
        self.locals = []
        for n in range(len(method.names)):
            alone = LocalFCNNs(method.ndim, 1)
            own = {k: v.unflatten(0, (len(method.names), -1))[n] if v.ndim else v for k, v in state.items()}
            alone.load_state_dict(own)
            self.locals.append(alone.eval())

    @torch.no_grad()
    def locate(self, image: Image, start: Landmarks | None = None) -> np.ndarray:
        """World mm (N, D), of the stages that :meth:`PublishedGlobalToLocal.locate` would run."""
        work = self.method.working_images(image)["work"]
        guess = self._globally(work) if start is None else work.grid.to_index(start.points)
        return work.grid.to_world(self._locally(work, guess) if self.method.local_trained else guess)

    def _globally(self, work: Image) -> np.ndarray:
        net, q = self.method.global_net, self.method.global_net.stride
        x = torch.from_numpy(work.array.astype(np.float32))[None]
        x = F.pad(x, [p for n in reversed(work.grid.shape) for p in (0, -n % q)])
        pool = F.avg_pool2d if work.ndim == 2 else F.avg_pool3d
        x = F.relu(net.stem_norm(net.stem(x)))
        for pooled, norm, group in zip(net.pools, net.pool_norms, net.groups, strict=True):
            x = group(F.relu(norm(pool(x, 2))) if pooled else x)
        logits, moves = net.classify(x), net.regress(x).unflatten(1, (net.landmarks, net.ndim))
        return decode(logits, moves, q).points[0].numpy()

    def _locally(self, work: Image, guess: np.ndarray) -> np.ndarray:
        found, pool = [], F.avg_pool2d if work.ndim == 2 else F.avg_pool3d
        for n, alone in enumerate(self.locals):
            first = np.round(guess[n] - 7.5).astype(np.int64)
            x = torch.from_numpy(cut(work.array[0], first[None], 16).astype(np.float32))[None]
            for i, (conv, norm) in enumerate(zip(alone.convs, alone.norms, strict=True)):
                x = F.relu(norm(conv(x)))
                x = pool(x, 2) if i == 3 else x
            votes = decode(alone.classify(x), alone.regress(x)[:, None], 2)
            found.append(votes.points[0, 0].numpy() + first)
        return np.array(found)


# ---------------------------------------------------------------------- measuring


def paper_figures(kind: str, image: Image, repeats: int) -> dict[str, float]:
    """Seconds of the paper's preset and of the yardstick."""
    method = build(kind, "paper", image)
    assert isinstance(method, PublishedGlobalToLocal)
    literal = Literal(method)
    located = both_precisions(f"{kind}_paper", lambda: method.locate(image).points)
    figures = least({**located, f"literal_{kind}_s": lambda: literal.locate(image)}, repeats)
    figures[f"{kind}_times_faster_than_literal"] = figures[f"literal_{kind}_s"] / figures[f"{kind}_paper_s"]
    return figures | split(kind, method, literal, image, repeats)


def split(kind: str, method: PublishedGlobalToLocal, literal: Literal, image: Image, repeats: int) -> dict[str, float]:
    """Each stage of the paper's preset by itself: seconds, how far float32 is from the yardstick at most, and bf16 from
    float32 on average (of random networks, whose posteriors are broad)."""
    start = Landmarks(method.names, np.repeat(image.grid.centre[None], len(method.names), 0))
    figures: dict[str, float] = {}
    for name, first in (("global", None), ("local", start)):
        method.local_trained = name == "local"
        calls = both_precisions(f"{kind}_paper_{name}", lambda first=first: method.locate(image, first).points)
        figures |= least(calls, repeats)
        fast, exact = (call() for call in calls.values())
        apart = np.linalg.norm(exact - literal.locate(image, first), axis=1)
        figures[f"{kind}_{name}_float32_from_literal_mm"] = float(apart.max())
        figures[f"{kind}_{name}_bf16_from_float32_mm"] = float(np.linalg.norm(fast - exact, axis=1).mean())
    return figures


def recommended_seconds(kind: str, image: Image, repeats: int) -> dict[str, float]:
    """Seconds of the recommended preset with its refiner."""
    method = build(kind, "recommended", image)
    return least(both_precisions(f"{kind}_recommended", lambda: method.locate(image)), repeats)


def peak_gb(file: Path, kind: str, preset: str, threads: int) -> float:
    """Of a fresh process that builds the model and locates in one image; see :func:`report_peak`."""
    command = [sys.executable, __file__, "--peak-of", str(file), "--kind", kind, "--preset", preset]
    done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def report_peak(file: Path, kind: str, preset: str) -> None:
    """Prints peak resident memory minus that after imports and reading, in GB."""
    image = make_image(kind, np.load(file))
    before = resident_gb("VmRSS")
    build(kind, preset, image).locate(image)
    print(resident_gb("VmHWM") - before)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kind", choices=(*KINDS, "both"), default="both")
    parser.add_argument("--preset", choices=(*PRESETS, "both"), default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """See the module."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.peak_of is not None:
        report_peak(options.peak_of, options.kind, options.preset)
        return
    kinds = tuple(KINDS) if options.kind == "both" else (options.kind,)
    presets = PRESETS if options.preset == "both" else (options.preset,)
    measure = {"paper": paper_figures, "recommended": recommended_seconds}
    figures: dict[str, float] = {}
    for kind in kinds:
        array = make_array(kind)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "image.npy"
            np.save(file, array)
            for preset in presets:
                figures[f"{kind}_{preset}_peak_gb"] = peak_gb(file, kind, preset, options.threads)
        image = make_image(kind, array)
        for preset in presets:
            figures |= measure[preset](kind, image, options.repeats)
    figures["peak_gb"] = max(v for k, v in figures.items() if k.endswith("_peak_gb"))
    text = json.dumps({"figures": figures, "machine": machine(), "commit": commit()}, indent=2)
    print(text)
    if options.out is not None:
        partial = options.out.with_name(options.out.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, options.out)


if __name__ == "__main__":
    main()
