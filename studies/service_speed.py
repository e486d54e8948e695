"""What does asking the service cost over predicting in the same program?

    python studies/service_speed.py MODEL IMAGE --out FILE.json [--spacing 0.1] [--repeats 10]

``anatomark serve MODEL`` with one worker is asked for the image's landmarks again and again, in turn with reading and
predicting it here with one thread, as a worker does. ``request_s``, ``here_s``: medians; ``over_s``: the median of the
differences; the first of each is not counted.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
from collections.abc import Sequence

import httpx
import numpy as np
import torch

import common
from anatomark.io.images import read_image
from anatomark.model.predict import load


def main(given: Sequence[str] | None = None) -> None:
    """Ask, predict, and write the times."""
    parser = common.arguments(__doc__, "model", "image")
    parser.add_argument("--spacing", type=float)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    model = load(args.model)
    data = {} if args.spacing is None else {"spacing": str(args.spacing)}
    command = [sys.executable, "-m", "anatomark", "serve", args.model, "--workers", "1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as service:
        assert service.stdout is not None
        atexit.register(service.kill)
        line = next(line for line in service.stdout if " is at http://" in line)
        url = line.split(" is at ")[1].split("/")[2]
        with httpx.Client(base_url=f"http://{url}", timeout=600, trust_env=False) as client:
            name = client.get("/v1/models").json()[0]["name"]

            def ask() -> None:
                files = {"image": (args.image.name, args.image.read_bytes())}
                client.post(f"/v1/models/{name}/predict", files=files, data=data).raise_for_status()

            def predict() -> None:
                model.predict(read_image(args.image, args.spacing))

            pairs = [(common.timed(ask)[1], common.timed(predict)[1]) for _ in range(args.repeats + 1)][1:]
        service.kill()
    asked, here = np.array(pairs).T
    figures = {"request_s": np.median(asked), "here_s": np.median(here), "over_s": np.median(asked - here)}
    common.record(args.out, {k: float(v) for k, v in figures.items()}, model=args.model, image=args.image.name)


if __name__ == "__main__":
    common.run(main)
