"""Reviews of made-up cases, offered by the service itself in a thread, and what a person does with its page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import rotation_from_vector
from anatomark.io.images import write_image
from anatomark.model.prediction import Prediction, write_prediction
from anatomark.serve.app import create_app
from anatomark.serve.desk import Desk, Setting
from anatomark.serve.guard import own_names
from anatomark.serve.jobs import Jobs
from anatomark.serve.pool import Workers
from anatomark.serve.start import bound

WAIT_S = 90.0
NAMES = ("spot", "left", "front", "low", "gone", "unfound")
SPOT = {2: (1500, 700), 3: (9, 21, 26)}  # array index of the one bright voxel


def volume(turn: np.ndarray, spacing: Sequence[float], shape: Sequence[int] = (30, 36, 40)) -> Grid:
    """A grid about (12, -31, 40) mm; ``turn``: (3, 3), columns the directions of the array's axes."""
    return Grid.centred(tuple(shape), np.asarray(turn, float) * spacing, np.array([12.0, -31.0, 40.0]))


OBLIQUE = rotation_from_vector(np.radians([17.0, -14.0, 21.0]))[:, ::-1]
ORDERS = ("RAS", "PSL", "ILA", "SRP")
TOWARDS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def axes(order: str) -> np.ndarray:
    """Columns: where the array's axes run, slowest first, of a file whose axes run as ``order`` says, fastest first."""
    return np.array([TOWARDS[letter] for letter in reversed(order)], float).T


VOLUMES = {
    "oblique.nii.gz": volume(OBLIQUE, [2.0, 1.6, 1.6]),
    "anisotropic.nrrd": volume(axes("LPS"), [4.0, 0.7, 0.7], (14, 50, 60)),
    "mirrored.nii.gz": volume(axes("RPS"), [1.7, 1.5, 1.3]),
    **{f"order-{order}.nii.gz": volume(axes(order), [1.9, 1.6, 1.4]) for order in ORDERS},
}

# 1935 x 2400, as cephalograms are; cropped, so that its first pixel is not at 0
RADIOGRAPH = Grid.from_axes((2400, 1935), [[0.0, 0.1], [0.1, 0.0]], [12.5, -7.0])


def made(grid: Grid, more: int = 0) -> tuple[Image, Landmarks]:
    """Dark noise with one bright voxel, and the landmarks: ``spot`` on it, two without a position; in 2D
    ``more`` in the lower right corner."""
    rng = np.random.default_rng(3)
    array = rng.integers(0, 60, grid.shape, dtype=np.uint8)
    index = np.array(SPOT[grid.ndim])
    array[tuple(slice(at - 1, at + 2) for at in index)] = 30  # alike on all sides: its middle is seen in the middle
    array[tuple(index)] = 255
    if grid.ndim == 2:  # one pixel of millions would be lost between those of the screen
        array[index[0] - 9 : index[0] + 10, index[1] - 9 : index[1] + 10] = 255
    middle = np.array(grid.shape) / 2
    steps = np.eye(grid.ndim) * np.array(grid.shape) * 0.2
    low = middle + steps[0 if grid.ndim == 3 else -1]
    places = [index, middle - steps[-1], middle - steps[-2], low]
    points = np.full((6 + more, grid.ndim), np.nan)
    points[:4] = grid.to_world(np.array(places, float))
    if more:
        points[6:] = grid.to_world(np.array(grid.shape) * rng.uniform(0.75, 1, (more, grid.ndim)))
    status = [Status.DEFINED] * 4 + [Status.ABSENT, Status.UNANNOTATED] + [Status.DEFINED] * more
    landmarks = Landmarks(
        (*NAMES, *(f"more {k + 1}" for k in range(more))), points, tuple(status),
        score=np.array([0.9, 0.8, 0.4, 0.7, 0.1, np.nan] + [0.5] * more),
        radius90=np.array([2.0, 3, 4, 2, np.nan, np.nan] + [2.0] * more),
        descriptions=("the bright voxel", "left of the middle", *[""] * (4 + more)),
    )  # fmt: skip
    return Image(array[None], grid), landmarks


