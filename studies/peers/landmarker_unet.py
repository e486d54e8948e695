"""landmarker's way: a U-Net that learns heatmaps. compare.py runs it with FOLDER MINUTES THREADS"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

if torch.version.cuda is None:  # beside a torchvision with CUDA
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

folder, minutes, threads = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
began = time.monotonic()
torch.set_num_threads(threads)
torch.manual_seed(0)
train, test = (json.loads((folder / f"{split}.json").read_text()) for split in ("train", "test"))

# ---- what a user of landmarker writes
from landmarker.data import LandmarkDataset  # noqa: E402
from landmarker.heatmap import GaussianHeatmapGenerator, heatmap_to_coord  # noqa: E402
from landmarker.losses import NLLLoss  # noqa: E402
from monai.networks.nets import UNet  # noqa: E402
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, ScaleIntensityd  # noqa: E402

SIZE = (256, 256)
points = np.array([case["points"] for case in train])  # y, x of each landmark, pixels
augment = Compose([
    ScaleIntensityd("image"),
    RandAffined("image", prob=1, rotate_range=0.1, scale_range=0.1, translate_range=20, padding_mode="zeros"),
    RandAdjustContrastd("image", prob=0.5),
])  # fmt: skip
data = LandmarkDataset([case["image"] for case in train], points, dim_img=SIZE, transform=augment)
net = UNet(2, 1, points.shape[1], channels=(32, 64, 128, 256), strides=(2, 2, 2), num_res_units=2, norm="INSTANCE")
heatmaps = GaussianHeatmapGenerator(points.shape[1], sigmas=3.0, heatmap_size=SIZE, gamma=None)
loss_of, optimizer = NLLLoss(), torch.optim.Adam(net.parameters(), lr=1e-3)
loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, drop_last=True)
end, steps = began + 0.97 * 60 * minutes, 0
while time.monotonic() < end:
    for batch in loader:
        target = heatmaps(batch["landmark"])
        target = target / target.sum((2, 3), keepdim=True).clamp_min(1e-9)
        loss = loss_of(net(batch["image"]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        share = (time.monotonic() - began) / (end - began)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * max(0.0, 1 - share) ** 0.9
        if share >= 1:
            break
net.eval()
plain = Compose([ScaleIntensityd("image")])
found, seconds = {}, []
for case in test:
    start = time.perf_counter()
    one = LandmarkDataset([case["image"]], np.zeros((1, points.shape[1], 2)), dim_img=SIZE, transform=plain)[0]
    with torch.inference_mode():
        place = heatmap_to_coord(torch.softmax(net(one["image"][None]).flatten(2), 2).view(1, -1, *SIZE),
                                 method="local_soft_argmax")[0]  # fmt: skip
    scale = float((one["dim_original"].numpy() + 2 * one["padding"].numpy())[0]) / SIZE[0]
    found[case["case"]] = (place.numpy() * scale - one["padding"].numpy()).tolist()
    seconds.append(time.perf_counter() - start)
# ---- and no more

(folder / "landmarker_unet.json").write_text(
    json.dumps({"points": found, "seconds": float(np.median(seconds)), "steps": steps})
)
