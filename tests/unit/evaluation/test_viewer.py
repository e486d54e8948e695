"""What the report embeds to look around in: every voxel where its landmark is, few images, few bytes."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import weakref
from typing import Any

import numpy as np
import PIL.Image
import pytest

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import rotation_from_vector
from anatomark.errors import InputError
from anatomark.evaluation import viewer as module
from anatomark.evaluation.metrics import compare
from anatomark.evaluation.predictions import Predictions
from anatomark.evaluation.report import render
from anatomark.evaluation.result import EvaluationResult
from anatomark.evaluation.viewer import Viewer, look, worst_landmarks
from anatomark.model.prediction import Prediction
from anatomark.pictures import stack as stacks
from anatomark.pictures.window import Window

SPACING = np.array([2.0, 0.7, 1.1])
ORDERS = [
    np.diag(SPACING)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = [
    rotation_from_vector(np.array(v)) @ np.diag(SPACING)[[2, 1, 0]] for v in ((0.3, -0.4, 0.5), (-0.6, 0.1, 0.2))
]


def pixels(uri: str) -> Array:
    kind, data = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))), dtype=float)


def middle(stack: dict[str, Any]) -> Array:
    """The middle of what is bright, as a voxel (x, y[, z]), read as the page's script reads it."""
    sheet, (width, height) = pixels(stack["image"]), stack["size"][:2]
    sheet = sheet if sheet.ndim == 2 else sheet.mean(2)
    row, column = np.nonzero(sheet > 140)
    tile = (row // height) * stack["columns"] + column // width
    return np.stack([column % width, row % height, tile])[: len(stack["size"])].mean(1)


def mark(stack: dict[str, Any], world: Array) -> Array:
    """The voxel (x, y[, z]) that the page's script puts a point's mark on."""
    return np.asarray(stack["index"]) @ [*world, 1]


def one(image: Image, point: Array, away: float = 1.5) -> dict[str, Any]:
    truth = Landmarks(("dot",), point[None])
    found = truth.with_points(truth.points + away)
    (stack,) = module._stacks(image, 0, truth, found, ["dot"])
    return json.loads(json.dumps(stack))


def dotted(axes: Array, shape: tuple[int, ...], index: tuple[int, ...]) -> tuple[Image, Array]:
    grid = Grid.from_axes(shape, axes, np.arange(7.0, 7 + len(shape)))
    array = np.zeros((1, *shape), np.int16)
    array[(0, *index)] = 900
    return Image(array, grid), grid.to_world(index)


@pytest.mark.parametrize("axes", [*ORDERS, *OBLIQUE])
def test_the_mark_lies_on_the_bright_voxel(axes: Array) -> None:
    image, point = dotted(axes, (13, 22, 17), (4, 15, 6))
    stack = one(image, point)
    assert mark(stack, point) == pytest.approx(middle(stack), abs=0.01)
    assert len(stack["planes"]) == 3
    for plane in stack["planes"]:
        shown = pixels(plane["image"])
        (row, column), (height, width) = np.unravel_index(shown.argmax(), shown.shape), shown.shape
        across, down = (np.array(plane[side]) for side in ("across", "down"))
        there = np.array(plane["corner"]) + (column + 0.5) / width * across + (row + 0.5) / height * down
        assert np.abs(image.grid.to_index(there) - image.grid.to_index(point)).max() < 0.51


@pytest.mark.parametrize("axes", [np.array([[0, 0.4], [0.7, 0]]), np.array([[-0.4, 0], [0, -0.7]])])
@pytest.mark.parametrize("channels", [1, 3])
def test_2d(axes: Array, channels: int) -> None:
    image, point = dotted(axes, (60, 45), (41, 11))
    stack = one(Image(np.repeat(image.array, channels, 0), image.grid), point)
    assert mark(stack, point) == pytest.approx(middle(stack), abs=0.01)
    assert stack["planes"] == [] and pixels(stack["image"]).ndim == (3 if channels == 3 else 2)


@pytest.mark.parametrize("axes", [ORDERS[5], OBLIQUE[0]])
def test_a_box_of_too_many_voxels_is_thinned_and_its_marks_with_it(
    axes: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid.from_axes((30, 60, 50), axes, np.zeros(3))
    point = grid.to_world((14, 33, 21))
    array = 900 * np.exp(-((grid.points() - point) ** 2).sum(-1) / (2 * 3.0**2))
    monkeypatch.setitem(stacks.MOST, 3, 6000)
    stack = one(Image(array[None].astype(np.float32), grid), point)
    assert np.prod(stack["size"]) <= 6000
    assert np.abs(mark(stack, point) - middle(stack)).max() <= 0.3
    assert np.linalg.norm(mark(stack, point + [6, 0, 0]) - mark(stack, point)) > 1


def test_the_box_holds_both_points_and_ends_with_the_image() -> None:
    image = Image(np.zeros((1, 200, 200, 200), np.uint8), Grid.from_axes((200,) * 3, np.eye(3), np.zeros(3)))
    near, far = np.full(3, 100.0), np.array([100.0, 100, 150])
    box = stacks.stack_around(image, Window(0, 1), [near, far]).grid
    assert box.contains([near, far]).all() and box.extent_mm.max() < 150
    outside = stacks.stack_around(image, Window(0, 1), [[-500.0, 100, 100]]).grid
    assert image.grid.contains(outside.points()).all()


def test_values_that_are_no_numbers_are_black() -> None:
    image, point = dotted(ORDERS[0], (13, 22, 17), (4, 15, 6))
    array = image.array.astype(np.float32)
    array[0, :2] = np.nan
    stack = one(Image(array, image.grid), point)
    assert mark(stack, point) == pytest.approx(middle(stack), abs=0.01)


class _Study:
    """``cases`` of 8 landmarks whose images are made when they are read; it counts the reads and the images alive."""

    def __init__(self, cases: int, missed: tuple[int, ...] = (), unreadable: tuple[int, ...] = ()):
        rng = np.random.default_rng(0)
        self.names = tuple(f"p{n}" for n in range(8))
        self.true = {f"c{m}": Landmarks(self.names, rng.uniform(4, 20, (8, 3))) for m in range(cases)}
        errors = rng.uniform(0.1, 1, (cases, 8))
        errors[cases // 2, 3] = 9.0  # one large error in an ordinary case
        self.made = Predictions(
            {
                case: None if m in missed else Prediction(t.with_points(t.points + errors[m][:, None] * [0, 0.6, 0.8]))
                for m, (case, t) in enumerate(self.true.items())
            }
        )
        self.unreadable, self.reads, self.alive, self.most = unreadable, [0] * cases, 0, 0
        self.cases = [_Read(self, m) for m in range(cases)]

    def result(self) -> EvaluationResult:
        errors = compare(self.true, self.made.landmarks, self.names)
        return EvaluationResult("m", "cases.csv", "test", "files", errors, predictions=self.made)

    def look(self) -> tuple[list[Any], Viewer]:
        return look(self.result(), self.cases, self.true)  # type: ignore[arg-type]


class _Read:
    def __init__(self, study: _Study, number: int):
        self.study, self.number, self.id = study, number, f"c{number}"

    def image(self) -> Image:
        study = self.study
        study.reads[self.number] += 1
        if self.number in study.unreadable:
            raise InputError("damaged")
        study.alive += 1
        study.most = max(study.most, study.alive)
        noise = np.random.default_rng(self.number).integers(0, 255, (1, 24, 24, 24)).astype(np.uint8)
        weakref.finalize(noise, self._gone)
        return Image(noise, Grid.from_axes((24,) * 3, np.eye(3)[:, ::-1], np.zeros(3)))

    def _gone(self) -> None:
        self.study.alive -= 1


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of cases have tests of their own."""
    monkeypatch.setattr(module, "case_picture", lambda *_: b"\x89PNG")


def test_few_images_are_read_once_and_one_at_a_time() -> None:
    study = _Study(20)
    pictures, viewer = study.look()
    assert [p.word for p in pictures] == ["Best", "Median", "Worst"]
    assert max(study.reads) == 1 and sum(study.reads) == len(viewer.cases) <= module.CASES
    assert study.most == 1 and study.alive == 0
    assert len(viewer.stacks) == module.STACKS and viewer.left_out == 0
    errors = [s["error"] for s in viewer.stacks]
    assert errors == sorted(errors, reverse=True) and errors[0] == pytest.approx(9, abs=0.01)


def test_what_is_embedded_is_bounded_and_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    study = _Study(7)
    _, full = study.look()
    half = sum(map(module._size, full.stacks)) // 2
    monkeypatch.setattr(module, "MOST_BYTES", half + 400)
    monkeypatch.setattr(module, "LEAST_BYTES", 0)
    monkeypatch.setattr(module, "case_picture", lambda *_: bytes(100))  # 400 bytes of three of them in the page
    pictures, viewer = study.look()
    assert half / 2 < sum(map(module._size, viewer.stacks)) <= half
    assert len(viewer.stacks) + viewer.left_out == len(full.stacks) and viewer.left_out >= 8
    assert viewer.stacks == full.stacks[: len(viewer.stacks)]  # the worst stay
    assert f"slices around {viewer.left_out} more are left out" in render(study.result(), pictures, viewer)
    assert "left out" not in render(study.result(), pictures, full)


def test_missed_landmarks_and_unreadable_images() -> None:
    study = _Study(4, missed=(0, 1), unreadable=(1,))
    _, viewer = study.look()
    assert {c["name"] for c in viewer.cases} == {"c0", "c2", "c3"}
    missed = [s for s in viewer.stacks if s["error"] is None]
    assert missed and viewer.stacks[: len(missed)] == missed
    assert viewer.cases[missed[0]["case"]]["found"] == [None] * 8


def test_which_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    study = _Study(30)
    result = study.result()
    chosen = worst_landmarks(result, {2: ["p1", "p0"]})
    assert chosen[2][:2] == ["p1", "p0"] and "p3" in chosen[15]
    assert len(chosen) <= module.CASES and sum(map(len, chosen.values())) <= module.STACKS
    assert all(len(set(names)) == len(names) <= module.PER_CASE for names in chosen.values())
    monkeypatch.setattr(module, "PER_CASE", 2)
    assert len(worst_landmarks(_Study(1).result(), {})[0]) == 8  # there is room for all of one case
    few = _Study(2).result()
    assert sum(map(len, worst_landmarks(few, {}).values())) == 16


def test_the_page_holds_it_and_nothing_else_is_needed() -> None:
    study = _Study(3)
    study.names = ("</script>", *study.names[1:])
    study.true = {c: Landmarks(study.names, t.points) for c, t in study.true.items()}
    study.made.of = {c: Prediction(Landmarks(study.names, p.landmarks.points)) for c, p in study.made.of.items() if p}
    page = render(study.result(), *study.look())
    assert not re.search(r"https?://|//cdn|@import|url\(|\bimport\b[ (]|fetch\(|XMLHttp", page)
    assert page.count("</script>") == page.count("<script")
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert data["dimension"] == 3 and data["names"][0] == "</script>" and len(data["stacks"]) == 24
    assert data["cases"][0]["truth"][0] == pytest.approx(study.true[data["cases"][0]["name"]].points[0], abs=1e-3)


def test_very_many_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS", 5)
    monkeypatch.setattr(module, "STACKS", 4)
    study = _Study(1)
    _, viewer = study.look()
    needed = {s["point"] for s in viewer.stacks}
    assert len(viewer.names) == 5 == len(viewer.cases[0]["truth"]) and max(needed) < 5
    assert "The 3D view has the 5 landmarks" in render(study.result(), [], viewer)
