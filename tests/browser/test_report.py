"""The report in a real browser, opened as a file: slices scroll, marks lie on what they mark, the 3D view turns."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import rotation_from_vector
from anatomark.evaluation import viewer as module
from anatomark.evaluation.metrics import compare
from anatomark.evaluation.predictions import Predictions
from anatomark.evaluation.report import render
from anatomark.evaluation.result import EvaluationResult
from anatomark.model.prediction import Prediction
from anatomark.pictures.style import TRUTH

RING = tuple(int(TRUTH[i : i + 2], 16) for i in (1, 3, 5))


class _Held:
    def __init__(self, name: str, image: Image):
        self.id, self.held = name, image

    def image(self) -> Image:
        return self.held


@cache
def report(ndim: int) -> str:
    """Two cases of two landmarks, a bright blob at each true point; the first is found 7 mm away, the other not."""
    axes = np.diag([1.6, 1.0, 1.2][-ndim:])[:, ::-1]
    axes = rotation_from_vector(np.array([0.1, -0.2, 0.15])) @ axes if ndim == 3 else axes
    grid = Grid.from_axes((40, 48, 44)[:ndim], axes, np.full(ndim, -20.0))
    cases, true, made = [], {}, {}
    for k, case in enumerate(("one", "two")):
        points = grid.to_world(np.array([[18, 26, 20 + k], [30, 12, 12]])[:, :ndim])
        array = sum(250 * np.exp(-((grid.points() - p) ** 2).sum(-1) / 8) for p in points)
        cases.append(_Held(case, Image(np.asarray(array, np.float32)[None], grid)))
        if ndim == 2:
            points[1] = np.nan  # one ring is enough to look for
        true[case] = Landmarks(("tip", "base"), points)
        found = points + 7 * np.eye(ndim)[0]
        found[1] = np.nan
        made[case] = Prediction(Landmarks(("tip", "base"), found, radius90=np.array([9.0, np.nan])))
    predictions = Predictions(made)
    errors = compare(true, predictions.landmarks, ("tip", "base"))
    said = {"tip": "the <tip>"}
    result = EvaluationResult("m", "c.csv", "test", "files", errors, descriptions=said, predictions=predictions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "case_picture", lambda *_: b"")  # it has tests of its own
        return render(result, *module.look(result, cases, true))  # type: ignore[arg-type]


@pytest.fixture
def opened(browser: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, with the first landmark that has a prediction chosen."""
    (tmp_path / "report.html").write_text(report(request.param), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.extend([request.url] if request.url.startswith("http") else []))
    page.goto((tmp_path / "report.html").as_uri(), timeout=90_000)
    page.wait_for_selector("#viewer[data-ready]", timeout=90_000)
    page.locator("#viewer").scroll_into_view_if_needed()
    page.locator("#viewer li button", has_text="mm").first.click()
    page.wait_for_function("document.querySelector('#viewer [aria-current=true] span').textContent.endsWith('mm')")
    page.wait_for_timeout(200)
    yield page
    assert problems == []
    page.close()


def drawn(page: Any, plane: str) -> Array:
    """(rows, columns, 3) what is on a canvas."""
    png = page.locator(f'[data-plane="{plane}"] canvas').screenshot()
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)


def middle_of(pixels: Array, colour: tuple[int, int, int]) -> Array:
    """(2,) column and row of the middle of what has this colour."""
    near = np.abs(pixels - colour).max(-1) < 40
    assert near.any()
    rows, columns = np.nonzero(near)
    return np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2


@pytest.mark.parametrize("opened", [3], indirect=True)
def test_slices_scroll_and_the_view_turns(opened: Any) -> None:
    page, before = opened, {plane: drawn(opened, plane) for plane in ("axial", "coronal", "sagittal", "3d")}
    text = {plane: page.locator(f'[data-plane="{plane}"] output') for plane in before}
    assert "tip the <tip>" in page.locator("#viewer .bar").inner_text() and "at the truth" in text["axial"].inner_text()
    canvas = page.locator('[data-plane="axial"] canvas')

    canvas.hover()
    page.wait_for_timeout(300)
    first = text["axial"].inner_text()
    page.mouse.wheel(0, 200)
    page.wait_for_function("was => document.querySelector('[data-plane=axial] output').value !== was", arg=first)
    by_wheel = drawn(page, "axial")
    assert np.abs(by_wheel - before["axial"]).max() > 60 and (drawn(page, "coronal") == before["coronal"]).all()

    slider = page.locator('[data-plane="coronal"] input')
    at = int(slider.input_value())
    slider.press("ArrowRight")
    assert int(slider.input_value()) == at + 1 and "mm" in text["coronal"].inner_text()
    page.locator('[data-plane="sagittal"] canvas').focus()
    at = int(page.locator('[data-plane="sagittal"] input').input_value())
    page.keyboard.press("ArrowUp")
    assert int(page.locator('[data-plane="sagittal"] input').input_value()) == at + 1

    box = page.locator('[data-plane="3d"] canvas').bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 20, steps=4)
    page.mouse.up()
    turned = drawn(page, "3d")
    assert np.abs(turned - before["3d"]).mean() > 1
    page.locator('[data-plane="3d"] canvas').dblclick()
    assert np.abs(drawn(page, "3d") - before["3d"]).mean() < 1

    chosen = page.locator("#viewer [aria-current=true]")
    before_n = chosen.inner_text()
    page.keyboard.press("n")
    assert chosen.count() == 1 and chosen.inner_text() != before_n
    page.keyboard.press("b")
    assert chosen.inner_text() == before_n


@pytest.mark.parametrize("opened", [3, 2], indirect=True)
def test_the_ring_lies_on_what_is_bright(opened: Any) -> None:
    planes = [pane.get_attribute("data-plane") for pane in opened.locator("#viewer .pane").all()]
    for plane in set(planes) - {"3d"}:
        pixels = drawn(opened, plane)
        ring = middle_of(pixels, RING)
        grey = (np.ptp(pixels, axis=-1) < 12) & (pixels.mean(-1) > 90)
        rows, columns = np.nonzero(grey)
        near = np.hypot(columns - ring[0], rows - ring[1]) < 45
        assert near.sum() > 30
        assert np.hypot(columns[near].mean() - ring[0], rows[near].mean() - ring[1]) < 3


@pytest.mark.parametrize("opened", [2], indirect=True)
def test_a_flat_image_zooms_about_the_pointer_and_shifts(opened: Any) -> None:
    canvas = opened.locator('[data-plane="image"] canvas')
    ring, box = middle_of(drawn(opened, "image"), RING), canvas.bounding_box()
    opened.wait_for_timeout(300)
    opened.mouse.move(box["x"] + ring[0], box["y"] + ring[1])
    opened.mouse.wheel(0, -300)
    opened.wait_for_function("document.querySelector('[data-plane=image] output').value.endsWith('×')")
    assert middle_of(drawn(opened, "image"), RING) == pytest.approx(ring, abs=1.5)
    opened.mouse.down()
    opened.mouse.move(box["x"] + ring[0] + 40, box["y"] + ring[1] - 30, steps=3)
    opened.mouse.up()
    assert middle_of(drawn(opened, "image"), RING) == pytest.approx(ring + [40, -30], abs=1.5)
