"""Measurements: every kind against known figures, what moves do not change, definitions that are refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.shape import random_rotation
from anatomark.errors import InputError
from anatomark.model.config import checked
from anatomark.tools.definitions import read_definition, ready
from anatomark.tools.measure.geometry import evaluate
from anatomark.tools.measure.schema import Measurements
from anatomark.tools.planes.schema import PlaneSet

EVERY: dict[str, dict[str, Any]] = {
    "distance": {"distance": ["a", "b"]},
    "signed distance": {"distance": ["a", "b"], "towards": ["c", "d"]},
    "angle": {"angle": ["a", "b", "c"]},
    "lines": {"angle_between": [["a", "b"], ["c", "d"]]},
    "turn": {"angle_between": [["a", "b"], ["c", "d"]], "towards": ["a", "d"]},
    "ratio": {"ratio": [["a", "b"], ["c", "d"]]},
    "share": {"ratio": ["distance", ["c", "d"]], "unit": "%"},
    "projection": {"projection": {"line": ["a", "b"], "along": ["c", "d"]}},
    "off line": {"point_line": {"point": "a", "line": ["b", "c"]}},
    "side of line": {"point_line": {"point": "a", "line": ["b", "c"]}, "side": "d"},
    "sum": {"sum": ["angle", "lines", "turn"], "unit": "rad"},
    "difference": {"difference": ["distance", "projection"]},
}
SOLID: dict[str, dict[str, Any]] = {
    "off plane": {"point_plane": {"point": "a", "plane": ["b", "c", "d"]}},
    "side of plane": {"point_plane": {"point": "a", "plane": ["b", "c", "d"]}, "side": "e"},
    "to plane": {"angle_to_plane": {"line": ["a", "b"], "plane": ["c", "d", "e"]}},
    "signed to plane": {"angle_to_plane": {"line": ["a", "b"], "plane": ["c", "d", "e"]}, "side": "a"},
}
LABELS = "abcde"


def _define(measurements: dict[str, Any]) -> Measurements:
    return checked(Measurements, {"measurements": measurements}, "test.yaml")


def _values(measurements: dict[str, Any], points: Any) -> dict[str, np.ndarray]:
    definition = _define(measurements)
    points = np.asarray(points, dtype=np.float64)
    found = evaluate(definition, LABELS[: points.shape[-2]], points)
    return {n: found[..., k] for k, n in enumerate(definition.shown)}


def _one(entry: dict[str, Any], *points: Any) -> float:
    return float(_values({"x": entry}, points)["x"])


ORIGIN, X, Y = (0.0, 0.0), (2.0, 0.0), (0.0, 3.0)


@pytest.mark.parametrize(
    ("entry", "points", "expected"),
    [
        ({"distance": ["a", "b"]}, [(1, 1), (4, 5)], 5),
        ({"distance": ["a", "b"], "unit": "cm"}, [(1, 1), (4, 5)], 0.5),
        ({"distance": ["a", "b"], "towards": ["a", "c"]}, [ORIGIN, (3, 4), (-1, 0)], -5),
        ({"distance": ["a", {"b": 1, "c": 3}]}, [ORIGIN, (4, 0), (8, 0)], 7),
        ({"distance": ["a", ["b", "c"]]}, [ORIGIN, (4, 0), (8, 0)], 6),
        ({"angle": ["b", "a", "c"]}, [ORIGIN, X, Y], 90),
        ({"angle": ["b", "a", "c"], "unit": "rad"}, [ORIGIN, X, Y], np.pi / 2),
        ({"angle_between": [["a", "b"], ["c", "a"]]}, [ORIGIN, X, (5, 0)], 180),
        ({"angle_between": [["a", "b"], ["a", "c"]], "towards": ["a", "d"]}, [ORIGIN, X, (1, 1), (0, 5)], 45),
        ({"angle_between": [["a", "b"], ["a", "c"]], "towards": ["a", "d"]}, [ORIGIN, X, (-1, -1), (9, 5)], -135),
        ({"ratio": [["a", "b"], ["a", "c"]]}, [ORIGIN, X, Y], 2 / 3),
        ({"projection": {"line": ["a", "c"], "along": ["b", "a"]}}, [ORIGIN, X, (5, 7)], -5),
        ({"point_line": {"point": "c", "line": ["a", "b"]}}, [ORIGIN, X, (9, -4)], 4),
        ({"point_line": {"point": "c", "line": ["a", "b"]}, "side": "d"}, [ORIGIN, X, (9, -4), (1, 1)], -4),
        ({"point_line": {"point": "c", "line": ["a", "b"]}}, [(0, 0, 0), (0, 0, 5), (3, 4, 9)], 5),
        ({"point_plane": {"point": "d", "plane": ["a", "b", "c"]}}, [(0, 0, 2), (1, 0, 2), (0, 1, 2), (5, 5, -1)], 3),
        ({"point_plane": {"point": "d", "plane": ["a", "b", "c"]}, "side": "e"},
         [(0, 0, 2), (1, 0, 2), (0, 1, 2), (5, 5, -1), (0, 0, 9)], -3),
        ({"angle_to_plane": {"line": ["a", "d"], "plane": ["a", "b", "c"]}},
         [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, -1)], 45),
        ({"angle_to_plane": {"line": ["a", "d"], "plane": ["a", "b", "c"]}, "side": "e"},
         [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, -1), (0, 0, 1)], -45),
    ],
)  # fmt: skip
def test_known_figures(entry: dict[str, Any], points: Any, expected: float) -> None:
    assert _one(entry, *points) == pytest.approx(expected, abs=1e-12)


def test_sums_and_hidden_measurements() -> None:
    parts = {"far": {"distance": ["a", "b"], "hidden": True}, "near": {"distance": ["a", "c"]}}
    made = {"both": {"sum": ["far", "near"]}, "rest": {"difference": ["both", "far"]}, **parts}
    found = _values(made, [ORIGIN, X, Y])
    assert {n: float(v) for n, v in found.items()} == {"both": 5, "rest": 3, "near": 3}


@pytest.mark.parametrize("degrees", [1e-7, 1e-3, 90, 180 - 1e-7])
def test_angles_are_exact_at_their_ends(degrees: float) -> None:
    end = (np.cos(np.radians(degrees)), np.sin(np.radians(degrees)))
    assert _one({"angle": ["b", "a", "c"]}, ORIGIN, (1, 0), end) == pytest.approx(degrees, abs=2e-13, rel=1e-9)


@pytest.mark.parametrize(
    ("entry", "points"),
    [
        ({"angle": ["b", "a", "c"]}, [ORIGIN, ORIGIN, X]),
        ({"ratio": [["a", "b"], ["a", "c"]]}, [ORIGIN, X, ORIGIN]),
        ({"projection": {"line": ["a", "c"], "along": ["a", "b"]}}, [ORIGIN, ORIGIN, X]),
        ({"distance": ["a", "c"], "towards": ["a", "b"]}, [ORIGIN, ORIGIN, X]),
        ({"point_line": {"point": "c", "line": ["a", "b"]}, "side": "d"}, [ORIGIN, X, Y, (7, 0)]),
        ({"point_plane": {"point": "d", "plane": ["a", "b", "c"]}}, [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 0, 1)]),
        ({"distance": ["a", "c"], "towards": ["a", "b"]}, [ORIGIN, (np.nan, np.nan), X]),
    ],
)
def test_what_the_geometry_leaves_open_is_nan(entry: dict[str, Any], points: Any) -> None:
    assert np.isnan(_one(entry, *points))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ndim=st.sampled_from([2, 3]), scale=st.floats(0.2, 5))
def test_moves_change_nothing_and_size_changes_lengths_alone(seed: int, ndim: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-50, 50, (3, 5, ndim))
    asked = EVERY | (SOLID if ndim == 3 else {})
    definition, before = _define(asked), _values(asked, points)
    after = _values(asked, scale * points @ random_rotation(rng, ndim).T + rng.uniform(-99, 99, ndim))
    for name, values in before.items():
        size = scale if definition.dimension(name) == "length" else 1
        np.testing.assert_allclose(after[name], size * values, rtol=1e-6, atol=1e-6 * size, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_mirrored_images_measure_the_same(seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-50, 50, (5, 3))
    asked = EVERY | SOLID
    before, after = _values(asked, points), _values(asked, points * [-1, 1, 1])
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("measurements", "said"),
    [
        ({"x": {"distence": ["a", "b"]}}, r"unknown key 'measurements\.x\.distence' \(did you mean 'distance'\?\)"),
        ({"x": {}}, "x: holds no kind; expected one of distance"),
        ({"x": {"distance": ["a", "b"], "angle": ["a", "b", "c"]}}, "x: holds distance and angle"),
        ({"x": {"distance": ["a"]}}, r"expected a list of two points, found \"\['a'\]\""),
        ({"x": {"distance": ["a", "a"]}}, "two points must differ"),
        ({"x": {"angle": ["a", "b", {"c": -1}]}}, "weights above 0"),
        ({"x": {"angle": ["a", "b", 1.5]}}, "a point is a landmark's label"),
        ({"x": {"angle_between": [["a", "b"], "c"]}}, "expected a list of two points"),
        ({"x": {"distance": ["a", "b"], "side": "c"}}, "side gives no sign to distance; it does to angle_to_plane"),
        ({"x": {"distance": ["a", "b"], "unit": "deg"}}, "whose unit is mm or cm, not deg"),
        ({"x": {"distance": ["a", "b"], "unit": "inch"}}, "unit: .*'inch'"),
        ({"x": {"distance": ["a", "b"]}, "y": {"sum": ["x", "xx"]}}, r"'xx' \(did you mean 'x'\?\)"),
        ({"x": {"sum": ["y", "z"]}, "y": {"sum": ["x", "z"]}, "z": {"distance": ["a", "b"]}}, "x -> y -> x"),
        ({"x": {"distance": ["a", "b"]}, "y": {"angle": ["a", "b", "c"]}, "z": {"sum": ["x", "y"]}}, "z.*differ"),
        ({"y": {"angle": ["a", "b", "c"]}, "z": {"ratio": ["y", ["a", "b"]]}}, r"a distance \(length\) differ"),
        ({"x": {"distance": ["a", "b"], "hidden": True}}, "every measurement is hidden"),
        ({"x": {"distance": ["a", "b"], "classes": [{"name": "s", "at_least": 3, "below": 2}]}}, "'s': at_least 3"),
        (
            {"x": {"distance": ["a", "b"], "classes": [{"name": "s"}, {"name": "l", "at_least": 3}]}},
            "'l' begins before",
        ),
        ({}, "at least 1 item"),
    ],
)
def test_a_wrong_definition_is_one_clear_line(measurements: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        _define(measurements)
    assert str(error.value).startswith("test.yaml: ")
    assert "\n" not in str(error.value)


def test_numbers_are_labels_too() -> None:
    definition = _define({"x": {"distance": [1, {2: 1, "3": 1}]}})
    assert definition.labels("x") == ("1", "2", "3")


def test_the_ready_definitions_are_read() -> None:
    assert set(ready("measurements")) >= {"acpc-length", "cephalometric-isbi2015"}
    definition = read_definition("cephalometric-isbi2015", Measurements, "measurements")
    assert definition.shown == ("ANB", "SNB", "SNA", "ODI", "APDI", "FHI", "FHA", "MW")
    for name in definition.shown:
        classes = definition.measurements[name].classes
        assert classes[0].at_least == -np.inf and classes[-1].below == np.inf
        assert all(a.below == b.at_least for a, b in pairwise(classes)), name
    with pytest.raises(InputError, match="did you mean 'acpc-length'"):
        read_definition("acpc-lenght", Measurements, "measurements")


def test_cephalometric_signs() -> None:
    """A face that looks right: the palatal plane tipped down adds to ODI and APDI, B ahead of the facial plane too."""
    definition = read_definition("cephalometric-isbi2015", Measurements, "measurements")
    flat = {
        "porion": (20, 50), "orbitale": (80, 50), "sella": (30, 40), "nasion": (90, 40), "subspinale (A)": (90, 80),
        "supramentale (B)": (90, 110), "pogonion": (90, 125), "menton": (85, 135), "gnathion": (88, 131),
        "gonion": (30, 115), "lower incisal incision": (92, 95), "upper incisal incision": (95, 97),
        "posterior nasal spine": (40, 75), "anterior nasal spine": (90, 75),
    }  # fmt: skip

    def found(**moved: tuple[float, float]) -> dict[str, float]:
        face = flat | {k.replace("_", " ").replace("B", "(B)").strip(): v for k, v in moved.items()}
        values = evaluate(definition, list(face), np.array(list(face.values()), dtype=np.float64))
        return dict(zip(definition.shown, values, strict=True))

    start = found()
    assert start["APDI"] == pytest.approx(90)
    assert start["MW"] == pytest.approx(np.hypot(3, 2))
    tipped = found(anterior_nasal_spine=(90, 80))
    assert tipped["APDI"] - start["APDI"] == pytest.approx(np.degrees(np.arctan2(5, 50)))
    assert tipped["ODI"] - start["ODI"] == pytest.approx(np.degrees(np.arctan2(5, 50)))
    ahead = found(supramentale_B=(93, 110))
    assert ahead["APDI"] - start["APDI"] == pytest.approx(np.degrees(np.arctan2(3, 30)))
    assert found(upper_incisal_incision=(90, 97))["MW"] == pytest.approx(-np.hypot(2, 2))


BODY = {"measurements": {"x": {"distance": ["a", "b"]}}, "planes": {"x": {"through": ["a", "b", "c"], "size_mm": 8}}}


@pytest.mark.parametrize("model", [Measurements, PlaneSet])
def test_what_labels_stand_for_is_read_alike(model: Any) -> None:
    """Labels may be numbers; blanks at their ends and their Unicode form are no part of them, as in files."""
    read = checked(model, {"stands_for": {1: "AC", " Nase\u0308 ": 2}, **BODY}, "test.yaml")
    assert read.stands_for == {"1": "AC", "Nas\u00eb": "2"}
    for wrong in (
        [["a", "x"]],
        "a",
        None,
        {"a": ""},
        {" ": "x"},
        {"a": ["x"]},
        {"a": {"b": "c"}},
        {"a": None},
        {True: "x"},
    ):
        with pytest.raises(InputError, match=r"test\.yaml: stands_for: expected label: meaning, found "):
            checked(model, {"stands_for": wrong, **BODY}, "test.yaml")


def test_a_label_of_a_definition_is_that_of_the_files() -> None:
    assert _define({"x": {"distance": [" a", "Nase\u0308 "]}}).labels("x") == ("a", "Nas\u00eb")
