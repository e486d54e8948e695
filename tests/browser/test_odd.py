"""The page with what nobody expects: an image that cannot be read at the head of the queue, names that look like code
or paths, a single landmark, a case that is not there."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np

from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from browsing import Person, eventually, served, volume, write_case

CODE = "<img src=x onerror=alert(1)>"
ODD = f"a#b %2F?&\u00e9 {CODE}"


def test_what_cannot_be_shown_is_not_confirmed_and_names_are_text(browser, tmp_path):
    grid = volume(np.eye(3)[:, ::-1], [2.0, 2.0, 2.0], (12, 12, 12))
    for suspicion, name in enumerate(("plain", ODD, "broken")):
        image = Image(np.arange(12**3, dtype=np.int16).reshape(1, 12, 12, 12), grid)
        point = Landmarks((CODE,), grid.centre[None], score=[0.9], descriptions=(CODE,))
        write_case(tmp_path, f"{name}.nrrd", image, point, suspicion=float(suspicion), flags=(f"odd {CODE}",))
    (tmp_path / "images" / "broken.nrrd").write_text("NRRD0004\ntype: short\n")
    with served(tmp_path) as client:
        person = Person(browser.new_page(viewport={"width": 1000, "height": 700}), client)
        page = person.page
        page.goto(f"{person.url}/page/")
        eventually(lambda: "broken.nrrd" in page.inner_text("#notice"), "why it cannot be shown")
        page.keyboard.press("Enter")  # nobody has seen it
        page.keyboard.press("s")
        eventually(lambda: page.inner_text("#case") == ODD, "the next case")
        person.shown(ODD)
        assert person.document("broken")["state"] == "skipped"
        page.keyboard.press("c")
        page.evaluate("location.hash = '#case=nobody'")
        eventually(lambda: "no case is called" in page.inner_text("#notice"), "there is no such case")
        for key in ("a", "Enter", "s"):
            page.keyboard.press(key)
        page.evaluate(f"location.hash = '#case={quote(ODD, safe='')}'")
        person.shown(ODD)
        (point,) = person.document(quote(ODD, safe=""))["points"]
        assert (point["name"], point["state"]) == (CODE, "confirmed")
        page.keyboard.press("Enter")
        person.shown("plain")
        page.keyboard.press("Enter")
        eventually(lambda: "No case is open any more" in page.inner_text("#toast"), "the end")
        page.keyboard.press("a")  # the last one stays open to changes
        person.saved()
        assert person.points("plain")[CODE]["state"] == "absent"
        states = {row["id"]: row["state"] for row in client.get("/v1/cases").json()["cases"]}
        assert states == {"broken": "skipped", ODD: "done", "plain": "done"}
        assert not page.locator("img[src=x]").count()
        assert [p for p in person.problems if "status of 40" not in p] == []
        page.close()
