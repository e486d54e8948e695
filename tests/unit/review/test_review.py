"""Reviews: what each action does to the points and to the files, what a kill leaves, what two who edit are told."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anatomark.cases.case import Case
from anatomark.cases.manifest import read_manifest
from anatomark.cli.review import _show_summary
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.claim import LOCK
from anatomark.io.images import write_image
from anatomark.io.landmarks import read_landmarks, write_landmarks
from anatomark.model.prediction import Prediction, write_prediction
from anatomark.review import Conflict, Review, State
from anatomark.review.summary import lines

NAMES = ("a", "b", "c", "d")
STATUS = (Status.DEFINED, Status.DEFINED, Status.ABSENT, Status.UNANNOTATED)


def study(folder: Path, ndim: int = 3, cases: int = 3) -> list[Case]:
    """Images with predictions: a and b found, c absent, d not annotated; s1 is flagged, s2 of the test split."""
    made = []
    for k in range(cases):
        grid = Grid.centred((12,) * ndim, np.eye(ndim)[:, ::-1] * 2.0, (0.0,) * ndim)
        path = folder / (f"i{k}.nii.gz" if ndim == 3 else f"i{k}.mha")
        write_image(Image(np.arange(k, k + 12**ndim).astype(np.uint8).reshape(1, *grid.shape), grid), path)
        made.append(Case(f"s{k}", path, split="test" if k == 2 else "train"))
    predict(folder / "found", made, "m1", ndim)
    return made


def predict(folder: Path, cases: list[Case], model: str, ndim: int, shift: float = 0.0) -> None:
    """What a model of this hash says: a at 1, b at 2 along all axes, both shifted."""
    folder.mkdir(exist_ok=True)
    points = np.array([[1.0] * ndim, [2.0] * ndim, [np.nan] * ndim, [np.nan] * ndim]) + shift
    for k, case in enumerate(cases):
        landmarks = Landmarks(
            NAMES, points, STATUS, score=[0.9, 0.8, 0.1, 0.2], radius90=[1.0, 2.0, 3.0, 4.0],
            descriptions=("the tip", "p=0.5 of Bolton", "", ""),
        )  # fmt: skip
        prediction = Prediction(
            landmarks,
            ("odd shape",) if k == 1 else (),
            float(k),
            3.0,
            source={"model": model, "model_name": f"M{model}"},
        )
        write_prediction(prediction, folder, case.id, ("mrk.json", "json"))


def opened(folder: Path, cases: list[Case]) -> Review:
    return Review(folder / "out", cases, folder / "found")


def stored(folder: Path, case: str = "s0") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "out" / f"{case}.review.json").read_text())
    return document


def put(name: str, state: str, *position: float) -> dict[str, Any]:
    return {"name": name, "state": state, "position": list(position) or None}


def states(review: Review, case: str = "s0") -> list[str]:
    return [str(p.state) for p in review.case(case).points]


def test_a_case_begins_as_it_was_predicted(tmp_path: Path) -> None:
    with opened(tmp_path, study(tmp_path)) as review:
        assert states(review) == ["predicted", "predicted", "absent", "missing"]
        point = review.case("s0").point("a")
        assert (point.position, point.predicted) == ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
        assert (point.score, point.radius90, point.moved_mm, point.decided) == (0.9, 1.0, None, False)
        document = review.document("s0")
        assert document["frame"] == "LPS" and document["points"][0]["definition"] == "the tip"
        assert review.image("s0").ndim == 3
    assert not list((tmp_path / "out").glob("*"))  # looking changes nothing


def test_the_queue_shows_what_is_suspicious_first(tmp_path: Path) -> None:
    cases = study(tmp_path)
    (tmp_path / "found" / "s2.json").unlink()
    (tmp_path / "found" / "s2.mrk.json").unlink()
    with opened(tmp_path, cases) as review:
        rows = review.queue()
        assert [row["id"] for row in rows] == ["s2", "s1", "s0"]
        assert rows[0]["flags"] == ["no prediction"] and rows[0]["suspicion"] is None and rows[0]["points"] == 4
        assert rows[1]["flags"] == ["odd shape"] and rows[1]["suspicion"] == 1.0
        assert states(review, "s2") == ["missing"] * 4
        assert [row["id"] for row in review.queue("name")] == ["s0", "s1", "s2"]
        review.done("s1", "Ann")
        assert [row["id"] for row in review.queue(state="open")] == ["s2", "s0"]
        assert [row["id"] for row in review.queue(state="done")] == ["s1"]
        with pytest.raises(InputError, match="order 'sus' is not known"):
            review.queue("sus")
        with pytest.raises(InputError, match=r"no case is called 's9' \(did you mean"):
            review.case("s9")


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_a_person_decides_becomes_truth(tmp_path: Path, ndim: int) -> None:
    cases, at = study(tmp_path, ndim), (5.0,) * ndim
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", *at), put("d", "confirmed", *at)], "Ann")
        assert not (tmp_path / "out" / "cases.csv").exists()
        review.done("s0", "Ann", confirm_all=False)
        review.done("s2", "Ben")
    first, last = read_manifest(tmp_path / "out" / "cases.csv").cases
    assert (first.split, last.split, first.observer) == ("train", "test", "corrected")
    assert os.path.samefile(first.path or "", cases[0].path or "")
    np.testing.assert_array_equal(first.landmarks.points, [at, [np.nan] * ndim, [np.nan] * ndim, at])
    assert [str(s) for s in first.landmarks.status] == ["defined", "unannotated", "unannotated", "defined"]
    assert [str(s) for s in last.landmarks.status] == ["defined", "defined", "absent", "unannotated"]
    points = stored(tmp_path)["points"]
    assert points["a"]["moved_mm"] == pytest.approx(4 * ndim**0.5) and points["a"]["person"] == "Ann"
    assert points["d"]["moved_mm"] is None and points["b"]["time"] is None


def test_the_markups_file_keeps_what_was_there_and_holds_no_score(tmp_path: Path) -> None:
    cases = study(tmp_path)
    file = tmp_path / "found" / "s0.mrk.json"
    document = json.loads(file.read_text())
    document["markups"][0]["display"] = {"opacity": 0.5}
    document["markups"][0]["controlPoints"][0] |= {"id": "vtk7", "colour": "red"}
    document["markups"][0]["controlPoints"][3]["description"] = "written in Slicer p=0.20 r90=4.0mm"
    file.write_text(json.dumps(document))
    assert "p=0.90 r90=1.0mm" in file.read_text()
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", 5, 5, 5), put("b", "absent")], "Ann")
        assert review.markups("s0") == json.loads((tmp_path / "out" / "s0.mrk.json").read_text())
        text = (tmp_path / "out" / "s0.mrk.json").read_text()
        assert "p=0.9" not in text and "r90=" not in text
        markup = json.loads(text)["markups"][0]
        assert markup["display"] == {"opacity": 0.5}
        assert [c["locked"] for c in markup["controlPoints"]] == [True, False, False, False]
        assert markup["controlPoints"][0]["id"] == "vtk7" and markup["controlPoints"][0]["colour"] == "red"
        landmarks = read_landmarks(tmp_path / "out" / "s0.mrk.json")
        assert (
            landmarks.descriptions == ("the tip", "p=0.5 of Bolton", "", "written in Slicer")
            and landmarks.score is None
        )
        assert [str(s) for s in landmarks.status] == ["defined", "absent", "absent", "unannotated"]
        np.testing.assert_array_equal(landmarks["a"], [5, 5, 5])
        review.change("s0", [put("a", "predicted"), put("b", "predicted")], "Ann")  # undone
        np.testing.assert_array_equal(read_landmarks(tmp_path / "out" / "s0.mrk.json")["b"], [2, 2, 2])
        assert not review.markups("s0")["markups"][0]["controlPoints"][0]["locked"]


def test_states_go_round(tmp_path: Path) -> None:
    with opened(tmp_path, study(tmp_path)) as review:

        def now(state: str, *position: float) -> tuple[State, Any, Any]:
            point = review.change("s0", [put("a", state, *position)], "Ann").point("a")
            return point.state, point.position, point.moved_mm

        assert now("absent") == (State.ABSENT, None, None)
        assert now("moved", 1, 1, 3) == (State.MOVED, (1.0, 1.0, 3.0), 2.0)
        assert now("confirmed") == (State.CONFIRMED, (1.0, 1.0, 3.0), 2.0)  # keeps how far it was moved
        assert now("missing") == (State.MISSING, None, None)
        assert now("predicted") == (State.PREDICTED, (1.0, 1.0, 1.0), None)
        assert now("confirmed") == (State.CONFIRMED, (1.0, 1.0, 1.0), 0.0)
        point = review.change("s0", [put("a", "predicted")], "Ann").point("a")
        assert (point.time, point.person) == (None, "")


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (put("e", "moved", 1, 1, 1), "no landmark is called 'e'"),
        (put("a", "mooved", 1, 1, 1), "state 'mooved' is not known"),
        (put("a", "moved"), "is moved, so it needs a position"),
        (put("d", "confirmed"), "is confirmed, so it needs a position"),
        (put("d", "predicted"), "the model predicted no position"),
        (put("a", "predicted", 1, 1, 9), "the position is not the model's"),
        (put("a", "absent", 1, 1, 1), "is absent, so it has no position"),
        (put("a", "moved", 1, 1), "is not 3 numbers"),
        (put("a", "moved", 1, 1, float("nan")), "is not 3 finite numbers"),
        (put("a", "moved", 1, 1, float("inf")), "is not 3 finite numbers"),
        ({"name": "a", "state": "moved", "position": [1, 1, True]}, "is not 3 finite numbers"),
        ({"name": "a", "state": "moved", "position": "here"}, "is not 3 numbers"),
        ({"name": "a", "state": "moved", "position": [1, 1, 10**400]}, "is not 3 finite numbers"),
        (put("a", "moved", 1, 1, 1013), "1001 mm outside the image"),
        ({"state": "moved"}, "no landmark is called 'None'"),
        ("a", "no landmark is called 'None'"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_changed(tmp_path: Path, point: Any, message: str) -> None:
    with opened(tmp_path, study(tmp_path, cases=1)) as review:
        before = review.case("s0")
        with pytest.raises(InputError, match=message) as caught:
            review.change("s0", [put("b", "absent"), point], "Ann")
        assert "\n" not in str(caught.value)
        assert review.case("s0") == before and not (tmp_path / "out" / "s0.review.json").exists()
        review.change("s0", [put("a", "moved", 1, 1, 1011)], "Ann")  # a metre from the border
        for person in ("a\nb", "x" * 201, None):
            with pytest.raises(InputError, match="is no name"):
                review.change("s0", [], person)  # type: ignore[arg-type]


def test_two_who_edit_a_case_notice(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases) as review:
        etag = review.case("s0").etag
    with opened(tmp_path, cases) as review:
        assert review.case("s0").etag == etag  # of a page that outlives its service
        changed = review.change("s0", [put("a", "moved", 3, 3, 3)], "Ann", etag)
        assert changed.etag != etag
        for act in (
            lambda: review.change("s0", [put("a", "absent")], "Ben", etag),
            lambda: review.done("s0", "Ben", etag=etag),
            lambda: review.skip("s0", "Ben", etag=etag),
        ):
            with pytest.raises(Conflict) as caught:
                act()
            assert caught.value.current == changed
        assert review.case("s0") == changed
        review.done("s0", "Ben", etag=changed.etag)


def test_a_review_is_gone_on_with(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", 3, 3, 3), put("c", "confirmed", 4, 4, 4)], "Ann")
        review.done("s0", "Ann")
        review.skip("s1", "Ann")
        before, figures, rows = review.case("s0"), review.figures(), review.queue()
    with opened(tmp_path, cases) as review:
        assert review.case("s0") == before and review.case("s0").etag == before.etag
        assert (review.figures(), review.queue()) == (figures, rows)
        assert figures == {
            "done": 1, "open": 1, "skipped": 1, "moved": 1, "outside_radius": 1,
            "mean_moved_mm": pytest.approx(2 * 3**0.5),
        }  # fmt: skip
        assert review.reopen("s0", "Ann").finished is None
        assert not (tmp_path / "out" / "cases.csv").exists()  # no case is done
        assert states(review)[0] == "moved"


def test_after_retraining_what_a_person_decided_stays(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", 5, 1, 1), put("c", "missing")], "Ann")
        etag = review.case("s0").etag
    predict(tmp_path / "found", cases, "m2", 3, shift=1.0)
    with opened(tmp_path, cases) as review:
        a, b, c, d = review.case("s0").points
        assert (a.state, a.position, a.predicted, a.person) == (State.MOVED, (5.0, 1.0, 1.0), (2.0, 2.0, 2.0), "Ann")
        assert a.moved_mm == pytest.approx(11**0.5)
        assert (b.state, b.position) == (State.PREDICTED, (3.0, 3.0, 3.0))
        assert (c.state, c.decided, d.state) == (State.ABSENT, False, State.MISSING)
        assert review.case("s0").etag != etag
        review.done("s1", "Ann")
        facts = review.summary()
    assert stored(tmp_path)["earlier"][0]["points"] == {"a": [1, 1, 1], "b": [2, 2, 2]}
    assert [(r["model"], r["decided"], r["moved"]) for r in facts["models"]] == [("m1", 1, 1), ("m2", 3, 1)]
    one, two = facts["same_points"]
    assert (one["decided"], two["decided"]) == (1, 1)
    assert (one["mean_mm"], one["outside_radius"]) == (4.0, 1) and two["max_mm"] == pytest.approx(11**0.5)
    assert [(r["name"], r["model"]) for r in facts["landmarks"]] == [("a", "m1"), ("a", "m2"), ("b", "m2")]
    assert any(line.split()[:3] == ["Mm1", "1", "1"] for line in lines(facts))
    assert (facts["called_absent"], facts["found"]) == (0, 0) and not any("absent" in line for line in lines(facts))
    predict(tmp_path / "found", cases, "m1", 3)  # back again
    with opened(tmp_path, cases) as review:
        assert [e.model for e in review.case("s0").earlier] == ["m2"]


def test_points_called_absent_or_placed_where_the_model_had_none_are_counted(tmp_path: Path) -> None:
    with opened(tmp_path, study(tmp_path)) as review:
        review.change("s0", [put("a", "absent"), put("c", "moved", 1, 1, 1), put("d", "moved", 1, 1, 1)], "Ann")
        facts = review.summary()
    assert (facts["called_absent"], facts["found"]) == (1, 2)
    assert "1 point of the model called absent, 2 points placed where it had none" in lines(facts)


def test_a_case_that_was_predicted_anew_is_taken_up(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", 5, 1, 1)], "Ann")
        assert review.case("s1").model == "m1"
        predict(tmp_path / "found", cases, "m2", 3, shift=1.0)
        assert [str(p.state) for p in review.refresh("s0").points[:2]] == ["moved", "predicted"]
        assert review.case("s0").point("b").position == (3.0, 3.0, 3.0)
        assert review.refresh("s1").model == "m2" and stored(tmp_path)["earlier"][0]["model"] == "m1"


def test_a_split_that_somebody_wrote_stays(tmp_path: Path) -> None:
    cases = [replace(case, split="") for case in study(tmp_path)]
    with opened(tmp_path, cases) as review:
        review.done("s0", "Ann")
    file = tmp_path / "out" / "cases.csv"
    file.write_text(file.read_text().replace("train", "val"))
    with opened(tmp_path, cases) as review:
        review.done("s1", "Ann")
    assert [c.split for c in read_manifest(file).cases] == ["val", "train"]
    with opened(tmp_path, [replace(case, split="test") for case in cases]):
        assert [c.split for c in read_manifest(file).cases] == ["test", "test"]  # the source's counts


def test_an_image_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    cases = study(tmp_path)
    image = tmp_path / "i0.nii.gz"
    data = image.read_bytes()
    image.write_bytes(b"x" * 600)
    with opened(tmp_path, cases) as review:
        with pytest.raises(InputError, match="i0"):
            review.image("s0")
        assert "i0.nii.gz" in review.queue("name")[0]["reason"]
        review.change("s0", [put("a", "moved", 3, 3, 3)], "Ann")  # points can be placed all the same
        image.write_bytes(data)
        review.image("s0")
        assert review.queue("name")[0]["reason"] == ""
        image.unlink()
    with opened(tmp_path, cases) as review:
        assert "no such file" in review.queue("name")[0]["reason"]


def test_a_picture_keeps_its_spacing_and_its_place(tmp_path: Path) -> None:
    """PNG states no spacing; corrections far from the images name them by their whole path."""
    (case,) = study(tmp_path, 2, cases=1)
    write_image(replace(case, spacing=None).image(), tmp_path / "i0.png")
    case = replace(case, path=tmp_path / "i0.png", spacing=(np.float64(2.0), 2.5))
    for out in (tmp_path / "out", tmp_path / "far" / "away" / "out"):
        with Review(out, [case], tmp_path / "found") as review:
            review.done("s0", "Ann")
        (made,) = read_manifest(out / "cases.csv").cases
        assert made.spacing == (2.0, 2.5) and made.path == tmp_path / "i0.png"
        assert ("../i0.png" in (out / "cases.csv").read_text()) == (out.parent == tmp_path)
        np.testing.assert_array_equal(made.landmarks["a"], [1, 1])


def test_a_decided_landmark_that_the_next_model_lacks_stays(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", 5, 1, 1)], "Ann")
    for case in cases:
        landmarks = Landmarks(("b", "x"), [[1.0, 1, 1], [2, 2, 2]])
        prediction = Prediction(landmarks, source={"model": "m3", "model_name": "M"})
        write_prediction(prediction, tmp_path / "found", case.id, ("mrk.json", "json"))
    with opened(tmp_path, cases) as review:
        points = review.case("s0").points
        assert [(p.name, str(p.state), p.predicted is None) for p in points] == [
            ("a", "moved", True), ("b", "predicted", False), ("x", "predicted", False),
        ]  # fmt: skip


def test_predictions_of_other_programs_can_be_reviewed(tmp_path: Path) -> None:
    cases = study(tmp_path)
    for case in cases:
        (tmp_path / "found" / f"{case.id}.json").unlink()
        landmarks = read_landmarks(tmp_path / "found" / f"{case.id}.mrk.json")
        (tmp_path / "found" / f"{case.id}.mrk.json").unlink()
        write_landmarks(landmarks, tmp_path / "found" / f"{case.id}.fcsv")
    with opened(tmp_path, cases) as review:
        assert states(review)[:2] == ["predicted", "predicted"] and review.case("s0").point("a").score == 0.9
        assert review.document("s0")["points"][0]["definition"] == "the tip"
        review.change("s0", [put("a", "moved", 5, 1, 1)], "Ann")
    with opened(tmp_path, cases) as review:
        assert review.case("s0").earlier == () and states(review)[0] == "moved"


def killed(folder: Path, cases: list[Case], at: int) -> None:
    """A process that does three things and is killed where it would put its file number ``at`` in place."""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        return
    count, replace = itertools.count(1), os.replace

    def counted(a: Any, b: Any) -> None:
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(a, b)

    try:
        review = opened(folder, cases)
        os.replace = counted
        review.change("s0", [put("a", "moved", 5, 5, 5)], "Ann")
        review.done("s0", "Ann")
        review.change("s0", [put("b", "moved", 6, 6, 6)], "Ann")
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_loses_the_action_under_way_alone(tmp_path: Path) -> None:
    """Three actions write nine files: after a kill before each of them the review is as after the last whole action,
    and every file agrees with it."""
    whole = {0: (1.0, 2.0, None), 1: (5.0, 2.0, None), 2: (5.0, 2.0, "done"), 3: (5.0, 6.0, "done")}
    before_file = [
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
        2,
    ]  # markups, review; truth, markups, review, manifest; truth, markups, review
    for at in range(1, 10):
        folder = tmp_path / str(at)
        folder.mkdir()
        cases = study(folder)
        killed(folder, cases, at)
        assert (folder / "out" / LOCK).exists()
        a, b, state = whole[before_file[at - 1]]
        with opened(folder, cases) as review:
            points = review.case("s0").points
            assert (points[0].position, points[1].position) == ((a,) * 3, (b,) * 3), at
            assert review.case("s0").state == (state or "open"), at
            if a != 1.0:
                markups = read_landmarks(folder / "out" / "s0.mrk.json")
                np.testing.assert_array_equal(markups.points[:2], [[a] * 3, [b] * 3])
            if state:
                truth = read_manifest(folder / "out" / "cases.csv").cases[0].landmarks
                np.testing.assert_array_equal(truth.points[:2], [[a] * 3, [b] * 3])
        left = {p.name for p in (folder / "out").rglob("*") if p.is_file()}
        assert not any(name.startswith(".") for name in left), at
        assert not [name for name in left if "earlier" in name], at


def test_points_that_were_corrected_elsewhere_are_kept(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", 5, 5, 5)], "Ann")
    file = tmp_path / "out" / "s0.mrk.json"
    there = read_landmarks(file)
    time.sleep(0.02)
    write_landmarks(there.with_points(there.points + 1), file)
    with opened(tmp_path, cases) as review:
        np.testing.assert_array_equal(read_landmarks(file)["a"], [5, 5, 5])
        np.testing.assert_array_equal(read_landmarks(tmp_path / "out" / "s0.earlier.mrk.json")["a"], [6, 6, 6])
        assert review.case("s0").point("a").position == (5.0, 5.0, 5.0)


def test_nothing_of_somebody_elses_is_replaced(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with pytest.raises(InputError, match="is one of the files to review; choose another `out`"):
        Review(tmp_path / "found", cases, tmp_path / "found")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "s1.mrk.json").write_text("{}")
    with pytest.raises(InputError, match=r"s1.mrk.json: exists already and is of no review"):
        Review(tmp_path / "own", cases, tmp_path / "found")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cases.csv").write_text("case,image,landmarks\ns0,i0.nii.gz,s0.fcsv\n")
    with pytest.raises(InputError, match="row 2 is of no corrected case"):
        Review(tmp_path / "mine", cases, tmp_path / "found")
    assert "s0.fcsv" in (tmp_path / "mine" / "cases.csv").read_text()
    with opened(tmp_path, cases) as review, pytest.raises(InputError, match="another run"):
        assert review.queue()
        opened(tmp_path, cases)


def test_cases_of_an_earlier_review_stay_in_the_manifest(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases[:1]) as review:
        review.done("s0", "Ann")
    with opened(tmp_path, cases[1:]) as review:
        review.done("s1", "Ann")
    assert [c.id for c in read_manifest(tmp_path / "out" / "cases.csv").cases] == ["s0", "s1"]


def test_a_review_of_something_else_is_refused(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", 5, 5, 5)], "Ann")
    with pytest.raises(InputError, match=r"is a review of .*i0.nii.gz, not of .*i1.nii.gz"):
        opened(tmp_path, [replace(cases[0], path=cases[1].path)])
    file = tmp_path / "out" / "s0.review.json"
    text = file.read_text()
    for wrong, message in (
        (text[:-30], "is not valid JSON"),
        (text.replace('"format": 1', '"format": 2'), "is of format 2"),
        (text.replace('"moved"', '"shifted"'), "point 'a': state 'shifted' is not known"),
        (text.replace("[5.0, 5.0, 5.0]", "[NaN, 5.0, 5.0]"), "position .* is not 2 or 3 numbers"),
        (text.replace("[5.0, 5.0, 5.0]", "null"), "is moved, but has no position"),
        ("[]", "is no review of a case"),
    ):
        file.write_text(wrong)
        with pytest.raises(InputError, match=message) as caught:
            opened(tmp_path, cases)
        assert "s0.review.json" in str(caught.value) and "\n" not in str(caught.value)
        assert file.read_text() == wrong
    with pytest.raises(InputError, match="is no folder of predictions"):
        Review(tmp_path / "new", cases, tmp_path / "nowhere")
    with pytest.raises(InputError, match="its predictions are of none of the cases"):
        Review(tmp_path / "new", [Case("z", cases[0].path)], tmp_path / "found")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", [" s0", "s0 ", "s\\0", "s/0", "..", "\udcff0", "\u00a0s0", "s" * 250])
def test_a_name_that_could_not_be_read_again_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    cases = [replace(study(tmp_path, cases=1)[0], id=name)]
    with pytest.raises(InputError, match=r"i0.nii.gz: the case's name .*; rename the image") as caught:
        opened(tmp_path, cases)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_odd_names_are_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = study(tmp_path, cases=1)[0]
    for name in ("a#b", "#a", 'a,"b', "a\nb", "=a", "e\u0301", "a%2F?", "~", ".a", "mean"):
        folder = tmp_path / str(abs(hash(name)))
        folder.mkdir()
        cases = [replace(first, id=name)]
        predict(folder / "found", cases, "m1", 3)
        for _ in range(2):
            with opened(folder, cases) as review:
                review.done(name, "Ann")
        (case,) = read_manifest(folder / "out" / "cases.csv").cases
        assert case.id == name and case.landmarks.defined.sum() == 2
        _show_summary(folder / "out", False)
        assert capsys.readouterr().out.startswith("1 case done")


@pytest.mark.parametrize("header", [False, True])
def test_the_only_finished_case_can_be_opened_again(tmp_path: Path, header: bool) -> None:
    cases, file = study(tmp_path), tmp_path / "out" / "cases.csv"
    with opened(tmp_path, cases) as review:
        review.done("s0", "Ann")
        review.reopen("s0", "Ann")
        assert not file.exists()
    if header:  # as an earlier version left it
        file.write_text("case,image,landmarks,split\n")
    with opened(tmp_path, cases) as review:
        review.done("s0", "Ann")
    assert [c.id for c in read_manifest(file).cases] == ["s0"]


def test_what_is_corrected_elsewhere_while_it_is_open_is_kept(tmp_path: Path) -> None:
    cases, out = study(tmp_path), tmp_path / "out"
    with opened(tmp_path, cases) as review:
        review.done("s0", "Ann")
        for file in (out / "s0.mrk.json", out / "truth" / "s0.csv"):
            file.write_text(file.read_text().replace("1.0", "1.5"))
            os.utime(file, ns=(time.time_ns() + 10**9,) * 2)
        review.change("s0", [put("b", "moved", 5, 5, 5)], "Ann")
        np.testing.assert_array_equal(read_landmarks(out / "s0.mrk.json").points[:2], [[1] * 3, [5] * 3])
    assert read_landmarks(out / "s0.earlier.mrk.json")["a"][0] == 1.5
    assert "1.5" in (out / "truth" / "s0.earlier.csv").read_text()
    assert "1.5" not in (out / "truth" / "s0.csv").read_text()


def test_truth_that_was_corrected_elsewhere_is_kept(tmp_path: Path) -> None:
    cases, file = study(tmp_path), tmp_path / "out" / "truth" / "s0.csv"
    with opened(tmp_path, cases) as review:
        review.done("s0", "Ann")
    mine = file.read_text().replace("1.0", "1.5")
    file.write_text(mine)
    os.utime(file, ns=(time.time_ns() + 10**9,) * 2)
    with opened(tmp_path, cases):
        assert (file.parent / "s0.earlier.csv").read_text() == mine and "1.5" not in file.read_text()


def test_what_somebody_writes_into_the_manifest_while_it_is_open_stays(tmp_path: Path) -> None:
    cases, file = [replace(c, split="") for c in study(tmp_path)], tmp_path / "out" / "cases.csv"
    with opened(tmp_path, cases) as review:
        review.done("s0", "Ann")
        head, row = file.read_text().splitlines()
        file.write_text(f"{head},site\n{row.replace(',train', ',val')},Bonn\n")
        review.done("s1", "Ann")
        review.reopen("s0", "Ann")
        review.done("s0", "Ann")
        assert {c.id: c.split for c in read_manifest(file).cases} == {"s0": "val", "s1": "train"}
        assert file.read_text().splitlines()[1].endswith(",val,Bonn")
        mine = f"{head}\ns7,{cases[0].path},mine.csv,train\n"
        file.write_text(mine)
        with pytest.raises(InputError, match="row 2 is of no corrected case"):
            review.done("s2", "Ann")
        assert file.read_text() == mine and review.case("s2").state == "open"
        assert not (tmp_path / "out" / "s2.review.json").exists()


def test_an_image_of_the_same_name_but_another_content_is_refused(tmp_path: Path) -> None:
    cases = study(tmp_path)
    with opened(tmp_path, cases) as review:
        review.change("s0", [put("a", "moved", 5, 5, 5)], "Ann")
    for folder, content in (("copied", cases[0].path), ("other", cases[1].path)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "i0.nii.gz").write_bytes(content.read_bytes())  # type: ignore[union-attr]
    with opened(tmp_path, [replace(cases[0], path=tmp_path / "copied" / "i0.nii.gz")]) as review:
        assert review.case("s0").point("a").position == (5.0, 5.0, 5.0)
    other = replace(cases[0], path=tmp_path / "other" / "i0.nii.gz")
    with pytest.raises(InputError, match=r"is a review of .*/i0.nii.gz, not of .*other/i0.nii.gz"):
        opened(tmp_path, [other])
    cases[0].path.unlink()  # type: ignore[union-attr]  # moved, perhaps: its name counts
    opened(tmp_path, [replace(cases[0], path=tmp_path / "copied" / "i0.nii.gz")]).close()


def test_many_cases_and_points_stay_quick(tmp_path: Path) -> None:
    """40 cases of 1,200 points, in processor time and so that a busy machine passes: a fortieth of what it was."""
    rng, names = np.random.default_rng(0), tuple(f"p{i}" for i in range(1200))
    grid = Grid.centred((4, 4, 4), np.eye(3)[:, ::-1] * 50, (0.0, 0.0, 0.0))
    (tmp_path / "found").mkdir()
    write_image(Image(np.zeros((1, 4, 4, 4), np.uint8), grid), tmp_path / "i.nii.gz")
    cases = [Case(f"s{k}", tmp_path / "i.nii.gz") for k in range(40)]
    landmarks = Landmarks(names, rng.uniform(-90, 90, (1200, 3)), score=rng.uniform(0, 1, 1200))
    write_prediction(Prediction(landmarks, source={"model": "m"}), tmp_path / "found", "s0", ("json",))
    text = (tmp_path / "found" / "s0.json").read_text()
    for case in cases:
        (tmp_path / "found" / f"{case.id}.json").write_text(text)
    with opened(tmp_path, cases) as review:
        began = time.process_time()
        assert len(review.queue()) == 40 and review.figures()["open"] == 40
        assert time.process_time() - began < 0.05
        review.case("s3")
        spent = []
        for k in range(5):
            began = time.process_time()
            review.change("s3", [put("p7", "moved", k, 0, 0)], "Ann")
            spent.append(time.process_time() - began)
        assert min(spent) < 0.1
