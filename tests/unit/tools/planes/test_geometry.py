"""Scan planes: where they lie whatever the head's pose, what is refused, and what a slice shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import Pose, random_rotation
from anatomark.errors import InputError
from anatomark.model.config import checked
from anatomark.tools.definitions import read_definition, ready
from anatomark.tools.planes.errors import plane_error, plane_lines, plane_rows, plane_summary
from anatomark.tools.planes.geometry import Plane, find_planes
from anatomark.tools.planes.schema import PlaneSet
from points import named

SEEDS = st.integers(0, 10_000)
HEAD = {"ac": (0, 0, 0), "pc": (0, 25, 2), "top": (0, 10, 60), "left": (40, 5, 0), "right": (-40, 5, 0)}
BRAIN = {
    "sagittal": {
        "through": ["ac", "pc", "top", ["left", "right"]], "facing": {"start": "right", "end": "left"},
        "up": {"start": "ac", "end": "top"}, "size_mm": [40, 30],
    },
    "axial": {"through": ["ac", "pc"], "along": {"normal_of": "sagittal"}, "facing": {"start": "top", "end": "ac"},
              "up": {"start": "pc", "end": "ac"}, "size_mm": 50},
    "coronal": {"through": ["ac"], "normal": {"start": "pc", "end": "ac"}, "facing": {"start": "pc", "end": "ac"},
                "up": {"start": "ac", "end": "top"}, "size_mm": 50, "centre": "top"},
}  # fmt: skip


def definition(planes: Any) -> PlaneSet:
    return checked(PlaneSet, {"planes": planes}, "planes.yaml")


def one(points: dict[str, Any], **plane: Any) -> Plane | str:
    return find_planes(definition({"it": {"size_mm": 20, **plane}}), named(points))["it"]


def sure(found: Plane | str) -> Plane:
    assert isinstance(found, Plane), found
    return found


def pose(seed: int) -> Pose:
    rng = np.random.default_rng(seed)
    return Pose(random_rotation(rng, 3), rng.normal(0, 50, 3))


@given(SEEDS)
def test_a_plane_of_points_moves_with_the_head(seed: int) -> None:
    marks, motion = named(HEAD), pose(seed)
    moved = marks.with_points(motion.apply(marks.points))
    before, after = find_planes(definition(BRAIN), marks), find_planes(definition(BRAIN), moved)
    for name in BRAIN:
        a, b = sure(before[name]), sure(after[name])
        frame = np.stack([b.right, b.up, b.normal])
        assert np.allclose(frame @ frame.T, np.eye(3)) and np.linalg.det(frame) == pytest.approx(1)
        assert np.allclose(motion.apply(a.corners()), b.corners(), atol=1e-6)
        assert np.allclose(motion.rotation @ a.normal, b.normal)
        assert np.allclose(b.distance(b.corners()), 0, atol=1e-9)


def test_the_three_planes_of_a_head_are_seen_as_radiologists_see_them() -> None:
    found = find_planes(definition(BRAIN), named(HEAD))
    sagittal, axial, coronal = (sure(found[n]) for n in BRAIN)
    assert np.allclose(sagittal.normal, (1, 0, 0)) and sagittal.right[1] > 0.9  # anterior at the left
    assert np.allclose(axial.distance(np.array([HEAD["ac"], HEAD["pc"]])), 0) and axial.right[0] > 0.99
    assert np.allclose(coronal.normal, np.array([0, -25, -2]) / np.hypot(25, 2)) and coronal.right[0] > 0.99
    assert np.allclose(coronal.origin, np.array(HEAD["top"]) - coronal.distance(np.array(HEAD["top"])) * coronal.normal)


@given(SEEDS)
def test_without_directions_the_sign_does_not_depend_on_the_order_of_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = {n: rng.normal(0, 30, 3) for n in "abc"}
    ways = [one(points, through=list(order)) for order in ("abc", "cab", "bca", "cba")]
    if any(isinstance(w, str) for w in ways):
        return
    first = sure(ways[0])
    assert first.normal[np.abs(first.normal).argmax()] * (1, -1, -1)[int(np.abs(first.normal).argmax())] > 0
    for other in map(sure, ways[1:]):
        assert np.allclose(other.normal, first.normal) and np.allclose(other.origin, first.origin)


def test_the_fit_is_least_squares_and_knows_weights() -> None:
    points = {"a": (0, 0, 0), "b": (50, 0, 0), "c": (0, 50, 0), "d": (50, 50, 4)}
    plain = sure(one(points, through=list("abcd")))
    assert sum(plain.residuals.values()) == pytest.approx(0, abs=1e-9)
    best = sum(r**2 for r in plain.residuals.values())
    rng = np.random.default_rng(0)
    for _ in range(50):
        normal = plain.normal + rng.normal(0, 0.02, 3)
        residuals = (np.array(list(points.values())) - plain.origin) @ (normal / np.linalg.norm(normal))
        assert (residuals**2).sum() >= best
    heavy = sure(one(points, through=list("abcd"), weights=[1, 1, 1, 1000]))
    assert abs(heavy.residuals["d"]) < 0.02 < abs(plain.residuals["d"])


@pytest.mark.parametrize(
    ("points", "plane", "reason"),
    [
        ({"a": (0, 0, 0), "b": (10, 10, 10), "c": (20, 20, 20.1)}, {"through": ["a", "b", "c"]}, "on a line"),
        ({"a": (0, 0, 0), "b": (0, 0, 0), "c": (0, 0, 0)}, {"through": ["a", "b", "c"]}, "on a line"),
        ({"a": (1, 1, 1), "b": (1, -1, -1), "c": (-1, 1, -1), "d": (-1, -1, 1)}, {"through": list("abcd")},
         "in no plane"),
        ({"a": (0, 0, 0), "b": (0, 0, 9)}, {"through": ["a", "b"], "along": "superior"}, "in the direction of 'along'"),
        ({"a": (0, 0, 0)}, {"through": ["a"], "normal": "left", "up": "right"}, "'up' is at right angles"),
        ({"a": (0, 0, 0)}, {"through": ["a"], "normal": "left", "facing": "superior"}, "'facing' runs within"),
        ({"a": (0, 0, 0), "b": (0, 0, 0)}, {"through": ["a"], "normal": {"start": "a", "end": "b"}}, "one point"),
        ({"a": (0, 0, 0)}, {"through": ["a"], "normal": {"start": "a", "end": "z"}}, "landmark 'z' is not there"),
    ],
)  # fmt: skip
def test_what_defines_no_plane_gives_a_reason(points: dict[str, Any], plane: dict[str, Any], reason: str) -> None:
    found = one(points, **plane)
    assert isinstance(found, str) and reason in found


def test_absent_landmarks() -> None:
    marks = Landmarks(tuple(HEAD), np.array(list(HEAD.values()), dtype=float))
    gone = Landmarks(marks.names, np.where(np.arange(5)[:, None] == 2, np.nan, marks.points),
                     tuple(Status.ABSENT if n == "top" else Status.DEFINED for n in marks.names))  # fmt: skip
    found = find_planes(definition(BRAIN), gone)
    assert found["sagittal"] == "landmark 'top' is absent"
    assert found["axial"] == "plane 'sagittal' is not defined: landmark 'top' is absent"
    rest = {"through": ["ac", "pc", "top", "left"], "at_least": 3, "size_mm": 20}
    assert sure(find_planes(definition({"it": rest}), gone)["it"]).left_out == ("top",)
    short = find_planes(definition({"it": {**rest, "through": ["ac", "top", "no", "left"]}}), gone)["it"]
    assert short == "landmark 'top' is absent (2 of at least 3 points)"
    with pytest.raises(InputError, match="are 2D"):
        find_planes(definition(BRAIN), named({"ac": (0, 0)}))


@pytest.mark.parametrize(
    ("plane", "message"),
    [
        ({"through": ["a", "b"]}, "2 points; without normal it takes 3, with along 2, with normal 1"),
        ({"through": ["a", "b"], "normal": "left", "along": "left"}, "along and normal are both given"),
        ({"through": ["a", "b", "c"], "wieghts": [1, 1, 1]}, "unknown key .*wieghts.*did you mean 'weights'"),
        ({"through": ["a", "b", "c"], "weights": [1]}, "weights: 1 for 3 points"),
        ({"through": ["a", "b", "c"], "at_least": 2}, "at_least: 2 is not between 3 and 3"),
        ({"through": ["a", "b", True]}, "a point is a landmark's label"),
        ({"through": ["a", "b", {"c": -1}]}, "weights above 0"),
        ({"through": ["a", "b", "c"], "up": {"start": "a"}}, "start and end"),
        ({"through": ["a", "b", "c"], "up": {"normal_of": "other"}}, "no plane 'other' stands above"),
        ({"through": ["a", "b", "c"], "slab_mm": -1}, "slab_mm"),
        ({"through": ["a", "b", "c"], "size_mm": [20, 0]}, "size_mm.1: has to be above 0, found 0"),
        ({"through": ["a", "b", "c"], "spacing_mm": -1}, "spacing_mm: has to be above 0, found -1"),
        ({"through": ["a", "b", ["c", "c"]]}, "a label appears twice in one mean"),
    ],
)
def test_a_faulty_definition_is_one_clear_line(plane: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        definition({"it": {"size_mm": 20, **plane}})
    assert "\n" not in str(error.value) and "planes.yaml" in str(error.value)


def test_planes_may_be_a_list_and_labels_numbers() -> None:
    plane = {"name": "it", "through": [1, {2: 1, 3: 3}, [4, 5]], "size_mm": 20}
    wanted = definition([plane]).planes["it"]
    assert wanted.through == [{"1": 1}, {"2": 0.25, "3": 0.75}, {"4": 0.5, "5": 0.5}]
    for planes, message in (([plane, plane], "two planes are called 'it'"), ([{"size_mm": 3}], "needs its name"),
                            ({"a/b": {"through": [1, 2, 3], "size_mm": 3}}, "'a/b' names files")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            definition(planes)
    with pytest.raises(InputError, match=r"no case has a landmark '1' \(did you mean '11'"):
        definition([plane]).check_labels(["11", "2", "3", "4", "5"], "d.yaml")


@pytest.mark.parametrize("name", sorted(ready("planes")))
def test_ready_definitions_give_planes(name: str) -> None:
    wanted = read_definition(name, PlaneSet, "planes")
    labels = sorted({label for p in wanted.planes.values() for label in p.labels()})
    rng = np.random.default_rng(0)
    marks = Landmarks(tuple(labels), rng.normal(0, 30, (len(labels), 3)))
    assert set(find_planes(wanted, marks)) == set(wanted.planes)


# ---------------------------------------------------------------------- slices


def ramp(seed: int, dtype: Any = np.float32) -> tuple[Image, np.ndarray]:
    """A volume whose value is a linear function of the world position, on an oblique anisotropic grid."""
    rng = np.random.default_rng(seed)
    grid = Grid.centred((40, 50, 60), random_rotation(rng, 3) * (1.5, 1.0, 0.8), (5, -3, 8))
    slope = rng.normal(size=3)
    return Image((grid.points() @ slope)[None].astype(dtype), grid), slope


@given(SEEDS, st.sampled_from([0.0, 1.0, 5.0]))
def test_a_slice_holds_what_lies_at_its_voxels(seed: int, slab: float) -> None:
    image, slope = ramp(seed)
    rng = np.random.default_rng(seed + 1)
    marks = {n: image.grid.centre + rng.normal(0, 8, 3) for n in "abc"}
    plane = one(marks, through=["a", "b", "c"], size_mm=[12, 8], spacing_mm=0.5, slab_mm=slab)
    if isinstance(plane, str):
        return
    cut = plane.cut(image)
    assert cut.grid.shape == (1, 16, 24)
    assert np.allclose(cut.grid.spacing, (slab or 0.5, 0.5, 0.5)) and np.linalg.det(cut.grid.axes[:, ::-1]) > 0
    assert np.allclose(cut.grid.centre, plane.origin)
    inside = image.grid.contains(cut.grid.points() + 4 * plane.normal) & image.grid.contains(
        cut.grid.points() - 4 * plane.normal
    )
    assert np.allclose(cut.array[0][inside], (cut.grid.points() @ slope)[inside], atol=1e-2)
    corner = cut.grid.to_world((0, -0.5, -0.5))
    assert np.allclose(corner, plane.corners()[0])


def test_the_maximum_of_a_slab_finds_a_bright_voxel_beside_the_plane() -> None:
    grid = Grid.centred((21, 21, 21), np.eye(3)[:, ::-1], (0, 0, 0))
    array = np.full((1, 21, 21, 21), 10, dtype=np.int16)
    array[0, 10, 10, 13] = 110  # 3 mm to the left
    image = Image(array, grid)
    settings: dict[str, Any] = {"through": ["a"], "normal": "left", "size_mm": 11, "spacing_mm": 1}
    values = {
        (slab, mode): sure(one({"a": (0, 0, 0)}, **settings, slab_mm=slab, mode=mode)).cut(image).array
        for slab, mode in ((0, "mean"), (7, "mean"), (7, "max"))
    }
    assert all(v.dtype == np.int16 and v.shape == (1, 1, 11, 11) for v in values.values())
    assert [int(v.max()) for v in values.values()] == [10, 24, 110]
    beyond = one({"a": (9, 0, 0)}, **settings | {"size_mm": 41})
    assert set(np.unique(sure(beyond).cut(image).array)) == {0, 10}


def test_a_rectangle_outside_the_image_and_a_2d_image_are_refused() -> None:
    image, _ = ramp(0)
    plane = sure(one({"a": (900, 0, 0)}, through=["a"], normal="left"))
    with pytest.raises(InputError, match="wholly outside"):
        plane.cut(image)
    with pytest.raises(InputError, match="is 2D"):
        plane.cut(Image(np.zeros((1, 4, 4)), Grid((4, 4), np.eye(3))))


# ---------------------------------------------------------------------- errors


@given(SEEDS, st.floats(0, 89), st.floats(-20, 20))
def test_angle_and_offset_are_what_was_done_to_the_plane(seed: int, degrees: float, shift: float) -> None:
    motion, a = pose(seed), np.radians(degrees)
    straight = {"a": (0, 0, 0), "b": (10, 0, 0), "c": (-10, 0, 0), "d": (0, 10, 0), "e": (0, -10, 0)}
    tilt = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    normal = tilt @ (0, 0, 1)
    points = {k: motion.apply(p) for k, p in straight.items()}
    moved = {k: motion.apply(tilt @ p + shift * normal) for k, p in straight.items()}
    truth, guess = sure(one(points, through=list("abcde"))), sure(one(moved, through=list("edcba")))
    error = plane_error(guess, truth)
    assert error["angle_deg"] == pytest.approx(degrees, abs=1e-5)
    assert error["offset_mm"] == pytest.approx(abs(shift), abs=1e-6)
    assert error["mean_mm"] >= error["offset_mm"] - 1e-6
    assert plane_error(truth, truth)["mean_mm"] == pytest.approx(0, abs=1e-9)


def test_rows_and_summary_count_what_is_undefined() -> None:
    marks = named(HEAD)
    off = marks.with_points(marks.points + (2, 0, 0))
    gone = Landmarks(marks.names, np.where(np.arange(5)[:, None] == 2, np.nan, marks.points))
    truth = {"a": marks, "b": marks, "c": gone, "d": marks}
    rows = plane_rows(definition(BRAIN), truth, {"a": off, "b": gone, "c": marks, "d": None})
    sagittal = [r for r in rows if r["plane"] == "sagittal"]
    assert [r["state"] for r in sagittal] == ["measured", "undefined", "no truth", "undefined"]
    assert (sagittal[0]["angle_deg"], sagittal[0]["offset_mm"]) == pytest.approx((0, 2), abs=1e-9)
    assert sagittal[3]["reason"] == "no prediction"
    summary = plane_summary(rows)
    assert (summary[0]["plane"], summary[0]["measured"], summary[0]["undefined"]) == ("sagittal", 1, 2)
    assert summary[0]["offset_median_mm"] == pytest.approx(2)
    assert plane_lines(summary)[0].endswith("1 cases, 2 undefined")
    nothing = plane_summary(plane_rows(definition(BRAIN), {"d": marks}, {}))
    assert nothing[0]["angle_median_deg"] is None and "not measured" in plane_lines(nothing)[0]
