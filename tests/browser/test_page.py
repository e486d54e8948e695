"""The review page in a real browser, on the service: what is drawn lies where it belongs, a drag changes one point in
its plane, and a reload, another tab or a failure loses nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as Picture

from browsing import NAMES, ORDERS, RADIOGRAPH, VOLUMES, Person, eventually

CASE = "oblique"
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
    person.dim()
    marks = person.marks()
    for tile in TILES:
        letters = [person.page.text_content(f"svg[data-tile={tile}] text.{side}") for side in SIDES]
        assert "".join(letters) == LETTERS[tile]
        assert np.linalg.norm(marks[tile, "spot"] - bright_spot(person, tile)) < 1.0, tile


def test_a_bright_spot_of_a_radiograph_lies_under_its_mark(radiographer):
    radiographer.open("ceph")
    radiographer.select("spot")
    radiographer.dim()
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
    mark = person.marks()["axial", "left"]
    pointer = np.floor(mark)  # the wheel tells whole pixels
    person.page.mouse.move(*pointer)
    person.page.mouse.wheel(0, -600)
    person.settle()
    x, y = person.marks()["axial", "left"]
    assert np.abs([x, y] - (pointer + (mark - pointer) * 1.0018**600)).max() < 0.1  # what lay under it stays there
    before = person.points("ceph")
    per_pixel = mm_per_pixel(person)
    assert per_pixel < 0.2  # of 0.36 that show the whole image
    person.drag("axial", "left", 31, -12)
    person.saved()
    after = person.points("ceph")
    step = np.subtract(after["left"]["position"], before["left"]["position"])
    assert np.abs(step / per_pixel - [31, -12]).max() < 0.5
    assert np.abs(person.marks()["axial", "left"] - [x + 31, y - 12]).max() < 0.5
    assert {name for name in before if before[name] != after[name]} == {"left"}
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


def test_absent_placed_confirmed_undone_and_redone(person):
    person.open(CASE)
    press = person.page.keyboard.press
    start = person.points(CASE)
    person.select("low")
    press("a")
    assert person.state(CASE, "low") == "absent"
    assert person.points(CASE)["low"]["position"] is None
    person.page.mouse.move(*person.middle("axial"))
    press("p")
    assert person.state(CASE, "low") == "moved"
    assert person.page.inner_text("#card-name") == "gone"  # placing goes on to the next
    press("b")
    press("c")
    assert person.state(CASE, "low") == "confirmed"
    press("Delete")
    assert person.state(CASE, "low") == "missing"
    for state in ("confirmed", "moved", "absent", "predicted"):
        press("u")
        assert person.state(CASE, "low") == state
    assert person.points(CASE) == start
    for key, state in (("Shift+U", "absent"), ("Control+y", "moved")):
        press(key)
        assert person.state(CASE, "low") == state
    press("u")
    press("u")
    assert person.state(CASE, "low") == "predicted"


def test_a_double_click_places_the_selected_point_where_it_was_clicked(person):
    person.open(CASE)
    person.select("unfound")
    x, y = (value + 30 for value in person.middle("axial"))
    person.page.mouse.dblclick(x, y)
    assert person.state(CASE, "unfound") == "moved"
    person.page.keyboard.press("b")
    person.settle()
    assert np.abs(person.marks()["axial", "unfound"] - [x, y]).max() < 1
    person.page.keyboard.press("u")
    assert person.state(CASE, "unfound") == "missing"


def test_a_reload_loses_nothing(person):
    """Neither what was done just before, though its answer never came, nor the way back."""
    person.open(CASE)
    person.select("front")
    person.page.keyboard.press("c")
    assert person.state(CASE, "front") == "confirmed"
    person.page.route("**/landmarks", lambda route: route.abort())
    person.page.keyboard.press("a")
    eventually(lambda: "NOT saved" in person.page.inner_text("#saved"), "the page says that it cannot save")
    person.page.unroute("**/landmarks")
    person.problems.clear()  # the browser's own line on the request that was cut
    person.page.on("dialog", lambda dialog: dialog.accept())
    person.page.reload()
    person.shown(CASE)
    assert person.state(CASE, "front") == "absent"
    person.page.keyboard.press("u")
    assert person.state(CASE, "front") == "confirmed"
    person.page.keyboard.press("u")
    assert person.state(CASE, "front") == "predicted"


def test_of_two_tabs_the_second_is_told_and_sees_both_versions(person):
    person.open(CASE)
    other = Person(person.page.context.new_page(), person.client)
    other.open(CASE)
    person.select("front")
    person.page.keyboard.press("c")
    assert person.state(CASE, "front") == "confirmed"
    other.select("front")
    other.page.keyboard.press("a")
    eventually(lambda: other.page.locator("#conflict").is_visible(), "the second tab is told")
    row = other.page.locator("#conflict tbody tr").inner_text()
    assert row.startswith("front\tabsent\tconfirmed (")
    assert other.points(CASE)["front"]["state"] == "confirmed"  # nothing was written over
    other.page.locator("#conflict [data-which=theirs]").click()
    eventually(lambda: other.page.locator("#points [data-point=front]").get_attribute("data-state") == "confirmed")
    other.page.keyboard.press("u")  # brings back what was given up
    assert other.state(CASE, "front") == "absent"
    person.page.bring_to_front()
    person.page.keyboard.press("u")
    eventually(lambda: person.page.locator("#conflict").is_visible(), "now the first is told")
    person.page.locator("#conflict [data-which=mine]").click()
    assert person.state(CASE, "front") == "predicted"
    assert all("412" in problem for problem in [*person.problems, *other.problems])
    person.problems.clear()


def test_enter_confirms_all_and_opens_the_next_case(person):
    first = "order-SRP"  # the most suspicious
    person.open(first)
    person.page.keyboard.press("Enter")
    eventually(lambda: person.page.evaluate("document.body.dataset.case") not in (None, first), "the next case")
    document = person.document(first)
    assert document["state"] == "done"
    states = {point["name"]: point["state"] for point in document["points"]}
    assert states == dict.fromkeys(NAMES[:4], "confirmed") | {"gone": "absent", "unfound": "missing"}
    assert person.page.locator("#figures b").first.inner_text() == "1/7"
    person.page.locator("#state [data-state=done]").click()
    person.page.locator(f'#cases .row[data-case="{first}"]').click()
    person.shown(first)
    person.page.locator("#reopen").click()
    eventually(lambda: person.document(first)["state"] == "open", "it is open again")
    person.shown(first)


def test_the_queue_shows_reasons_and_filters(person):
    person.open(CASE)
    person.page.locator("#state [data-state='']").click()
    rows = person.page.locator("#cases .row:visible")
    flagged = person.page.locator('#cases .row[data-case="mirrored"]')
    assert rows.first.get_attribute("data-case") == "mirrored"  # the one that is flagged
    assert "looks odd" in flagged.inner_text()
    person.page.fill("#find-case", "nothing like this")
    assert "No case here has" in person.page.inner_text("#no-cases")
    person.page.fill("#find-case", "")
    person.page.keyboard.press("Escape")
    person.page.keyboard.press("?")
    assert "double-click" in person.page.inner_text("#keys")


def test_of_1200_landmarks_only_those_in_sight_are_listed(radiographer):
    radiographer.open("ceph")
    radiographer.page.keyboard.press("0")
    radiographer.settle()
    assert len(radiographer.marks()) > 1190
    assert radiographer.page.locator("#points .row").count() < 40
    radiographer.page.fill("#find-point", "more 1194")
    radiographer.select("more 1194")
    radiographer.page.fill("#find-point", "")
    radiographer.page.keyboard.press("Escape")
    radiographer.page.keyboard.press("n")  # round to the first
    eventually(lambda: radiographer.page.inner_text("#card-name") == "spot", "the first")


def test_retraining_shows_its_course_and_then_the_new_predictions(browser, volumes):
    """The page's part, with a service that answers as one that trains."""
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    person = Person(context.new_page(), volumes)
    review = volumes.get("/v1/review").json() | {"can_train": True}
    job = {"id": "7", "lines": ["reading 3 cases"], "model": None, "error": "", "state": "running", "progress": 0.4}
    job["figures"] = [{"step": 10, "error": 4.0}, {"step": 20, "error": 2.5}]
    person.page.route("**/v1/review", lambda route: route.fulfill(json=review))
    person.page.route("**/v1/train", lambda route: route.fulfill(json={"id": "7"}, status=202))
    person.page.route("**/v1/jobs/7", lambda route: route.fulfill(json=job))
    person.open(CASE)
    person.page.click("#train")
    assert "--train-with" in person.page.inner_text("#training-text")
    person.page.click("#training-form button")
    eventually(lambda: "4.00 → 2.50 mm" in person.page.inner_text("#training-figures"), "the errors")
    assert person.page.inner_text("#train") == "Retraining 40 %"
    assert person.page.locator("#training-curve path").count() == 1
    review["model"] = job["model"] = "made-up-1"
    job["state"], job["progress"] = "done", 1.0
    eventually(lambda: person.page.text_content("#model") == "made-up-1", "the new model's name")
    assert "made-up-1" in person.page.inner_text("#training-figures")
    context.close()
    assert not person.problems
