"""dlib's regression trees. Run by compare.py: python dlib_trees.py FOLDER MINUTES THREADS (it has no time limit)"""

import json
import sys
import time
from pathlib import Path

import numpy as np

folder, threads = Path(sys.argv[1]), int(sys.argv[3])
train, test = (json.loads((folder / f"{split}.json").read_text()) for split in ("train", "test"))

# ---- what a user of dlib writes
import dlib  # noqa: E402


def read(case):
    image = dlib.load_grayscale_image(case["image"])
    return image, dlib.rectangle(0, 0, image.shape[1], image.shape[0])


images, boxes = [], []
for case in train:
    image, box = read(case)
    parts = [dlib.point(round(x), round(y)) for y, x in case["points"]]
    images.append(image)
    boxes.append([dlib.full_object_detection(box, parts)])
options = dlib.shape_predictor_training_options()
options.num_threads = threads
options.oversampling_amount, options.tree_depth, options.nu, options.cascade_depth = 10, 4, 0.1, 15
began = time.monotonic()
predictor = dlib.train_shape_predictor(images, boxes, options)
took = (time.monotonic() - began) / 60
found, seconds = {}, []
for case in test:
    start = time.perf_counter()
    shape = predictor(*read(case))
    found[case["case"]] = [[part.y, part.x] for part in shape.parts()]
    seconds.append(time.perf_counter() - start)
# ---- and no more

(folder / "dlib_trees.json").write_text(
    json.dumps({"points": found, "seconds": float(np.median(seconds)), "minutes": took})
)
