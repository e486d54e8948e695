"""What is measured of a case: each measure against its definition, and the reference that leaves a case out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import (
    PCAShape,
    Pose,
    mean_rotation,
    mean_shape,
    procrustes,
    random_rotation,
    rotation_from_vector,
)
from anatomark.model.confidence.likeness import pictures, roughness
from anatomark.model.confidence.reference import Measured, Reference

NAMES = tuple("abcdefghijkl")
ANGLES = np.arange(12) * np.pi / 6
RING = np.stack([40 * np.cos(ANGLES), 25 * np.sin(ANGLES)], 1) + np.array([[1, 0], [-1, 0]] * 6)  # centred
RADIUS = np.linalg.norm(RING, axis=1).max()
GRID = Grid.centred((101, 101), np.eye(2)[:, ::-1] * 2.0, np.zeros(2))
IMAGE = Image(np.random.default_rng(0).normal(size=(1, 101, 101)).astype(np.float32), GRID)


def rigid(noise: float = 1.0, **more: object) -> Reference:
    """Of one shape, the ring, that does not vary."""
    still = PCAShape(RING.ravel(), np.zeros((24, 0)), np.zeros(0))
    return replace(Reference(NAMES, RING, np.eye(2), 1.0, still, np.full(12, noise)), **more)


def measured(reference: Reference, points: np.ndarray, **more: object) -> Measured:
    found = reference.measure(IMAGE, Landmarks(NAMES, points, **more))  # type: ignore[arg-type]
    assert found is not None
    return found


# ---------------------------------------------------------------------- the measures


@settings(max_examples=15, deadline=None)
@given(st.floats(0.6, 1.3), st.floats(-179, 179), st.floats(-20, 20))
def test_size_and_turn_are_those_of_the_pose(scale: float, degrees: float, shift: float) -> None:
    turn = rotation_from_vector([np.radians(degrees)])
    values = measured(rigid(), scale * RING @ turn.T + shift).values
    assert values["size"] == pytest.approx(abs(np.log(scale)), abs=1e-9)
    assert values["turn"] == pytest.approx(abs(degrees), abs=1e-5)
    assert values["shape"] == pytest.approx(np.log(1e-6), abs=1e-3)  # nothing is left
    assert values["cut off"] == 0
    usual = rigid(size=1.3, rotation=rotation_from_vector([0.5]), turns_deg=20.0)
    values = measured(usual, scale * RING @ turn.T + shift).values
    assert values["size"] == pytest.approx(abs(np.log(scale / 1.3)), abs=1e-9)
    away = abs((degrees - np.degrees(0.5) + 180) % 360 - 180)
    assert values["turn"] == pytest.approx(max(0.0, away - 20), abs=1e-5)


def test_a_collapsed_shape_is_small_and_no_error() -> None:
    values = measured(rigid(), RING * 1e-5).values
    assert values["size"] == pytest.approx(np.log(1000), abs=1e-6)


def test_few_points_that_are_far_off_do_not_move_the_pose() -> None:
    points = 1.1 * RING @ rotation_from_vector([0.3]).T + [5, -3]
    points[3] += [40, 10]
    points[7] -= [0, 50]
    case = measured(rigid(), points)
    assert case.values["size"] == pytest.approx(np.log(1.1), abs=0.004)
    assert case.values["turn"] == pytest.approx(np.degrees(0.3), abs=0.25)
    assert np.median(case.residual) < 0.2
    np.testing.assert_allclose(case.residual[[3, 7]], [np.hypot(40, 10), 50], atol=0.4)


def test_the_pose_is_a_fit_with_cauchy_weights() -> None:
    rng = np.random.default_rng(12)
    for spread, least in ((4.0, 0.0), (0.05, 0.01 * RADIUS)):
        points = RING + rng.normal(0, spread, RING.shape) * rng.choice([1, 4], (12, 1))
        pose = procrustes(RING, points)
        for _ in range(10):
            away = np.linalg.norm(pose.apply(RING) - points, axis=1)
            width = 2 * max(np.median(away), least)
            pose = procrustes(RING, points, 1 / (1 + (away / width) ** 2))
        case = measured(rigid(), points)
        np.testing.assert_allclose(case.residual, np.linalg.norm(pose.apply(RING) - points, axis=1), rtol=1e-6)


def test_one_point_of_many_far_off_leaves_no_trace() -> None:
    """The weights fall with the square of the distance over twice the usual one, of which a hundredth of the radius
    is the least."""
    points = RING + np.random.default_rng(2).normal(0, 0.3, RING.shape)
    without = measured(rigid(), np.where(np.arange(12)[:, None] == 4, np.nan, points))
    points[4] += 60
    case = measured(rigid(), points)
    others = np.arange(12) != 4
    np.testing.assert_allclose(case.residual[others], without.residual[others], atol=0.05)


def test_the_residual_is_what_the_modes_cannot_explain_in_mm_of_the_world() -> None:
    mode = np.stack([np.zeros(12), (-1.0) ** np.arange(12)], 1) / np.sqrt(12)  # that no pose can imitate
    varying = rigid(shapes=PCAShape(RING.ravel(), mode.reshape(-1, 1), np.array([4.0])))
    for b, left in ((6.0, 0.0), (30.0, 18.0), (-30.0, 18.0)):  # at most three standard deviations are explained
        residual = measured(varying, RING + b * mode).residual
        np.testing.assert_allclose(residual, left / np.sqrt(12), atol=0.6 if left else 0.25)
    one = RING.copy()
    one[2] += [0, 3.0]
    np.testing.assert_allclose(measured(rigid(), one).residual[2], 3, atol=0.05)
    np.testing.assert_allclose(measured(rigid(), 1.5 * one).residual[2], 4.5, atol=0.08)
    stiff = replace(varying, shapes=PCAShape(RING.ravel(), mode.reshape(-1, 1), np.array([0.02 * RADIUS])))
    # the prior's weight: noise of 2 % of the radius against modes of that size explains one half
    half = measured(stiff, RING + 0.02 * RADIUS * mode).residual
    np.testing.assert_allclose(half, np.linalg.norm(0.01 * RADIUS * mode, axis=1), atol=0.012)


def test_the_shapes_oddness_is_a_root_mean_square_in_units_of_the_usual() -> None:
    noise = np.linspace(0.5, 2, 12)
    points = RING.copy()
    points[5] += [0.0, 4.0]
    case = measured(rigid(noise=noise), points)
    expected = np.log(np.sqrt(np.mean((case.residual / noise) ** 2)))
    assert case.values["shape"] == pytest.approx(expected, abs=1e-3)
    points[5] += [0.0, 1e4 - 4]  # outside the image, unknown
    unknown = measured(rigid(noise=noise), points)
    assert np.isnan(unknown.residual[5]) and unknown.values["shape"] < -5
    far = RING.copy()
    far[5] += 60
    case = measured(rigid(noise=np.full(12, 0.01)), far)
    rest = np.delete(case.residual, 5) / 0.01
    expected = np.log(np.sqrt((np.sum(np.minimum(rest, 50) ** 2) + 50**2) / 12))
    assert case.values["shape"] == pytest.approx(expected, abs=1e-6)  # no point decides alone


def test_what_is_cut_off_and_what_is_absent() -> None:
    points = 1.2 * RING + [20.0, 5]
    cut = Image(IMAGE.array[..., :71], Grid.from_axes((101, 71), GRID.axes, GRID.origin))  # 41 mm to the right
    outside = ~cut.grid.contains(points)
    part = rigid().measure(cut, Landmarks(NAMES, np.where(outside[:, None], np.nan, points)))
    assert part is not None and 2 < outside.sum() < 8
    assert part.values["cut off"] == pytest.approx(outside.mean())
    status = ["absent" if k in (1, 8) else "unannotated" if k == 3 else "defined" for k in range(12)]
    points = np.where((np.array(status) == "defined")[:, None], RING, np.nan)
    case = measured(rigid(), points, status=tuple(status))
    assert case.values["absent"] == pytest.approx(2 / 12) and case.absent == ("b", "i")
    assert case.values["cut off"] == 0


def test_spread_and_score_are_means_over_what_is_given() -> None:
    sigma = np.array([0.5, 9.0, 0, np.nan, *[1.0] * 8])
    covariance = np.eye(2) * sigma[:, None, None] ** 2
    score = np.array([0.2, np.nan, *[0.9] * 10])
    values = measured(rigid(), RING, covariance=covariance, score=score).values
    expected = np.mean(np.log(np.array([0.5, 9.0, *[1.0] * 8]) / RADIUS))
    assert values["spread"] == pytest.approx(expected)
    assert values["score"] == pytest.approx(1 - (0.2 + 9.0) / 11)
    low = measured(rigid(), RING, covariance=np.stack([np.eye(2) * 0.4**2] * 12), score=np.zeros(12)).values
    assert low["spread"] == pytest.approx(np.log(0.4 / RADIUS)) and low["score"] == 1
    for nothing in ({}, {"covariance": np.zeros((12, 2, 2)), "score": np.full(12, np.nan)}):
        assert not {"spread", "score"} & set(measured(rigid(), RING, **nothing).values)


def test_pictures_and_noise_are_taken_in_the_pose_at_the_landmarks() -> None:
    pose = Pose(rotation_from_vector([0.4]), np.array([3.0, -2]), 1.2)
    points = pose.apply(RING)
    points[2] = np.nan
    case = measured(rigid(), points)
    whole, patches = pictures(IMAGE, points, pose, RING)
    np.testing.assert_allclose(case.whole, whole, atol=1e-6)
    np.testing.assert_allclose(case.patches, patches, atol=1e-6)
    assert case.values["noise"] == roughness(IMAGE, points)
    # any order of the landmarks
    order = np.random.default_rng(1).permutation(12)
    again = rigid().measure(IMAGE, Landmarks([NAMES[k] for k in order], points[order]))  # type: ignore[arg-type]
    assert again is not None and again.values == pytest.approx(case.values)


def test_points_beyond_the_images_diagonal_and_too_few_points() -> None:
    away = Image(IMAGE.array, Grid.centred((101, 101), GRID.axes, np.array([30.0, -10])))
    for over, unknown in ((-1.0, False), (1.0, True)):
        points = RING.copy()
        points[0] = [30 + 202 * np.sqrt(2) + over, -10]
        case = rigid().measure(away, Landmarks(NAMES, points))
        assert case is not None and np.isnan(case.residual[0]) == unknown
    for count, fits in ((3, True), (2, False)):
        few = np.where(np.arange(12)[:, None] < count, RING, np.nan)
        assert (rigid().measure(IMAGE, Landmarks(NAMES, few)) is not None) == fits
    two = PCAShape(RING[:2].ravel(), np.zeros((4, 0)), np.zeros(0))
    pair = Reference(NAMES[:2], RING[:2], np.eye(2), 1.0, two, np.ones(2))
    assert pair.measure(IMAGE, Landmarks(NAMES, RING)) is not None
    assert pair.measure(IMAGE, Landmarks(NAMES[:1], RING[:1])) is None


def test_patches_are_taken_of_at_most_96_landmarks() -> None:
    names = [str(k) for k in range(200)]
    shape = np.random.default_rng(0).normal(size=(200, 2))
    many = Reference(tuple(names), shape, np.eye(2), 1.0, PCAShape(shape.ravel(), np.zeros((400, 0)), np.zeros(0)),
                     np.ones(200))  # fmt: skip
    assert len(many.pictured) == 96 and (many.pictured[0], many.pictured[-1]) == (0, 199)
    assert set(np.diff(many.pictured)) == {2, 3}
    assert rigid().pictured == list(range(12))


# ---------------------------------------------------------------------- against the reference's pictures


def test_a_case_is_compared_without_what_it_gave_itself() -> None:
    rng = np.random.default_rng(3)

    def random_case() -> Measured:
        patches = rng.normal(size=(12, 9))
        patches[rng.random(12) < 0.3] = np.nan
        patches[0] = np.nan
        return Measured({"x": 1.0}, rng.normal(size=16), patches, np.zeros(12))

    cases = [random_case() for _ in range(5)]
    cases[2].patches[1:] = rng.normal(size=(11, 9))
    for c in cases:
        c.patches[3] = np.nan
    cases[2].patches[3] = rng.normal(size=9)  # nobody else has this one
    full = rigid().with_pictures(cases)
    assert full.count == 5
    np.testing.assert_array_equal(full.counts, np.sum([np.isfinite(c.patches).all(1) for c in cases], 0))
    for k, case in enumerate(cases):
        others = [c for j, c in enumerate(cases) if j != k]
        values = full.compare(case, own=case)
        assert values == pytest.approx(rigid().with_pictures(others).compare(case))
        total = np.sum([c.whole for c in others], 0)
        alike = case.whole @ total / np.linalg.norm(case.whole) / np.linalg.norm(total)
        assert values["whole"] == pytest.approx(1 - alike)
        near = []
        for n in range(12):
            theirs = [c.patches[n] for c in others if np.isfinite(c.patches[n]).all()]
            if theirs and np.isfinite(case.patches[n]).all():
                t = np.sum(theirs, 0)
                near.append(case.patches[n] @ t / np.linalg.norm(case.patches[n]) / np.linalg.norm(t))
        assert values["detail"] == pytest.approx(1 - np.mean(near))
        assert values["x"] == 1.0 and "whole" not in case.values
    assert full.compare(cases[0])["whole"] < full.compare(cases[0], own=cases[0])["whole"]


def test_without_any_other_picture_there_is_nothing_to_compare() -> None:
    case = Measured({"x": 1.0}, np.ones(4), np.full((12, 9), np.nan), np.zeros(12))
    assert rigid().compare(case) == {"x": 1.0}
    alone = rigid().with_pictures([case])
    assert alone.compare(case, own=case) == {"x": 1.0}
    assert set(alone.compare(case)) == {"x", "whole"}  # no patch of its own


# ---------------------------------------------------------------------- of shapes


def test_the_mean_the_usual_pose_and_its_size() -> None:
    rng = np.random.default_rng(4)
    turns = [rotation_from_vector([x]) for x in (0.5, 0.6, 0.9, 0.55, 0.7)]
    shapes = np.stack([s * (RING + rng.normal(0, 0.5, RING.shape)) @ t.T + rng.normal(0, 9, 2)
                       for s, t in zip((0.8, 1, 1.1, 1.3, 2), turns, strict=True)])  # fmt: skip
    reference, others = Reference.of_shapes(NAMES, shapes, 12.0)
    mean, poses = mean_shape(shapes)
    np.testing.assert_array_equal(reference.mean, mean)
    np.testing.assert_array_equal(reference.rotation, mean_rotation([p.rotation for p in poses]))
    assert reference.size == np.median([p.scale for p in poses]) and reference.turns_deg == 12.0
    assert reference.radius == pytest.approx(np.linalg.norm(mean - mean.mean(0), axis=1).max())
    assert Reference.of_shapes(NAMES, shapes)[0].turns_deg == 0
    assert reference.names == NAMES and len(others) == 5 and reference.shapes.size == 1
    aligned = np.stack([p.invert(s) for p, s in zip(poses, shapes, strict=True)])
    np.testing.assert_allclose(reference.shapes.mean, aligned.mean(0).ravel())
    for k, other in enumerate(others):
        np.testing.assert_allclose(other.shapes.mean, np.delete(aligned, k, 0).mean(0).ravel())
        assert other.shapes.size == 1 and other.mean is reference.mean


def test_modes_are_few_and_explain_most() -> None:
    rng = np.random.default_rng(6)
    modes = np.linalg.qr(rng.normal(size=(24, 5)))[0].T.reshape(5, 12, 2)
    strengths = rng.normal(size=(40, 5)) * [6, 5, 4, 3, 0.5]
    shapes = RING + np.einsum("mk,knd->mnd", strengths, modes) + rng.normal(0, 0.01, (40, 12, 2))
    reference, _ = Reference.of_shapes(NAMES, shapes)
    aligned = np.stack([p.invert(x) for p, x in zip(mean_shape(shapes)[1], shapes, strict=True)])
    total = ((aligned - aligned.mean(0)) ** 2).sum() / 39
    share = np.cumsum(reference.shapes.sd**2) / total
    assert 2 <= len(share) < 10 and share[-1] >= 0.95 > share[-2]  # of the ten that a quarter of 40 shapes allows
    few, _ = Reference.of_shapes(NAMES, RING + rng.normal(0, 2, (8, 12, 2)))
    assert few.shapes.size == 2  # a quarter of the cases
    none, _ = Reference.of_shapes(NAMES, RING + rng.normal(0, 2, (3, 12, 2)))
    assert none.shapes.size == 0


def test_noise_is_what_the_others_modes_usually_leave() -> None:
    rng = np.random.default_rng(7)
    shapes = RING + rng.normal(size=(13, 12, 2)) * np.linspace(0.3, 2, 12)[:, None]
    shapes[3, 2] = np.nan
    reference, others = Reference.of_shapes(NAMES, shapes)
    poses = mean_shape(shapes)[1]
    aligned = np.stack([p.invert(x).ravel() for p, x in zip(poses, shapes, strict=True)])
    left = []
    for k, (x, other) in enumerate(zip(aligned, others, strict=True)):
        pca = PCAShape.fit(np.delete(aligned, k, 0), variance=0.95, most=3)
        np.testing.assert_array_equal(other.shapes.modes, pca.modes)
        b = np.clip(pca.encode_partial(x, 0.02 * reference.radius), -3 * pca.sd, 3 * pca.sd)
        left.append(np.linalg.norm((x - pca.decode(b)).reshape(12, 2), axis=1))
    # the median of a squared distance is about 0.6 of its mean
    np.testing.assert_allclose(reference.noise, np.sqrt(np.nanmedian(np.square(left), 0) / 0.6))
    still, _ = Reference.of_shapes(NAMES, RING + rng.normal(0, 1e-6, (6, 12, 2)))
    np.testing.assert_allclose(still.noise, 0.004 * still.radius)


def test_a_landmark_of_a_single_case_has_the_mean_place_where_that_case_is_left_out() -> None:
    rng = np.random.default_rng(8)
    shapes = RING + rng.normal(0, 0.5, (6, 12, 2))
    shapes[1:, 5] = np.nan
    reference, others = Reference.of_shapes(NAMES, shapes)
    assert all(np.isfinite(r.shapes.mean).all() for r in (reference, *others))
    np.testing.assert_allclose(others[0].shapes.mean.reshape(12, 2)[5], reference.mean[5])
    assert reference.noise[5] >= 0.004 * reference.radius


# ---------------------------------------------------------------------- in a file


def test_tensors_hold_the_whole_reference() -> None:
    rng = np.random.default_rng(9)
    shapes = np.stack([s * (RING + rng.normal(0, 0.8, RING.shape)) @ random_rotation(rng, 2, 9).T
                       for s in rng.uniform(0.9, 1.1, 9)])  # fmt: skip
    reference, _ = Reference.of_shapes(NAMES, shapes, 7.0)
    reference = reference.with_pictures([measured(reference, s) for s in shapes])
    tensors = reference.to_tensors()
    assert {k for k, t in tensors.items() if t.dtype == torch.float16} == {"whole", "patches", "shapes.modes"}
    again = Reference.from_tensors(NAMES, tensors, RING.shape[1])
    assert (again.names, again.count, again.turns_deg) == (NAMES, 9, 7.0)
    assert again.size == pytest.approx(reference.size, rel=1e-6)
    for key in ("mean", "rotation", "noise", "counts"):
        np.testing.assert_allclose(getattr(again, key), getattr(reference, key), rtol=1e-6, atol=1e-6)
    for key in ("whole", "patches"):
        np.testing.assert_allclose(getattr(again, key), getattr(reference, key), atol=2e-3)
    assert again.shapes.modes.shape == (24, 2)
    np.testing.assert_allclose(again.shapes.modes, reference.shapes.modes, atol=1e-3)
    np.testing.assert_allclose(again.shapes.sd, reference.shapes.sd, rtol=1e-6)
    np.testing.assert_allclose(again.shapes.mean, reference.shapes.mean, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="of 11 landmarks in 2D"):
        Reference.from_tensors(NAMES[:11], tensors, RING.shape[1])
