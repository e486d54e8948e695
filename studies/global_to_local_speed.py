"""How fast global-to-local is on a cephalogram and on a volume, on random weights and synthetic images.

    python studies/global_to_local_speed.py --out FILE.json [--kind cephalogram|volume|both] [--threads 2]

A cephalogram: 1935 x 2400 pixels of 0.1 mm, 19 landmarks. A volume: 256 x 256 x 160 voxels of 1.5 mm, 8 landmarks. The
presets ``paper`` and ``recommended`` (with its refiner) locate in them. The yardstick in the same run is a literal
reading of the published algorithm: the whole image at full resolution, layer by layer, then one local network after
another, float32, torch's default layout, the same threads and weights. Times are the least of several repeats, in
seconds for an image, after imports, reading and one warm-up; what is compared takes turns, so that a busy machine slows
all of it alike. Peaks are resident memory above that after imports and reading, in a process of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import common
from anatomark import Image, Landmarks
from anatomark.methods.base import Evidence, Study
from anatomark.methods.global_to_local.paper import PaperGlobalToLocal, cut, decode
from anatomark.methods.global_to_local.paper_net import LocalFCNNs
from anatomark.model.compose import REFINE, Composed, Composition
from anatomark.model.config import make_config

# array shape, spacing in mm, landmarks, their distance from the middle of the anatomy in mm, modality
KINDS: dict[str, tuple[tuple[int, ...], float, int, float, str]] = {
    "cephalogram": ((2400, 1935), 0.1, 19, 85.0, "xray"),
    "volume": ((160, 256, 256), 1.5, 8, 90.0, "mr"),
}
PRESETS = ("paper", "recommended")
CASES = 12
REFINER_ERROR_MM = {"cephalogram": (1.5, 0.8), "volume": (3.0, 1.5)}  # errors that the refiner's levels must cover


def make_image(kind: str) -> Image:
    """Smooth blobs and noise: bytes (2D) or short integers (3D)."""
    shape, spacing, *_ = KINDS[kind]
    rng = np.random.default_rng(0)
    smooth = common.blobs(rng, shape, [n // 16 for n in shape], 20, 200)
    noisy = np.clip(smooth + rng.integers(-20, 20, shape), 0, 255)
    return common.upright(noisy.astype(np.uint8 if len(shape) == 2 else np.int16), spacing)


def study(kind: str, image: Image) -> Study:
    """Upright cases with points around the image's middle."""
    _, _, count, radius, modality = KINDS[kind]
    rng = np.random.default_rng(1)
    shape = common.star(rng, count, image.ndim, 0.4 * radius, radius)
    blur = 0.04 * radius
    return common.made_study(image, shape, rng, cases=CASES, degrees=10, noise_mm=blur, modality=modality)


def build(kind: str, preset: str, image: Image) -> Composed:
    """A preset's method (with its refiner, where it has one) as `fit` would compose it, with random weights."""
    torch.manual_seed(1)
    parts, cases = Composition.of(make_config(method="global_to_local", preset=preset)), study(kind, image)
    composed = parts.build(parts.prepare(cases)).eval()
    if isinstance(composed.method, PaperGlobalToLocal):
        _settle(composed.method, image)
        return composed
    for stage in composed.stages():
        evidence = Evidence()
        if stage.part == REFINE:  # as large as trained models' errors make them
            evidence = _evidence(cases, REFINER_ERROR_MM[kind][min(stage.index, 1)])
        composed.begin(stage, evidence)
    return composed


def _evidence(study: Study, error_mm: float) -> Evidence:
    rng = np.random.default_rng(2)
    truth = {c.id: c.landmarks for c in study.cases}
    predictions = {
        k: m.with_points(m.points + rng.normal(0, error_mm / m.ndim**0.5, m.points.shape)) for k, m in truth.items()
    }
    return Evidence(predictions, truth)