def write_case(folder: Path, name: str, image: Image, landmarks: Landmarks, **facts: Any) -> None:
    """The image in ``folder/images``, its prediction in ``folder/found``."""
    for part in ("images", "found"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_image(image, folder / "images" / name)
    source = {"model": "0" * 16, "model_name": "made-up"}
    prediction = Prediction(landmarks, source=source, **facts)
    write_prediction(prediction, folder / "found", name.partition(".")[0], ["mrk.json", "json"])


@contextmanager
def served(folder: Path, model: str | None = None):
    """The service with the review ``folder/corrected`` of the cases in ``folder``; yields a client of it."""
    setting = Setting(folder / "corrected", [folder / "images"], folder / "found", model, person="Ada")
    desk, workers = Desk(setting), Workers([], 1)
    app = create_app(workers, desk, Jobs(desk, workers), names=own_names("127.0.0.1"))
    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client
    server.should_exit = True
    thread.join(10)
    listening.close()
    desk.close()


def eventually(check: Callable[[], Any], what: str = "") -> Any:
    """What ``check`` returns once it is true. Playwright's own waiting runs code that the page's policy forbids."""
    end = time.monotonic() + WAIT_S
    while not (result := check()):
        assert time.monotonic() < end, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.05)
    return result


class Person:
    """Somebody at the page, by what is on the screen alone."""

    def __init__(self, page: Any, client: httpx.Client):
        self.page, self.client = page, client
        self.problems: list[str] = []
        page.set_default_timeout(WAIT_S * 1000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def open(self, case: str) -> None:
        """The case on the screen; the page is loaded once."""
        if self.page.url == "about:blank":
            self.page.goto(f"{self.url}/page/#case={case}")
        self.page.evaluate(f"location.hash = '#case={case}'")
        self.shown(case)

    def shown(self, case: str) -> None:
        eventually(lambda: self.page.evaluate("document.body.dataset.case") == case, f"{case} is shown")
        eventually(lambda: self.marks(), f"marks of {case}")

    def marks(self) -> dict[tuple[str, str], np.ndarray]:
        """Where each mark is drawn, CSS pixels of the window, by tile and name."""
        found = self.page.evaluate(
            """[...document.querySelectorAll('svg[data-tile]:not(.away) g[data-point]:not(.away)')].map((mark) => {
                const box = mark.ownerSVGElement.getBoundingClientRect();
                const at = mark.getAttribute('transform').match(/-?[0-9.]+/g).map(Number);
                return [mark.ownerSVGElement.dataset.tile, mark.dataset.point, box.left + at[0], box.top + at[1]];
            })"""
        )
        return {(tile, name): np.array([x, y]) for tile, name, x, y in found}

    def select(self, name: str) -> None:
        self.page.locator(f'#points .row[data-point="{name}"]').click()
        eventually(lambda: self.page.inner_text("#card-name") == name, f"{name} is selected")
        self.settle()

    def dim(self) -> None:
        """Contrast down, so that the brightest voxel of all is seen among bright ones."""
        self.page.evaluate(
            "(slider) => { slider.value = -1; slider.dispatchEvent(new Event('input')); }",
            self.page.query_selector("#contrast"),
        )
        self.settle()

    def settle(self) -> None:
        """Two frames, so that what was asked for is drawn."""
        frame = "new Promise((go) => requestAnimationFrame(() => setTimeout(go)))"
        self.page.evaluate(f"{frame}.then(() => {frame})")

    def saved(self) -> None:
        eventually(lambda: self.page.inner_text("#saved") == "saved", "everything is saved")

    def drag(self, tile: str, name: str, dx: float, dy: float, steps: int = 4) -> None:
        x, y = self.marks()[tile, name]
        mouse = self.page.mouse
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + dx, y + dy, steps=steps)
        mouse.up()
        self.settle()

    def middle(self, tile: str) -> tuple[float, float]:
        """Of a tile, CSS pixels of the window."""
        box = self.page.locator(f"svg[data-tile={tile}]").bounding_box()
        return round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)

    def document(self, case: str) -> dict[str, Any]:
        return self.client.get(f"/v1/cases/{case}/landmarks").json()

    def points(self, case: str) -> dict[str, Any]:
        return {point["name"]: point for point in self.document(case)["points"]}

    def state(self, case: str, name: str) -> str:
        self.saved()
        return self.points(case)[name]["state"]
