"""The documentation's pictures of the review page, on bundled brains, with the points that brain-afids finds.

    python studies/page_pictures.py --out docs/images [--heads 20]

``review.png``: the README's. ``review-queue.png``, ``review-moved.png``: the tutorial's, on simulated heads, of which
one has its contrast inverted and one is drowned in noise. Needs playwright and a Chromium. The PNGs have 256 colours,
to be small.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

import anatomark
from anatomark import Image, InputError, read_image
from anatomark.io.images import write_image

BRAINS = {"person": "Colin27_T1w.nii.gz", "template": "MNI152NLin2009cAsym_T1w.nii.gz"}
POINTS = "Colin27_afids.fcsv"
WAIT_S = 180.0
DRAWN = "document.querySelectorAll('svg[data-tile]:not(.away) g[data-point]:not(.away)').length > 0"
PLACE = """(name) => { const mark = document.querySelector(`svg[data-tile=sagittal] g[data-point="${name}"]`);
  const box = mark.ownerSVGElement.getBoundingClientRect();
  const at = mark.getAttribute("transform").match(/-?[0-9.]+/g).map(Number);
  return [box.left + at[0], box.top + at[1]]; }"""


def main(given: Sequence[str] | None = None) -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--heads", type=int, default=20)
    args = parser.parse_args(given)
    data = Path(anatomark.__file__).parent / "zoo" / "brain-data"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        brains = [Path(shutil.copy(data / file, work / f"{name}.nii.gz")) for name, file in BRAINS.items()]
        with review(work / "one", brains) as url, page(f"{url}page/#case=person", 720, "dark") as shown:
            shown.locator('#points .row[data-point="2"]').click()
            save(shown, args.out / "review.png")
        with review(work / "two", heads(work, data, args.heads)) as url, page(f"{url}page/", 800, "light") as shown:
            save(shown, args.out / "review-queue.png")
            shown.locator("#cases .row").nth(2).click()
            until(lambda: shown.evaluate(DRAWN))
            shown.locator('#points .row[data-point="2"]').click()
            time.sleep(3)
            x, y = shown.evaluate(PLACE, "2")
            shown.mouse.move(x, y)
            shown.mouse.down()
            shown.mouse.move(x + 14, y - 36, steps=5)
            shown.mouse.up()
            save(shown, args.out / "review-moved.png")


def heads(work: Path, data: Path, count: int) -> list[Path]:
    """Simulated heads, one inverted, one noisy."""
    for file in (BRAINS["person"], POINTS):
        shutil.copy(data / file, work / file)
    manifest = work / "colin.csv"
    manifest.write_text(f"case,image,landmarks,split\nColin27,{BRAINS['person']},{POINTS},train\n")
    anatomark.simulate(manifest, work / "simulated", count=count)
    paths = []
    for number, made in enumerate(sorted((work / "simulated").rglob("*.nii.gz")), 1):
        image, path = read_image(made), work / f"subject-{number:02}.nii.gz"
        array = image.array.astype(np.float32)
        if number == 7:
            array += np.random.default_rng(0).normal(0, 0.35 * array.max(), array.shape)
        if number == 13:
            array = np.where(array > 0.05 * array.max(), array.max() - array, array)
        write_image(Image(array.clip(0).astype(np.float32), image.grid), path)
        paths.append(path)
    return paths


@contextmanager
def review(folder: Path, images: Sequence[Path]) -> Iterator[str]:
    """The address of the page that ``anatomark review`` opens on predictions of these images."""
    command = [sys.executable, "-m", "anatomark", "review", *map(str, images), "--model", "brain-afids", "--out"]
    command += [str(folder), "--port", "0", "--no-browser", "--person", "Ada"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            url = next((m[0] for line in service.stdout if (m := re.search(r"http://\S+", line))), None)
            if url is None:
                raise InputError("the review did not begin")
            yield url
        finally:
            service.terminate()


@contextmanager
def page(url: str, height: int, scheme: str) -> Iterator[Any]:
    """The page in a browser, its first case drawn."""
    from playwright.sync_api import sync_playwright

    chromium = next((p for n in ("chromium", "google-chrome", "chrome") if (p := shutil.which(n))), None)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options, timeout=WAIT_S * 1000)
        shown = browser.new_page(viewport={"width": 1280, "height": height}, color_scheme=scheme)
        shown.set_default_timeout(WAIT_S * 1000)
        shown.goto(url)
        until(lambda: shown.evaluate(DRAWN))
        yield shown
        browser.close()


def until(done: Callable[[], bool]) -> None:
    """Playwright's own waiting runs code that the page's policy forbids."""
    end = time.monotonic() + WAIT_S
    while not done():
        if time.monotonic() > end:
            raise InputError(f"the page drew no landmarks within {WAIT_S:g} s")
        time.sleep(0.2)


def save(shown: Any, out: Path) -> None:
    """A picture of what the page shows once it has come to rest."""
    time.sleep(4)
    picture = Picture.open(io.BytesIO(shown.screenshot())).convert("RGB")
    picture.quantize(256, dither=Picture.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
