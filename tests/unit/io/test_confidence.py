"""A predicted file read back is what it was: scores and radii at a description's end are taken off again."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from anatomark.core.landmarks import Landmarks, Status
from anatomark.io.confidence import with_confidence, without_confidence
from anatomark.io.landmarks import convert, read_landmarks, write_landmarks
from anatomark.model.prediction import Prediction, write_prediction

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ENDS = [
    "p=0.5",
    "p=0.50",
    "p=1.00",
    "r90=1.2mm",
    "p=0.93 r90=1.2mm",
    " ",
    "  ",
    "p=0.9 ",
    "AC",
    "absent",
    "1,2",
    '"',
    "\n",
]
TEXT = st.lists(st.sampled_from(ENDS) | st.text(st.characters(codec="utf-8"), max_size=4), max_size=4).map(" ".join)
SCORE = st.just(float("nan")) | st.floats(0, 1).map(lambda x: round(x, 2))
RADIUS = st.just(float("nan")) | st.floats(0, 1e4).map(lambda x: round(x, 1))


def one(text, score, radius, status=Status.DEFINED):
    return Landmarks(("a",), [[1, 2, 3]], (status,), [score], None, [radius], (text,))


@settings(max_examples=500)
@given(TEXT, SCORE, RADIUS)
@example("AC p=0.50", float("nan"), 1.2)
@example("AC p=0.50", float("nan"), float("nan"))
@example("AC p=0.50 ", 0.3, float("nan"))
@example("p=0.50", 0.5, 2.0)
def test_taken_off_again(text, score, radius):
    (written,) = with_confidence(one(text, score, radius))
    assert without_confidence(written)[0] == text
    np.testing.assert_array_equal(without_confidence(written)[1:], [score, radius])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("AC p=0.93 r90=1.2mm", ("AC", 0.93, 1.2)),
        ("p=0.97", ("", 0.97, np.nan)),
        ("front r90=12.0mm", ("front", np.nan, 12.0)),
        ("AC p=0.5", ("AC p=0.5", np.nan, np.nan)),  # not as predict writes it
        ("AC p=3.10", ("AC p=3.10", np.nan, np.nan)),
        ("mp=0.50", ("mp=0.50", np.nan, np.nan)),
        ("p=0.50 of the cases", ("p=0.50 of the cases", np.nan, np.nan)),
    ],
)
def test_of_text_in_files(text, parts):
    read = without_confidence(text)
    assert read[0] == parts[0]
    np.testing.assert_array_equal(read[1:], parts[1:])


@QUICK
@given(st.lists(st.tuples(TEXT, SCORE, RADIUS, st.sampled_from(list(Status))), min_size=1, max_size=4), st.data())
def test_a_predicted_file_is_what_it_was(tmp_path, parts, data):
    ending = data.draw(st.sampled_from(["mrk.json", "fcsv"]))
    texts, scores, radii, status = zip(*parts, strict=True)
    # an undefined point whose description says "absent" is absent: that is how the formats say it
    status = tuple(
        s if s is not Status.UNANNOTATED or not t.startswith("absent") else Status.DEFINED
        for s, t in zip(status, texts, strict=True)
    )
    points = np.arange(3.0 * len(parts)).reshape(-1, 3)
    names = tuple(f"n{i}" for i in range(len(parts)))
    made = Landmarks(names, points, status, np.array(scores), None, np.array(radii), texts)
    (file,) = write_prediction(Prediction(made), tmp_path, "c", [ending])
    again = read_landmarks(file)
    assert (again.names, again.descriptions, again.status) == (names, texts, status)
    for key in ("score", "radius90"):
        nothing = np.full(len(parts), np.nan)
        value = getattr(again, key)
        np.testing.assert_array_equal(nothing if value is None else value, getattr(made, key))
    write_landmarks(again, tmp_path / f"again.{ending}")
    assert (tmp_path / f"again.{ending}").read_bytes() == file.read_bytes()
    (second,) = write_prediction(Prediction(again), tmp_path, "second", [ending])
    assert second.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("ending", ["mrk.json", "fcsv"])
def test_a_corrected_file_names_the_landmark_as_before(tmp_path, ending):
    made = Landmarks(("1",), [[1, 2, 3]], (), [0.97], None, [1.25], ("AC",))
    write_landmarks(made, tmp_path / f"a.{ending}")
    assert "AC p=0.97 r90=1.2mm" in (tmp_path / f"a.{ending}").read_text()
    assert read_landmarks(tmp_path / f"a.{ending}", label_from="description").names == ("AC",)
    other = "fcsv" if ending == "mrk.json" else "mrk.json"
    convert(tmp_path / f"a.{ending}", tmp_path / f"b.{other}")
    back = read_landmarks(tmp_path / f"b.{other}")
    assert (back.descriptions, back.score.tolist(), back.radius90.tolist()) == (("AC",), [0.97], [1.2])
    write_landmarks(
        Landmarks(back.names, back.points, descriptions=("front",), meta=back.meta), tmp_path / f"c.{other}"
    )
    assert "p=0.97" not in (tmp_path / f"c.{other}").read_text()
