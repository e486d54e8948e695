"""The alignment finds known poses from afar and is rebuilt from plain JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import phantom
from anatomark.core.alignment import Alignment
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, procrustes, rotation_angle, rotation_from_vector
from anatomark.errors import InputError
from anatomark.model.align.aligner import AlignConfig, Aligner, AlignFacts
from anatomark.model.align.mutual_information import MEMORY, generators, improve, rotation_cover

SMALL: dict[str, Any] = {"step_deg": 25, "starts": 4, "finalists": 2}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def aligner(ndim: int, cases: list[tuple[Image, Landmarks]] | None = None, **settings: Any) -> Aligner:
    config = AlignConfig(**{**SMALL, **settings})
    cases = cases or [phantom.phantom(seed, ndim) for seed in range(4)]
    return Aligner(config, Aligner.prepare(config, phantom.study(cases)))


def through_json(facts: AlignFacts) -> AlignFacts:
    return AlignFacts(**json.loads(json.dumps(facts.model_dump(mode="json"), allow_nan=False)))


def turned(image: Image, marks: Landmarks, degrees: float, scale: float = 1.0) -> tuple[Image, Landmarks]:
    """The same voxels and landmarks under a similarity, written into the header."""
    d = image.ndim
    turn = rotation_from_vector(np.radians([degrees] if d == 2 else np.array([0.48, -0.6, 0.64]) * degrees))
    motion = Pose(turn, np.array([9.0, -14, 20])[:d], scale)
    grid = Grid.from_axes(image.grid.shape, scale * turn @ image.grid.axes, motion.apply(image.grid.origin))
    return Image(image.array, grid), marks.with_points(motion.apply(marks.points))


def misfit(found: Alignment, mean: Array, marks: Landmarks) -> tuple[float, float, float]:
    """Degrees, mm at the landmarks' centre and ratio of sizes between an alignment and what the landmarks say."""
    d = marks.ndim
    true = procrustes(mean, marks.points)
    u, s, vt = np.linalg.svd(found.affine[:d, :d])
    shift = float(np.linalg.norm(found.affine[:d, d] - true.translation))
    return rotation_angle((u @ vt).T @ true.rotation), shift, float(s.prod() ** (1 / d) / true.scale)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (55, 1.12), (70, 0.9)])
def test_finds_a_known_similarity(ndim: int, degrees: float, scale: float) -> None:
    own = aligner(ndim)
    image, marks = turned(*phantom.phantom(11, ndim), degrees, scale)
    turn, shift, size = misfit(own.align(image), own.mean_shape, marks)
    assert turn < 5
    assert shift < 2
    assert abs(np.log(size)) < 0.06


@pytest.mark.parametrize("ndim", [2, 3])
def test_any_pose(ndim: int) -> None:
    own = aligner(ndim, rotations_deg=180)
    image, marks = turned(*phantom.phantom(12, ndim), 165)
    turn, shift, _ = misfit(own.align(image), own.mean_shape, marks)
    assert turn < 5
    assert shift < 2


def test_wide_poses_in_training_mean_any_pose() -> None:
    cases = [turned(*phantom.phantom(seed, 3), 80 * seed) for seed in range(3)]
    facts = Aligner.prepare(AlignConfig(), phantom.study(cases))
    assert facts.rotations_deg == 180
    upright = Aligner.prepare(AlignConfig(), phantom.study([phantom.phantom(0, 3)]))
    assert upright.rotations_deg == 75


def test_many_cases_that_lie_alike_narrow_the_search() -> None:
    cases = [turned(*phantom.phantom(seed, 3), seed % 3) for seed in range(10)]
    facts = Aligner.prepare(AlignConfig(), phantom.study(cases))
    assert facts.rotations_deg == 30
    assert Aligner.prepare(AlignConfig(), phantom.study(cases[:9])).rotations_deg == 75
    own = Aligner(AlignConfig(), facts)
    assert own.starts == 8 and own.finalists == 2
    image, marks = turned(*phantom.phantom(20, 3), 28)
    turn, shift, _ = misfit(own.align(image), own.mean_shape, marks)
    assert turn < 5 and shift < 2


def test_one_case_finds_itself_exactly() -> None:
    case = phantom.phantom(3, 3)
    own = aligner(3, [case])
    image, marks = turned(*case, 40)
    turn, shift, size = misfit(own.align(image), own.mean_shape, marks)
    assert turn < 1
    assert shift < 0.3
    assert abs(np.log(size)) < 0.01


def test_kinds_change_what_they_may() -> None:
    image, _ = turned(*phantom.phantom(5, 3), 20, 1.1)
    rigid, similar, affine = (
        aligner(3, kind=kind).align(image).affine[:3, :3] for kind in ("rigid", "similarity", "affine")
    )
    np.testing.assert_allclose(rigid @ rigid.T, np.eye(3), atol=1e-6)
    size = np.cbrt(np.linalg.det(similar))
    np.testing.assert_allclose(similar @ similar.T, size**2 * np.eye(3), atol=1e-6)
    assert size > 1.03
    assert np.ptp(np.linalg.svd(affine)[1]) > 1e-4


def test_facts_are_json_and_rebuild_the_same() -> None:
    config = AlignConfig(**SMALL)
    facts = Aligner.prepare(config, phantom.study([phantom.phantom(s, 3) for s in range(3)]))
    own, again = Aligner(config, facts), Aligner(config, through_json(facts))
    image, _ = turned(*phantom.phantom(9, 3), 30)
    first = own.align(image)
    np.testing.assert_array_equal(first.affine, again.align(image).affine)
    np.testing.assert_array_equal(first.affine, own.align(image).affine)
    with torch.inference_mode():
        np.testing.assert_array_equal(first.affine, own.align(image).affine)


