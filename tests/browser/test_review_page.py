"""What a person does with a case: place, confirm, absent, undo; a reload, another tab or a failure loses nothing."""

from __future__ import annotations

import numpy as np

from browsing import NAMES, Person, eventually

CASE = "oblique"


def test_absent_placed_confirmed_undone_and_redone(person):
    person.open(CASE)
    press = person.page.keyboard.press
    start = person.points(CASE)
    person.select("low")
    press("a")
    assert person.state(CASE, "low") == "absent"
    assert person.points(CASE)["low"]["position"] is None
    x, y = person.marks()["axial", "front"]
    person.page.mouse.move(x + 5, y + 5)
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
    x, y = person.marks()["axial", "spot"] + 30
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


def test_the_queue_shows_reasons_and_filters(person):
    person.open(CASE)
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
