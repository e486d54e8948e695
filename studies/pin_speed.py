"""How fast PIN is: 10 landmarks in a volume of 324 x 207 x 279 voxels, on random weights.

    python studies/pin_speed.py --out speed.json [--preset paper|recommended|both] [--threads 2]

The yardstick in the same run is a literal reading of the published algorithm: one landmark, one plane and one start at
a time by slicing, float32, plain layers, the same threads and weights. Times are the least of several repeats, in
seconds for a volume, after imports, reading and one warm-up; what is compared takes turns, so that a busy machine slows
all of it alike. Peaks are resident memory above that after imports and reading.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.intensity import intensity_rule
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import random_rotation
from anatomark.methods.base import Method, Study, StudyCase, TrainingCase
from anatomark.methods.kit.precision import use_bf16
from anatomark.methods.pin.paper import PublishedConfig, PublishedPIN
from anatomark.methods.pin.paper_net import conv_dtype
from anatomark.methods.pin.patches import cut_planes
from anatomark.methods.pin.rules import update

SIZE_XYZ = (324, 207, 279)
SPACING_MM = 0.5
LANDMARKS = 10


def make_volume(rng: np.random.Generator) -> np.ndarray:
    """(z, y, x) uint8: smooth blobs and noise."""
    coarse = torch.from_numpy(rng.uniform(20, 200, (1, 1, 18, 14, 20))).float()
    smooth = F.interpolate(coarse, size=SIZE_XYZ[::-1], mode="trilinear", align_corners=True)[0, 0].numpy()
    return np.clip(smooth + rng.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)


def make_image(volume: np.ndarray) -> Image:
    """The volume at 0.5 mm."""
    grid = Grid.from_axes(volume.shape, np.eye(3)[:, ::-1] * SPACING_MM, np.zeros(3))
    return Image(volume[None], grid)


def make_study(image: Image, rng: np.random.Generator, *, degrees: float) -> Study:
    """50 cases of ten points around the volume's centre, turned by up to ``degrees``."""
    names = tuple(str(i + 1) for i in range(LANDMARKS))
    shape = rng.normal(0, 1, (LANDMARKS, 3))
    shape *= rng.uniform(10, 30, (LANDMARKS, 1)) / np.linalg.norm(shape, axis=1, keepdims=True)
    cases = []
    for i in range(50):
        turn = random_rotation(rng, 3, degrees)
        points = (shape + rng.normal(0, 2, shape.shape)) @ turn.T + rng.normal(0, 3, 3) + image.grid.centre
        cases.append(StudyCase(str(i), Landmarks(names, points), lambda: image))
    return Study(cases, names, "mr", intensity_rule("mr", [image]))


def paper(image: Image) -> PublishedPIN:
    """The published PIN, its displacements scaled so that a step is about three voxels, as in a trained one."""
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    config = PublishedConfig()
    method = PublishedPIN(config, PublishedPIN.prepare(config, make_study(image, rng, degrees=15)))
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
    from anatomark.methods.pin.recommended import CascadePIN

    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    config = CascadePIN.Config(warped_copies=50)  # warps cost time in `fit` only
    return CascadePIN(config, CascadePIN.prepare(config, make_study(image, rng, degrees=180)))


BUILD: dict[str, Callable[[Image], Method]] = {"paper": paper, "recommended": recommended}


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


def literal(method: PublishedPIN, image: Image, seconds: dict[str, float]) -> np.ndarray:
    """World mm (N, 3) as by :meth:`PublishedPIN.locate`; adds up the time in ``patches`` and ``network``."""
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


Calls = dict[str, Callable[[], Any]]