def _settle(method: PaperGlobalToLocal, image: Image) -> None:
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

    def __init__(self, method: PaperGlobalToLocal):
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
        """World mm (N, D), of the stages that :meth:`PaperGlobalToLocal.locate` would run."""
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
        points, pool = [], F.avg_pool2d if work.ndim == 2 else F.avg_pool3d
        for n, alone in enumerate(self.locals):
            first = np.round(guess[n] - 7.5).astype(np.int64)
            x = torch.from_numpy(cut(work.array[0], first[None], 16).astype(np.float32))[None]
            for i, (conv, norm) in enumerate(zip(alone.convs, alone.norms, strict=True)):
                x = F.relu(norm(conv(x)))
                x = pool(x, 2) if i == 3 else x
            votes = decode(alone.classify(x), alone.regress(x)[:, None], 2)
            points.append(votes.points[0, 0].numpy() + first)
        return np.array(points)


# ---------------------------------------------------------------------- measuring


def paper_figures(kind: str, image: Image, repeats: int) -> dict[str, float]:
    """Seconds of the paper's preset and of the yardstick."""
    method = build(kind, "paper", image).method
    assert isinstance(method, PaperGlobalToLocal)
    literal = Literal(method)
    located = common.both_precisions(f"{kind}_paper", lambda: method.locate(image).points)
    figures = common.least({**located, f"literal_{kind}_s": lambda: literal.locate(image)}, repeats)
    figures[f"{kind}_times_faster_than_literal"] = figures[f"literal_{kind}_s"] / figures[f"{kind}_paper_s"]
    return figures | split(kind, method, literal, image, repeats)


def split(kind: str, method: PaperGlobalToLocal, literal: Literal, image: Image, repeats: int) -> dict[str, float]:
    """Each stage of the paper's preset by itself: seconds, how far float32 is from the yardstick at most, and bf16 from
    float32 on average (of random networks, whose posteriors are broad)."""
    start = Landmarks(method.names, np.repeat(image.grid.centre[None], len(method.names), 0))
    figures: dict[str, float] = {}
    for name, first in (("global", None), ("local", start)):
        method.local_trained = name == "local"
        calls = common.both_precisions(f"{kind}_paper_{name}", lambda first=first: method.locate(image, first).points)
        figures |= common.least(calls, repeats)
        fast, exact = (call() for call in calls.values())
        apart = np.linalg.norm(exact - literal.locate(image, first), axis=1)
        figures[f"{kind}_{name}_float32_from_literal_mm"] = float(apart.max())
        figures[f"{kind}_{name}_bf16_from_float32_mm"] = float(np.linalg.norm(fast - exact, axis=1).mean())
    return figures


def recommended_seconds(kind: str, image: Image, repeats: int) -> dict[str, float]:
    """Seconds of the recommended preset with its refiner."""
    composed = build(kind, "recommended", image)
    return common.least(common.both_precisions(f"{kind}_recommended", lambda: composed.locate(image)), repeats)


def locate(kind: str, preset: str, image: Image) -> None:
    """Build the model and locate, for its memory."""
    build(kind, preset, image).locate(image)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    parser = common.speed_arguments(__doc__, PRESETS, "both", 7)
    parser.add_argument("--kind", choices=(*KINDS, "both"), default="both")
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    measure = {"paper": paper_figures, "recommended": recommended_seconds}
    figures: dict[str, float] = {}
    for kind in common.chosen(args.kind, tuple(KINDS)):
        image, presets = make_image(kind), common.chosen(args.preset, PRESETS)
        figures |= {f"{kind}_{preset}_peak_gb": common.peak_gb(locate, kind, preset, image) for preset in presets}
        for preset in presets:
            figures |= measure[preset](kind, image, args.repeats)
    figures["peak_gb"] = max(v for k, v in figures.items() if k.endswith("_peak_gb"))
    common.record(args.out, figures, threads=args.threads)


if __name__ == "__main__":
    common.run(main)
