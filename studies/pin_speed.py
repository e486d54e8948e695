"""How fast PIN is: 10 landmarks in a volume of 324 x 207 x 279 voxels, on random weights.

    python studies/pin_speed.py --out FILE.json [--preset paper|recommended|both] [--threads 2]

The yardstick in the same run is a literal reading of the published algorithm: one landmark, one plane and one start at
a time by slicing, float32, plain layers, the same threads and weights. Times are the least of several repeats, in
seconds for a volume, after imports, reading and one warm-up; what is compared takes turns, so that a busy machine slows
all of it alike. Peaks are resident memory above that after imports and reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import common
from anatomark import Image
from anatomark.cases.case import Case
from anatomark.methods.base import Method, Study
from anatomark.methods.pin.paper import PaperPIN, PaperPINConfig
from anatomark.methods.pin.paper_net import conv_dtype, cut_planes, update
from anatomark.methods.pin.recommended import PIN

SIZE_XYZ = (324, 207, 279)
SPACING_MM = 0.5
LANDMARKS = 10


def make_image() -> Image:
    """uint8 at 0.5 mm: smooth blobs and noise."""
    rng = np.random.default_rng(0)
    smooth = common.blobs(rng, SIZE_XYZ[::-1], (18, 14, 20), 20, 200)
    volume = np.clip(smooth + rng.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)
    return common.upright(volume, SPACING_MM)


def study(image: Image, rng: np.random.Generator, *, degrees: float) -> Study:
    """50 cases of ten points around the volume's centre, turned by up to ``degrees``."""
    shape = common.star(rng, LANDMARKS, 3, 10, 30)
    return common.made_study(image, shape, rng, cases=50, degrees=degrees, noise_mm=2, shift_mm=3)


def paper(image: Image) -> PaperPIN:
    """The published PIN, its displacements scaled so that a step is about three voxels, as in a trained one."""
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    config = PaperPINConfig()
    method = PaperPIN(config, PaperPIN.prepare(config, study(image, rng, degrees=15)))
    net = method.nets[0].eval()
    with torch.no_grad():
        points = method.spaces[0].decode(method.spaces[0].starts(np.array(SIZE_XYZ, float), None))
        cut = torch.from_numpy(cut_planes(image.array[0], points, config.patch_px)).permute(0, 3, 1, 2)
        d, logits = net(cut)
        net.regression[-1].weight.mul_(3 / d.abs().mean())
        net.regression[-1].bias.mul_(3 / d.abs().mean())
        net.classification[-1].weight.mul_(1 / logits.abs().mean())
        net.classification[-1].bias.mul_(1 / logits.abs().mean())
    return method


def recommended(image: Image) -> Method:
    """The recommended PIN with every default, for heads in any pose (all its starts and levels)."""
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    config = PIN.Config(warped_copies=50)  # warps cost time in `fit` only
    return PIN(config, PIN.prepare(config, study(image, rng, degrees=180)))


BUILD: dict[str, Callable[[Image], Method]] = {"paper": paper, "recommended": recommended}


def locate(preset: str, image: Image) -> None:
    """Build the model and locate, for its memory."""
    BUILD[preset](image).locate(image)


# ---------------------------------------------------------------------- the yardstick


def literal_patch(volume: np.ndarray, point: np.ndarray, px: int, plane: int) -> np.ndarray:
    """One s x s plane of a float32 volume (z, y, x): 0 = yz, 1 = xz, 2 = xy; zeros outside."""
    half = px // 2
    x, y, z = (int(v) for v in point)
    fixed, value = (2, x) if plane == 0 else (1, y) if plane == 1 else (0, z)
    patch = np.zeros((px, px), dtype=np.float32)
    if not 0 <= value < volume.shape[fixed]:
        return patch
    image = volume.take(value, fixed) if fixed == 2 else volume[:, value] if fixed == 1 else volume[value]
    row, column = (z, y) if plane == 0 else (z, x) if plane == 1 else (y, x)
    r0, r1 = max(0, row - half), min(image.shape[0], row + half + 1)
    c0, c1 = max(0, column - half), min(image.shape[1], column + half + 1)
    if r0 < r1 and c0 < c1:
        patch[r0 - row + half : r1 - row + half, c0 - column + half : c1 - column + half] = image[r0:r1, c0:c1]
    return patch


