"""Crops that remove landmarks, and the threshold of presence that they give."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import random_rotation
from anatomark.errors import InputError
from anatomark.model.confidence.presence_trials import (
    Trials,
    case_trials,
    crop_trials,
    described_presence,
    frozen_threshold,
    random_crop,
)

CUBE = Grid.from_axes((10, 10, 10), np.eye(3)[:, ::-1], np.zeros(3))
ABSENT, DEFINED, UNKNOWN = Status.ABSENT, Status.DEFINED, Status.UNANNOTATED


def scene(seed: int, ndim: int, count: int) -> tuple[Image, Landmarks]:
    """Noise on a turned grid with another spacing along each axis, some of them flipped, and points well inside."""
    rng = np.random.default_rng([seed, ndim])
    shape = rng.integers(40, 70, ndim)
    axes = random_rotation(rng, ndim) * (rng.uniform(0.4, 2.5, ndim) * rng.choice([-1, 1], ndim))
    grid = Grid.centred(shape.tolist(), axes, rng.uniform(-100, 100, ndim))
    points = grid.to_world(rng.uniform(0.1, 0.9, (count, ndim)) * (shape - 1))
    image = Image(rng.normal(size=(1, *shape)).astype(np.float32), grid)
    return image, Landmarks(tuple(f"p{i}" for i in range(count)), points)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), ndim=st.sampled_from([2, 3]), count=st.integers(6, 40))
def test_a_crop_removes_a_share_and_moves_nothing(seed: int, ndim: int, count: int) -> None:
    image, truth = scene(seed, ndim, count)
    crop, known = random_crop(image, truth, np.random.default_rng(seed), margin_mm=0.0)
    assert 0.2 <= np.mean(~crop.grid.contains(truth.points)) <= 0.5
    whole = np.array(image.grid.shape)
    assert (np.array(crop.grid.shape) >= np.ceil(0.2 * whole)).all()
    assert 1 <= (np.array(crop.grid.shape) < whole).sum() <= 2 and crop.meta is image.meta
    outside = [s is ABSENT for s in known.status]
    assert outside == (~crop.grid.contains(truth.points)).tolist()
    np.testing.assert_array_equal(known.points[known.defined], truth.points[known.defined])
    # a voxel of the crop is the voxel of the image at the same place in the world
    index = np.random.default_rng(seed).integers(0, crop.grid.shape, (20, ndim))
    there = image.grid.to_index(crop.grid.to_world(index))
    np.testing.assert_allclose(there, np.rint(there), atol=1e-6)
    found = crop.array[(0, *index.T)]
    np.testing.assert_array_equal(found, image.array[(0, *np.rint(there).astype(int).T)])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ndim=st.sampled_from([2, 3]), margin=st.floats(0.5, 8))
def test_only_what_lies_near_a_cut_is_left_out(seed: int, ndim: int, margin: float) -> None:
    image, truth = scene(seed, ndim, 20)
    crop, exact = random_crop(image, truth, np.random.default_rng(seed), margin_mm=0.0)
    same, known = random_crop(image, truth, np.random.default_rng(seed), margin_mm=margin)
    assert crop.grid == same.grid
    # distance to the borders that were cut, the old ones being far: by brute force over planes in world mm
    normals = image.grid.axes / image.grid.spacing
    for k, state in enumerate(known.status):
        gaps = []
        for a in range(ndim):
            for border, old in ((-0.5, -0.5), (crop.grid.shape[a] - 0.5, image.grid.shape[a] - 0.5)):
                corner = np.zeros(ndim)
                corner[a] = border
                sign = 1 if border == -0.5 else -1
                moved = image.grid.to_index(crop.grid.to_world(corner))[a]
                if abs(moved - old) > 1e-6:
                    gaps.append(sign * float((truth.points[k] - crop.grid.to_world(corner)) @ normals[:, a]))
        assert gaps
        near = abs(min(gaps)) <= margin
        assert state is (UNKNOWN if near else exact.status[k])


def test_states_of_the_truth_are_kept_and_the_crop_is_seeded() -> None:
    image, truth = scene(1, 3, 12)
    states = (ABSENT, UNKNOWN, *[DEFINED] * 10)
    truth = replace(truth, status=states)
    one, known = random_crop(image, truth, np.random.default_rng(5))
    assert known.status[:2] == states[:2]
    again, _ = random_crop(image, truth, np.random.default_rng(5))
    assert one.grid == again.grid
    assert any(random_crop(image, truth, np.random.default_rng(s))[0].grid != one.grid for s in range(4))


def test_an_image_that_cannot_be_cut_so_is_refused() -> None:
    heap = Landmarks(("a", "b", "c", "d"), np.full((4, 3), 4.5))
    image = Image(np.zeros((1, 10, 10, 10)), CUBE)
    with pytest.raises(InputError, match="removes 20% to 50% of its 4 landmarks"):
        random_crop(image, heap, np.random.default_rng(0))
    away = Landmarks(("a",), np.array([[50.0, 0, 0]]))
    with pytest.raises(InputError, match="0 landmarks"):
        random_crop(image, away, np.random.default_rng(0))
    assert crop_trials(lambda image: heap, image, heap, np.random.default_rng(0)).failed == 1


def test_the_threshold_separates_and_lies_in_the_gap() -> None:
    made = Trials(np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.7, 0.8]), np.array([0.6, 0.7, 0.9]), crops=2)
    entry = frozen_threshold(made)
    assert entry is not None
    assert entry["threshold"] == pytest.approx(0.45)
    assert (entry["recall"], entry["precision"], entry["false_absences"], entry["n"]) == (1, 1, 0, 6)
    assert frozen_threshold(None) is None
    assert frozen_threshold(Trials(whole=np.ones(4))) is None


def test_whole_images_bound_the_threshold() -> None:
    rng = np.random.default_rng(0)
    # absent landmarks score up to 0.8; a tenth of those in whole images lies below that
    whole = np.r_[rng.uniform(0.81, 1, 180), rng.uniform(0.3, 0.79, 20)]
    made = Trials(rng.uniform(0, 0.8, 500), rng.uniform(0.81, 1, 500), whole)
    entry = frozen_threshold(made)
    assert entry is not None
    assert np.mean(whole < entry["threshold"]) <= 0.01
    assert entry["false_absences"] == 0.01 and entry["recall"] < 0.7
    free = frozen_threshold(replace(made, whole=whole[:180]))
    assert free is not None and free["recall"] == 1


def test_points_outside_whole_images_do_not_forbid_every_threshold() -> None:
    entry = frozen_threshold(Trials(np.array([0.1, 0.2]), np.array([0.9]), np.r_[np.zeros(5), np.ones(5)]))
    assert entry is not None
    assert entry["recall"] == 1 and entry["false_absences"] == 0.5


@given(st.data())
def test_the_threshold_is_the_best_of_all(data: st.DataObject) -> None:
    """Against loops over every threshold between two scores."""
    scores = st.lists(st.integers(0, 20).map(lambda k: k / 20), max_size=12)
    absent, present = data.draw(scores), data.draw(scores)
    whole = data.draw(scores) + [0.95] * data.draw(st.sampled_from([0, 99, 100, 200]))
    entry = frozen_threshold(Trials(np.array(absent), np.array(present), np.array(whole), 3, 1))
    if not absent or not whole:
        assert entry is None
        return
    edges = sorted({0.0, 1.0, *absent, *present, *whole})
    choices = []
    for low, high in itertools.pairwise(edges):
        t = (low + high) / 2
        hits, false, lost = (sum(x < t for x in values) for values in (absent, present, whole))
        if lost <= max(len(whole) // 100, whole.count(0.0)):
            choices.append((round(2 * hits / (hits + false + len(absent)), 9), high - low, -t, hits, false, lost))
    best = max(c[:2] for c in choices)
    _, _, t, hits, false, lost = max(c for c in choices if c[0] == best[0] and c[1] > best[1] - 1e-12)
    assert entry is not None
    if sum(c[0] == best[0] and c[1] > best[1] - 1e-9 for c in choices) == 1:  # else rounding decides
        assert entry["threshold"] == pytest.approx(-t)
        assert entry["recall"] == round(hits / len(absent), 4)
        assert entry["precision"] == (round(hits / (hits + false), 4) if hits + false else None)
        assert entry["false_absences"] == round(lost / len(whole), 4)
    assert entry["n"] == len(absent) + len(present) and entry["absent"] == len(absent)
    assert (entry["whole"], entry["crops"], entry["failed"]) == (len(whole), 3, 1)


def test_trials_add_up() -> None:
    one, two = Trials(np.r_[1.0], np.r_[2.0], np.r_[3.0], 4, 5), Trials(np.r_[6.0], np.r_[7.0], np.r_[8.0], 9, 10)
    both = one + two + Trials()
    assert (both.absent.tolist(), both.present.tolist(), both.whole.tolist()) == ([1, 6], [2, 7], [3, 8])
    assert (both.crops, both.failed) == (13, 15)


def test_the_console_says_how_good_the_threshold_is() -> None:
    entry = {"threshold": 0.25, "recall": 0.9, "precision": 0.75, "absent": 10, "crops": 8, "failed": 0, "whole": 40,
             "false_absences": 0.025}  # fmt: skip
    assert described_presence(entry) == (
        "absence: a score below 0.250; chosen on 8 crops, where it names 9 of 10 absent landmarks and 3 present ones; "
        "in whole images 2.5% of 40 landmarks by mistake"
    )
    one = {**entry, "crops": 1, "precision": None, "recall": 0.0, "absent": 1, "failed": 1}
    assert "chosen on 1 crop (1 crop failed), where it names 0 of 1 absent landmark and 0 present ones;" in (
        described_presence(one)
    )
    assert described_presence(None).startswith("absence: no independent case")


def test_a_landmark_near_the_cut_is_within_4_percent_of_the_reach() -> None:
    image, truth = scene(9, 3, 30)
    truth = replace(truth, status=(UNKNOWN, *[DEFINED] * 29))
    points = truth.points[1:]
    margin = 0.04 * np.linalg.norm(points - points.mean(0), axis=1).max()

    def states(margin_mm: float | None) -> list[tuple[Status, ...]]:
        return [random_crop(image, truth, np.random.default_rng(s), margin_mm=margin_mm)[1].status for s in range(30)]

    assert states(None) == states(margin)
    assert states(margin) != states(0.8 * margin) and states(margin) != states(1.2 * margin)


def test_a_cut_leaves_eight_voxels_and_a_fifth_of_an_axis() -> None:
    grid = Grid.from_axes((60, 12), np.eye(2)[:, ::-1], np.zeros(2))
    points = grid.to_world(np.random.default_rng(0).uniform(0.05, 0.95, (20, 2)) * [59, 11])
    image, truth = Image(np.zeros((1, 60, 12)), grid), Landmarks(tuple(map(str, range(20))), points)
    shapes = [random_crop(image, truth, np.random.default_rng(s), remove=(0.3, 0.95))[0].grid.shape for s in range(80)]
    assert min(a for a, _ in shapes) in range(12, 15) and min(b for _, b in shapes) == 8
    tiny = Grid.from_axes((5, 40), np.eye(2)[:, ::-1], np.zeros(2))
    points = tiny.to_world(np.random.default_rng(0).uniform(0.05, 0.95, (20, 2)) * [4, 39])
    truth = Landmarks(truth.names, points)
    crops = [random_crop(Image(np.zeros((1, 5, 40)), tiny), truth, np.random.default_rng(s))[0] for s in range(20)]
    assert {c.grid.shape[0] for c in crops} == {5}  # an axis that is shorter still is left whole


def test_the_share_that_a_crop_removes() -> None:
    image, truth = scene(11, 2, 10)
    for remove, counts in (((0.2, 0.5), {2, 3, 4, 5}), ((0.3, 0.3), {3}), ((0.0, 0.05), {1}), ((0.9, 0.9), {9})):
        lost = set()
        for seed in range(60):
            try:
                crop, _ = random_crop(image, truth, np.random.default_rng(seed), remove=remove)
            except InputError:
                continue  # most of the landmarks may leave too little
            lost.add(int((~crop.grid.contains(truth.points)).sum()))
        assert lost == counts
    away = replace(truth, points=np.where(np.arange(10)[:, None] < 5, truth.points, 1e4))
    with pytest.raises(InputError, match="30% to 30% of its 5 landmarks"):
        random_crop(image, away, np.random.default_rng(0), remove=(0.3, 0.3))  # neither one nor two of five


def test_every_side_is_cut_at_times_and_an_unknown_landmark_does_not_stop_it() -> None:
    image, truth = scene(14, 2, 20)
    cut: set[tuple[int, str]] = set()
    for seed in range(40):
        grid = random_crop(image, truth, np.random.default_rng(seed))[0].grid
        first = np.rint(image.grid.to_index(grid.origin)).astype(int)
        end = first + grid.shape
        cut |= {(a, "low") for a in np.flatnonzero(first)} | {
            (a, "high") for a in np.flatnonzero(end < image.grid.shape)
        }
    assert cut == {(0, "low"), (0, "high"), (1, "low"), (1, "high")}
    partly = replace(truth, status=(UNKNOWN, *[DEFINED] * 19))
    assert crop_trials(lambda part: truth, image, partly, np.random.default_rng(0)).crops == 1


def test_the_crop_of_a_case_follows_from_its_name_and_the_seed() -> None:
    image, truth = scene(12, 2, 20)
    for case, seed in [(c, 0) for c in "abcdef"] + [("a", k) for k in range(1, 6)]:
        seen: list[Image] = []
        case_trials(lambda part, seen=seen: seen.append(part) or truth, case, image, truth, truth, seed)
        expected = random_crop(image, truth, np.random.default_rng([seed, 23, zlib.crc32(case.encode())]))[0]
        assert [s.grid for s in seen] == [expected.grid]


def test_trials_of_a_whole_image_leave_out_what_is_not_in_it() -> None:
    points = np.array([[5.0, 5, 5], [50, 5, 5], [5, 5, 5], [np.nan] * 3])
    truth = Landmarks(tuple("abcd"), points, (DEFINED, DEFINED, ABSENT, UNKNOWN))
    found = Landmarks(tuple("dcba"), np.full((4, 3), 5.0), score=np.array([0.4, 0.3, 0.2, 0.1]))
    made = case_trials(None, "x", Image(np.zeros((1, 10, 10, 10)), CUBE), truth, found, 0)
    assert (made.whole.tolist(), made.absent.tolist(), made.present.tolist()) == ([0.1], [0.3], [])
    nothing = Landmarks(("a",), np.full((1, 3), np.nan))
    empty = crop_trials(lambda x: found, Image(np.zeros((1, 10, 10, 10)), CUBE), nothing, np.random.default_rng(0))
    assert (empty.crops, empty.failed) == (0, 0)
    image, truth = scene(13, 3, 10)
    flat = Image(np.full_like(image.array, np.nan), image.grid)  # refused by the check of images
    assert crop_trials(lambda x: truth, flat, truth, np.random.default_rng(0)).failed == 1


def test_trials_know_what_was_cut_away() -> None:
    image, truth = scene(3, 2, 20)

    def sees(part: Image) -> Landmarks:
        return replace(truth, score=np.where(part.grid.contains(truth.points), 0.9, 0.2))

    made = case_trials(sees, "case", image, truth, sees(image), 0)
    assert made.crops == 1 and made.failed == 0
    assert set(made.present) == {0.9} == set(made.whole) and len(made.whole) == 20
    assert len(made.absent) >= 3 and made.absent.max() <= 0.2
    assert len(made.absent) + len(made.present) <= 20
    told = replace(truth, status=(ABSENT, *[DEFINED] * 19))
    whole = case_trials(None, "case", image, told, sees(image), 0)
    assert whole.absent.tolist() == [0.9] and len(whole.whole) == 19 and whole.crops == 0

    def refuses(part: Image) -> Landmarks:
        raise InputError("too small")

    assert crop_trials(refuses, image, truth, np.random.default_rng(0)).failed == 1
