"""The README's picture: the review page on the bundled brains, as the model brain-afids finds their landmarks.

    python studies/readme_picture.py --out docs/images/review.png

Needs playwright and a Chromium. The PNG has 256 colours, to be small.
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
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Picture

import anatomark
from anatomark import InputError

BRAINS = {"person": "Colin27_T1w.nii.gz", "template": "MNI152NLin2009cAsym_T1w.nii.gz"}
SIZE = {"width": 1280, "height": 720}
WAIT_S = 180.0
DRAWN = "document.querySelectorAll('svg[data-tile]:not(.away) g[data-point]:not(.away)').length > 0"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    args = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        png = photographed(Path(folder))
    Picture.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Picture.Dither.NONE).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} kB")


def photographed(folder: Path) -> bytes:
    """PNG of the page that ``anatomark review`` opens."""
    data = Path(anatomark.__file__).parent / "zoo" / "brain-data"
    for name, file in BRAINS.items():
        shutil.copy(data / file, folder / f"{name}.nii.gz")
    images = [str(folder / f"{name}.nii.gz") for name in BRAINS]
    command = [sys.executable, "-m", "anatomark", "review", *images, "--model", "brain-afids", "--out"]
    command += [str(folder / "corrected"), "--port", "0", "--no-browser", "--person", "Ada"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            url = next((m[0] for line in service.stdout if (m := re.search(r"http://\S+", line))), None)
            if url is None:
                raise InputError("the review did not begin")
            return _screen(f"{url}page/#case=person")
        finally:
            service.terminate()


def _screen(url: str) -> bytes:
    from playwright.sync_api import sync_playwright

    chromium = next((p for n in ("chromium", "google-chrome", "chrome") if (p := shutil.which(n))), None)
    options = ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options, timeout=WAIT_S * 1000)
        page = browser.new_page(viewport=SIZE, color_scheme="dark")
        page.set_default_timeout(WAIT_S * 1000)
        page.goto(url)
        end = time.monotonic() + WAIT_S
        while not page.evaluate(DRAWN):  # playwright's own waiting runs code that the page's policy forbids
            if time.monotonic() > end:
                raise InputError(f"the page drew no landmarks within {WAIT_S:g} s")
            time.sleep(0.2)
        page.locator('#points .row[data-point="2"]').click()
        time.sleep(5)  # until the slices stand where the landmark is
        png = page.screenshot()
        browser.close()
    return png


if __name__ == "__main__":
    main()