def test_missing_landmarks_do_not_hinder() -> None:
    cases = [phantom.phantom(seed, 3) for seed in range(4)]
    cases[1] = (cases[1][0], phantom.without(cases[1][1], "a"))
    cases[2] = (cases[2][0], phantom.without(cases[2][1], "a", "b", "c", "d"))  # one point fixes no pose
    own = aligner(3, cases)
    image, marks = turned(*phantom.phantom(11, 3), 50)
    turn, shift, _ = misfit(own.align(image), own.mean_shape, marks)
    assert turn < 5
    assert shift < 2


@pytest.mark.parametrize("ndim", [2, 3])
def test_too_few_landmarks_take_the_first_image_as_it_lies(ndim: int) -> None:
    cases = [phantom.phantom(seed, ndim) for seed in range(3)]
    cases = [(image, phantom.without(marks, "b", "c", "d", "e")) for image, marks in cases]
    config = AlignConfig(**SMALL)
    own = Aligner(config, through_json(Aligner.prepare(config, phantom.study(cases))))
    np.testing.assert_allclose(own.mean_shape[0], 0, atol=1e-9)
    assert np.isnan(own.mean_shape[1:]).all()
    found = own.align(turned(*cases[0], 40)[0])
    true = turned(*cases[0], 40)[1]
    np.testing.assert_allclose(found.to_template(true).points[0], 0, atol=1)
    turn = rotation_from_vector(np.radians([40.0] if ndim == 2 else np.array([0.48, -0.6, 0.64]) * 40))
    linear = found.affine[:ndim, :ndim]
    assert rotation_angle(turn.T @ linear / np.abs(np.linalg.det(linear)) ** (1 / ndim)) < 4


def test_a_cropped_image_is_found_too() -> None:
    own = aligner(3)
    image, marks = turned(*phantom.phantom(11, 3), 35)
    kept = image.array[:, 4:, :-5, 3:]
    cut = Image(kept, Grid.from_axes(kept.shape[1:], image.grid.axes, image.grid.to_world([4, 0, 3])))
    turn, shift, _ = misfit(own.align(cut), own.mean_shape, marks)
    assert turn < 6
    assert shift < 3


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_an_empty_image_stays_upright(ndim: int, value: float) -> None:
    image, _ = phantom.phantom(1, ndim)
    found = aligner(ndim).align(replace(image, array=np.full_like(image.array, value)))
    np.testing.assert_array_equal(found.affine[:ndim, :ndim], np.eye(ndim))
    assert np.isfinite(found.affine).all()
    assert found.measure == 1


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="a 2D image cannot be aligned to a 3D template"):
        aligner(3).align(phantom.phantom(0, 2)[0])
    image, marks = phantom.phantom(0, 3)
    with pytest.raises(InputError, match="outside their images"):
        aligner(3, [(image, marks.with_points(marks.points + 900))])


@pytest.mark.parametrize(("ndim", "most"), [(2, 75), (2, 180), (3, 60), (3, 180)])
def test_rotations_cover_their_range(ndim: int, most: float) -> None:
    cover = rotation_cover(ndim, most, 18)
    np.testing.assert_array_equal(cover[0], np.eye(ndim))
    np.testing.assert_allclose(cover @ cover.transpose(0, 2, 1), np.broadcast_to(np.eye(ndim), cover.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(cover), 1)
    rng = np.random.default_rng(0)
    for _ in range(200):
        axis = rng.normal(size=1 if ndim == 2 else 3)
        goal = rotation_from_vector(axis / np.linalg.norm(axis) * np.radians(rng.uniform(0, most)))
        cosine = (np.trace(cover.transpose(0, 2, 1) @ goal, axis1=1, axis2=2).max() - (ndim - 2)) / 2
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))) < 1.7 * 18


def test_generators_span_what_their_kind_says() -> None:
    for ndim, sizes in ((2, (1, 2, 4)), (3, (3, 4, 9))):
        for kind, size in zip(("rigid", "similarity", "affine"), sizes, strict=True):
            basis = generators(ndim, kind).flatten(1).numpy()
            assert len(basis) == size == np.linalg.matrix_rank(basis)


def test_the_ascent_is_that_of_adam() -> None:
    centre = torch.tensor([[1.0, -2], [0.5, 3]], dtype=torch.float64)

    class Hill:
        """Highest where the shifts are ``centre``."""

        def measure(self, affines: torch.Tensor) -> torch.Tensor:
            self.seen = affines.detach()
            return -(affines[:, :, 2] - centre).square().sum(1) - affines[:, :, :2].square().sum((1, 2))

    hill, rounds, step = Hill(), 7, 0.1
    start = torch.eye(2, 3, dtype=torch.float64).repeat(2, 1, 1)
    improve(hill, start, "rigid", 2.0, step, rounds)  # type: ignore[arg-type]
    theta = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=step, betas=MEMORY)
    for i in range(rounds):
        adam.param_groups[0]["lr"] = step * 0.1 ** (i / (rounds - 1))
        (theta.grad,) = torch.autograd.grad((2 * theta[:, 1:] - centre).square().sum(), theta)
        adam.step()
    assert torch.allclose(hill.seen[:, :, 2], 2 * theta[:, 1:].detach(), rtol=1e-12, atol=0)