def literal_net(net: Any, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolution, ReLU, pooling as written in the paper, float32, in torch's default layout."""
    x = patches
    for conv in net.convs:
        x = F.max_pool2d(F.relu(F.conv2d(x, conv.weight, conv.bias)), 2)
    x = x.flatten(1)
    return net.regression(x), net.classification(x)


def literal(method: PaperPIN, image: Image, seconds: dict[str, float]) -> np.ndarray:
    """World mm (N, 3) as by :meth:`PaperPIN.locate`; adds up the time in ``patches`` and ``network``."""
    volume = image.array[0].astype(np.float32)
    space, net, px = method.spaces[0], method.nets[0], method.config.patch_px
    ends = []
    seconds.update(patches=0.0, network=0.0)
    with torch.no_grad():
        for state in space.starts(np.array(SIZE_XYZ, float), None):
            for _ in range(method.iterations):
                began = time.perf_counter()
                patches = np.zeros((1, 3 * LANDMARKS, px, px), dtype=np.float32)
                for n, point in enumerate(space.decode(state[None])[0]):
                    for plane in range(3):
                        patches[0, 3 * n + plane] = literal_patch(volume, point, px, plane)
                cut = time.perf_counter()
                d, logits = literal_net(net, torch.from_numpy(patches))
                state = state + update(method.config.rule, d, logits)[0].double().numpy()
                seconds["patches"] += cut - began
                seconds["network"] += time.perf_counter() - cut
            ends.append(space.decode(state[None])[0])
    return image.grid.to_world(np.mean(ends, 0)[:, ::-1])


# ---------------------------------------------------------------------- measuring


def measure_paper(image: Image, repeats: int) -> dict[str, float]:
    """Figures of the paper's preset and of the yardstick."""
    method = paper(image)
    parts: dict[str, float] = {}
    located = common.both_precisions("paper", lambda: method.locate(image).points)
    figures = common.least({**located, "literal_s": lambda: literal(method, image, parts)}, repeats)
    figures["literal_patches_s"], figures["literal_network_s"] = parts["patches"], parts["network"]
    figures |= split(method, image, repeats)
    figures |= common.least(common.both_precisions("train_step", train_step(image)), max(2, repeats // 2))
    figures["bf16"] = float(conv_dtype(torch.device("cpu")) == torch.bfloat16)
    figures["times_faster_than_literal"] = figures["literal_s"] / figures["paper_s"]
    fast, exact = (call() for call in located.values())
    figures["float32_from_literal_mm"] = float(np.abs(exact - literal(method, image, parts)).max())
    figures["bf16_from_float32_mm"] = float(np.abs(fast - exact).max())
    return figures


def split(method: PaperPIN, image: Image, repeats: int) -> dict[str, float]:
    """Reading patches and the network apart, each as often as one volume needs it."""
    space, net, work = method.spaces[0], method.nets[0].eval(), method.working_images(image)["work"]
    points = space.decode(space.starts(np.array(SIZE_XYZ, float), None))
    cut = cut_planes(work.array[0], points, method.config.patch_px)
    patches = torch.from_numpy(cut).permute(0, 3, 1, 2)
    with torch.inference_mode():
        prepared = net.prepare()
        calls: common.Calls = {
            "paper_patches_s": lambda: cut_planes(work.array[0], points, method.config.patch_px, cut),
            "paper_network_s": lambda: net(patches, prepared),
        }
        return {name: method.iterations * value for name, value in common.least(calls, 10 * repeats).items()}


def train_step(image: Image) -> Callable[[], None]:
    """One step: 64 examples, loss, gradients, Adam."""
    method = paper(image).train()
    stage = method.stages()[0]
    optimizer = torch.optim.Adam(method.nets.parameters(), lr=stage.lr)
    rng = np.random.default_rng(2)
    landmarks = study(image, rng, degrees=15).cases[0].landmarks
    case = Case("0", given=landmarks, images=method.working_images(image))

    def step() -> None:
        drawn = [method.examples(case, stage, rng) for _ in range(stage.batch)]
        batch = {key: torch.stack([d[key] for d in drawn]) for key in drawn[0]}
        optimizer.zero_grad()
        method.loss(batch, stage)["loss"].backward()
        optimizer.step()

    return step


def measure_recommended(image: Image, repeats: int) -> dict[str, float]:
    """Figures of the recommended preset."""
    method = recommended(image)
    return common.least(common.both_precisions("recommended", lambda: method.locate(image)), repeats)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    args = common.speed_arguments(__doc__, tuple(BUILD), "both", 9).parse_args(given)
    torch.set_num_threads(args.threads)
    presets, image = common.chosen(args.preset, tuple(BUILD)), make_image()
    figures = {f"{preset}_peak_gb": common.peak_gb(locate, preset, image) for preset in presets}
    measure = {"paper": measure_paper, "recommended": measure_recommended}
    for preset in presets:
        figures |= measure[preset](image, args.repeats)
    common.record(args.out, figures, threads=args.threads)


if __name__ == "__main__":
    common.run(main)