def least(calls: Calls, repeats: int) -> dict[str, float]:
    """Seconds of the fastest of some rounds of these calls, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: min(values[1:]) for name, values in times.items()}


def both_precisions(name: str, call: Callable[[], Any]) -> Calls:
    """``<name>_s`` as the machine is fastest and ``<name>_float32_s``."""

    def at(force: bool | None) -> Callable[[], Any]:
        def run() -> Any:
            use_bf16(force)
            try:
                return call()
            finally:
                use_bf16(None)

        return run

    return {f"{name}_s": at(None), f"{name}_float32_s": at(False)}


def measure_paper(image: Image, repeats: int) -> dict[str, float]:
    """Figures of the paper's preset and of the yardstick."""
    method = paper(image)
    parts: dict[str, float] = {}
    located = both_precisions("paper", lambda: method.locate(image).points)
    figures = least({**located, "literal_s": lambda: literal(method, image, parts)}, repeats)
    figures["literal_patches_s"], figures["literal_network_s"] = parts["patches"], parts["network"]
    figures |= split(method, image, repeats)
    figures |= least(both_precisions("train_step", train_step(image)), max(2, repeats // 2))
    figures["bf16"] = float(conv_dtype() == torch.bfloat16)
    figures["times_faster_than_literal"] = figures["literal_s"] / figures["paper_s"]
    fast, exact = (call() for call in located.values())
    figures["float32_from_literal_mm"] = float(np.abs(exact - literal(method, image, parts)).max())
    figures["bf16_from_float32_mm"] = float(np.abs(fast - exact).max())
    return figures


def split(method: PublishedPIN, image: Image, repeats: int) -> dict[str, float]:
    """Reading patches and the network apart, each as often as one volume needs it."""
    space, net, work = method.spaces[0], method.nets[0].eval(), method.working_images(image)["work"]
    points = space.decode(space.starts(np.array(SIZE_XYZ, float), None))
    cut = cut_planes(work.array[0], points, method.config.patch_px)
    patches = torch.from_numpy(cut).permute(0, 3, 1, 2)
    with torch.inference_mode():
        prepared = net.prepare()
        calls: Calls = {
            "paper_patches_s": lambda: cut_planes(work.array[0], points, method.config.patch_px, cut),
            "paper_network_s": lambda: net(patches, prepared),
        }
        return {name: method.iterations * value for name, value in least(calls, 10 * repeats).items()}


def train_step(image: Image) -> Callable[[], None]:
    """One step: 64 examples, loss, gradients, Adam."""
    method = paper(image).train()
    stage = method.stages()[0]
    optimizer = torch.optim.Adam(method.nets.parameters(), lr=stage.lr)
    rng = np.random.default_rng(2)
    marks = make_study(image, rng, degrees=15).cases[0].landmarks
    case = TrainingCase("0", method.working_images(image), marks)

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
    return least(both_precisions("recommended", lambda: method.locate(image)), repeats)


def peak_gb(volume_file: Path, preset: str, threads: int) -> float:
    """Of a fresh process that builds the model and locates in one volume; see :func:`report_peak`."""
    command = [sys.executable, __file__, "--peak-of", str(volume_file), "--preset", preset, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def report_peak(volume_file: Path, preset: str) -> None:
    """Prints peak resident memory minus that after imports and reading, in GB."""
    if preset == "recommended":
        import anatomark.methods.pin.recommended  # noqa: F401 - an import, not part of the peak
    image = make_image(np.load(volume_file))
    before = resident_gb("VmRSS")
    BUILD[preset](image).locate(image)
    print(resident_gb("VmHWM") - before)


def resident_gb(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process. Linux's own count, because a child's ``ru_maxrss`` starts at
    its parent's; elsewhere ``ru_maxrss`` for both."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if "model name" in x), model)
    threads = torch.get_num_threads()
    return {"cpu": model, "threads": threads, "torch": torch.__version__, "python": platform.python_version()}


def commit() -> str:
    """The checkout's commit, empty where there is none."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--preset", choices=("paper", "recommended", "both"), default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of is not None:
        report_peak(options.peak_of, options.preset)
        return
    presets = ("paper", "recommended") if options.preset == "both" else (options.preset,)
    volume = make_volume(np.random.default_rng(0))
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "volume.npy", volume)
        for preset in presets:
            figures[f"{preset}_peak_gb"] = peak_gb(Path(folder) / "volume.npy", preset, options.threads)
    for preset in presets:
        measure = measure_paper if preset == "paper" else measure_recommended
        figures |= measure(make_image(volume), options.repeats)
    text = json.dumps({"figures": figures, "machine": machine(), "commit": commit()}, indent=2)
    print(text)
    if options.out is not None:
        partial = options.out.with_name(options.out.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, options.out)


if __name__ == "__main__":
    main()
