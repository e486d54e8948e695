"""How quick is the review page in a real browser, drawn by the processor alone?

    python studies/page_speed.py --out FILE.json [--voxels 256] [--cases 300] [--landmarks 60]

Reviews of made-up cases are offered by the service, a Chromium without a graphics card opens them. ``queue_s``: the
service's answer with all cases; ``first_s``: from the page's address to its first volume on the screen; ``next_s``:
from choosing another volume to seeing it (median of three that were not fetched before), ``ready_s``: the same where
the page has fetched it already, as it does with the queue's next; ``volume_fps``, ``radiograph_fps``: frames a second
during a drag of one point, ``scroll_fps``: while slices of the volume are scrolled. Needs playwright and a Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import common

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

FRAMES = """() => { globalThis.counted = 0; globalThis.counting = true;
  const tick = () => { counted += 1; if (counting) requestAnimationFrame(tick); }; requestAnimationFrame(tick); }"""


def frames_a_second(person: Any, act: Callable[[], None]) -> float:
    """Frames that the page draws while somebody acts."""
    person.page.evaluate(FRAMES)
    began = time.perf_counter()
    act()
    took = time.perf_counter() - began
    return float(person.page.evaluate("() => { counting = false; return counted; }") / took)


def until_shown(person: Any, case: str) -> float:
    """Seconds from choosing a case to seeing it: its points, its slices drawn, and two more frames."""
    began = time.perf_counter()
    person.open(case)
    person.settle()
    return time.perf_counter() - began


def dragged(person: Any, tile: str, name: str) -> float:
    """Frames a second while a point goes round, 120 moves of the mouse at the pace of a hand."""
    person.select(name)
    x, y = person.marks()[tile, name]
    mouse = person.page.mouse
    mouse.move(x, y)
    mouse.down()

    def act() -> None:
        for angle in np.linspace(0, 4 * np.pi, 120):
            mouse.move(x + 30 * np.sin(angle), y + 30 * (1 - np.cos(angle)))
            time.sleep(0.012)

    rate = frames_a_second(person, act)
    mouse.up()
    return rate


def scrolled(person: Any) -> float:
    """Frames a second while 60 slices are scrolled."""
    person.page.mouse.move(*person.middle("axial"))

    def act() -> None:
        for _ in range(60):
            person.page.mouse.wheel(0, 100)
            time.sleep(0.025)

    return frames_a_second(person, act)


def main(given: Sequence[str] | None = None) -> None:
    """Make the reviews, open them, and write the times."""
    from playwright.sync_api import sync_playwright

    from browsing import RADIOGRAPH, Person, axes, made, served, volume, write_case

    parser = common.arguments(__doc__)
    parser.add_argument("--voxels", type=int, default=256)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--landmarks", type=int, default=60)
    args = parser.parse_args(given)
    grid = volume(axes("LPS"), [0.8, 0.8, 0.8], [args.voxels] * 3)
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))),
            args=["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"],
        )
        image, landmarks = made(grid)
        for k in range(6):
            write_case(Path(work) / "volumes", f"v{k}.nii.gz", image, landmarks, suspicion=1.0 - k / 10)
        small, few = made(RADIOGRAPH, more=args.landmarks)
        write_case(Path(work) / "radiographs", "a.mha", small, few)
        tiny, some = made(volume(axes("LPS"), [2.0, 2.0, 2.0], (12, 24, 30)), more=args.landmarks)
        for k in range(args.cases):
            write_case(Path(work) / "queue", f"c{k:04}.nii.gz", tiny, some, suspicion=k / args.cases)
        with served(Path(work) / "queue") as client:
            client.get("/v1/cases").raise_for_status()
            began = time.perf_counter()
            client.get("/v1/cases").raise_for_status()
            numbers["queue_s"] = time.perf_counter() - began
        for name, tile in (("volumes", "axial"), ("radiographs", "axial")):
            with served(Path(work) / name) as client:
                person = Person(browser.new_page(viewport={"width": 1280, "height": 800}), client)
                if name == "radiographs":
                    until_shown(person, "a")
                    numbers["radiograph_fps"] = dragged(person, tile, "left")
                    continue
                numbers["first_s"] = until_shown(person, "v0")
                time.sleep(5)  # the 3D view, and the next case's image
                numbers["ready_s"] = until_shown(person, "v1")
                others = []
                for k in (5, 3, 0):
                    time.sleep(5)
                    others.append(until_shown(person, f"v{k}"))
                numbers["next_s"] = float(np.median(others))
                time.sleep(5)
                numbers["volume_fps"] = dragged(person, tile, "left")
                numbers["scroll_fps"] = scrolled(person)
        browser.close()
    common.record(args.out, numbers, voxels=args.voxels, cases=args.cases)


if __name__ == "__main__":
    common.run(main)
