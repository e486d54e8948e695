"""What is drawn lies where it belongs: marks on the image, sides, and what a drag changes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as Picture

from browsing import ORDERS, RADIOGRAPH, VOLUMES, Person

TILES = ("axial", "coronal", "sagittal")
SIDES = ("left", "right", "top", "bottom")
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # as 3D Slicer shows them
ACROSS = {"axial": 2, "coronal": 1, "sagittal": 0}  # the world axis that a tile looks along, most nearly


def bright_spot(person: Person, tile: str) -> np.ndarray:
    """The middle of the bright voxel in a tile of the picture, without marks, CSS pixels of the window."""
    hide = "document.getElementById('overlay').style.opacity = {}"
    person.page.evaluate(hide.format(0))
    box = person.page.locator(f"svg[data-tile={tile}]").bounding_box()
    picture = np.asarray(Picture.open(io.BytesIO(person.page.screenshot(clip=box))).convert("L"), float)
    person.page.evaluate(hide.format(1))
    picture[:24] = 0  # the frame's name and button
    picture[-24:] = 0
    weight = np.clip(picture - 0.75 * picture.max(), 0, None)
    rows, columns = np.indices(picture.shape) + 0.5
    return np.array([box["x"] + np.average(columns, weights=weight), box["y"] + np.average(rows, weights=weight)])


@pytest.mark.parametrize("case", ["oblique", "anisotropic", "mirrored", *(f"order-{order}" for order in ORDERS)])
def test_a_bright_voxel_lies_under_its_mark_and_the_sides_are_lettered_right(person, case):
    person.open(case)
    person.select("spot")
    marks = person.marks()
    for tile in TILES:
        letters = [person.page.text_content(f"svg[data-tile={tile}] text.{side}") for side in SIDES]
        assert "".join(letters) == LETTERS[tile]
        assert np.linalg.norm(marks[tile, "spot"] - bright_spot(person, tile)) < 1.0, tile


def test_a_bright_spot_of_a_radiograph_lies_under_its_mark(radiographer):
    radiographer.open("ceph")
    radiographer.select("spot")
    assert np.linalg.norm(radiographer.marks()["axial", "spot"] - bright_spot(radiographer, "axial")) < 1.0


def across(case: str, tile: str) -> np.ndarray:
    """(3,) the unit normal of the planes of voxels that a tile shows, from the file's own axes."""
    grid = next(grid for name, grid in VOLUMES.items() if name.startswith(case))
    axes = grid.axes / grid.spacing
    depth = int(np.argmax(np.abs(axes[ACROSS[tile]])))
    normal = np.cross(*np.delete(axes, depth, axis=1).T)
    return normal / np.linalg.norm(normal)


@pytest.mark.parametrize("case", ["oblique", "anisotropic", "mirrored"])
@pytest.mark.parametrize("tile, by", [("axial", (23, -14)), ("coronal", (-17, 9)), ("sagittal", (11, 20))])
def test_a_drag_moves_one_point_in_its_plane(person, case, tile, by):
    person.open(case)
    person.select("left")
    before, there = person.points(case), person.marks()[tile, "left"]
    person.drag(tile, "left", *by)
    person.saved()
    after, moved = person.points(case), person.points(case)["left"]
    assert {name for name in before if before[name] != after[name]} == {"left"}
    assert moved["state"] == "moved"
    assert np.abs(person.marks()[tile, "left"] - there - by).max() < 0.5
    step = np.subtract(moved["position"], before["left"]["position"])
    assert np.linalg.norm(step) > 1
    assert abs(step @ across(case, tile)) < 1e-4
    person.page.keyboard.press("u")
    person.saved()
    assert person.points(case)["left"] == before["left"]


def test_a_drag_in_a_zoomed_radiograph(radiographer):
    person = radiographer
    person.open("ceph")
    person.select("left")
    x, y = person.marks()["axial", "left"]
    person.page.mouse.move(x, y)
    person.page.mouse.wheel(0, -600)
    person.settle()
    zoomed = person.marks()
    assert np.abs(zoomed["axial", "left"] - [x, y]).max() < 0.5  # what lay under the pointer stays there
    before = person.points("ceph")
    per_pixel = mm_per_pixel(person)
    assert per_pixel < 0.2  # of 0.36 that show the whole image
    person.drag("axial", "left", 31, -12)
    person.saved()
    step = np.subtract(person.points("ceph")["left"]["position"], before["left"]["position"])
    assert np.abs(step / per_pixel - [31, -12]).max() < 0.5
    assert np.abs(person.marks()["axial", "left"] - [x + 31, y - 12]).max() < 0.5
    others = [name for name in before if name != "left"]
    assert [person.points("ceph")[name] for name in others] == [before[name] for name in others]
    person.page.keyboard.press("u")
    person.saved()


def mm_per_pixel(person: Person) -> float:
    """From what the page says lies under the pointer, at two places."""
    x, y = person.marks()["axial", "left"]

    def under(x: float) -> float:
        person.page.mouse.move(x, y)
        person.settle()
        return float(person.page.inner_text("#where").split()[0])

    return (under(x + 100) - under(x - 100)) / 200


def test_what_lies_under_the_pointer_is_said_in_the_files_mm(radiographer):
    """2D: x right, y down, from the origin that the file states."""
    person = radiographer
    person.open("ceph")
    x, y = person.marks()["axial", "spot"]
    person.page.mouse.move(x, y)
    person.settle()
    said = [float(word) for word in person.page.inner_text("#where").split()[:2]]
    assert np.abs(said - RADIOGRAPH.to_world(np.array([1500.0, 700.0]))).max() < 0.3


def test_scrolling_by_a_slice_leaves_the_marks_in_their_places(person):
    person.open("anisotropic")
    person.select("spot")
    before = person.marks()["axial", "spot"]
    person.page.mouse.move(*(before + 40))
    person.page.mouse.wheel(0, -100)
    person.settle()
    after = person.marks()
    assert np.abs(after["axial", "spot"] - before).max() < 0.01
    opacity = "document.querySelector('svg[data-tile=axial] g[data-point=spot]').style.opacity"
    assert float(person.page.evaluate(opacity)) < 1  # it fades with the distance from the slice
