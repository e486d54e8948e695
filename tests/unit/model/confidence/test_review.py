"""The review flag: silent on what is usual, loud on what is not, and it says why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import random_rotation
from anatomark.model.confidence.reference import Reference
from anatomark.model.confidence.review import Review, Usual

SHAPE = {
    2: np.array([[-30, -20], [25, -25], [0, 5], [-20, 30], [28, 22.0], [5, -35], [-36, 4]]),
    3: np.array([[-30, -20, 5], [25, -25, -20], [0, 5, 30], [-20, 30, -8], [28, 22, 12], [4, -30, 16.0]]),
}


def case(rng: np.random.Generator, d: int, *, noise: float = 0.01, turn: float = 3.0) -> tuple[Image, Landmarks]:
    """Blobs of different width and sign about the landmarks of a slightly varied shape."""
    size = float(np.exp(rng.normal(0, 0.03)))
    shape = SHAPE[d] * [1 + rng.normal(0, 0.03)] + rng.normal(0, 0.8, SHAPE[d].shape)
    points = size * shape @ random_rotation(rng, d, turn).T + rng.normal(0, 3, d)
    n = 48
    grid = Grid.centred((n,) * d, np.eye(d)[:, ::-1] * 2.4, np.zeros(d))
    where = grid.points()
    value = np.full(where.shape[:-1], 0.2)
    for k, p in enumerate(points):
        value = value + (-1) ** k * np.exp(-((where - p) ** 2).sum(-1) / (2 * (6.0 + 2 * k) ** 2))
    array = (value + rng.normal(0, noise, value.shape))[None].astype(np.float32)
    marks = Landmarks(
        tuple("abcdefgh"[: len(points)]), points, score=np.full(len(points), 0.9),
        covariance=np.stack([np.eye(d) * rng.uniform(0.8, 1.2) for _ in points]),
    )  # fmt: skip
    return Image(array, grid), marks


@pytest.fixture(scope="module", params=[2, 3])
def learned(request: pytest.FixtureRequest) -> tuple[int, Reference, Usual]:
    d = request.param
    rng = np.random.default_rng(d)
    cases = [case(rng, d) for _ in range(16)]
    reference, others = Reference.of_shapes(cases[0][1].names, np.stack([m.points for _, m in cases]))
    looks = [o.measure(*one) for o, one in zip(others, cases, strict=True)]
    reference = reference.with_pictures(looks)
    known = [reference.compare(s, own=s) for s in looks]
    unseen = [reference.compare(reference.measure(*case(rng, d))) for _ in range(8)]
    return d, reference, Usual.learned(known, unseen)


def judged(learned: tuple[int, Reference, Usual], image: Image, found: Landmarks) -> tuple[float, list[str]]:
    judgement = Review(*learned[1:]).judge(image, found)
    assert judgement.limit == learned[2].limit
    return judgement.suspicion, list(judgement.reasons)


def test_usual_cases_are_left_alone(learned: tuple[int, Reference, Usual]) -> None:
    rng = np.random.default_rng(50)
    flagged = [bool(judged(learned, *case(rng, learned[0]))[1]) for _ in range(20)]
    assert sum(flagged) <= 2


@pytest.mark.parametrize(
    "what, word",
    [("shape", "implausible shape"), ("size", "unusual size"), ("turn", "turned"), ("noise", "noisier"),
     ("contrast", "unlike"), ("absent", "absent"), ("spread", "spread"), ("score", "low scores"),
     ("cut", "outside the image"), ("elsewhere", "unlike")],
)  # fmt: skip
def test_each_kind_of_failure_is_named(learned: tuple[int, Reference, Usual], what: str, word: str) -> None:
    d = learned[0]
    rng = np.random.default_rng(7)
    image, found = case(rng, d)
    middle = found.points.mean(0)
    if what == "shape":
        moved = found.points.copy()
        moved[2] += 25
        found = found.with_points(moved)
    elif what == "size":
        found = found.with_points(middle + 1.8 * (found.points - middle))
    elif what == "turn":
        image, found = case(rng, d, turn=0.0)
        quarter = np.eye(d)
        quarter[:2, :2] = [[0, -1], [1, 0]]
        found = found.with_points(middle + (found.points - middle) @ quarter.T)
    elif what == "noise":
        image = Image((image.array + rng.normal(0, 0.5, image.array.shape)).astype(np.float32), image.grid)
    elif what == "contrast":
        image = Image(-image.array, image.grid)
    elif what == "absent":
        gone = tuple(Status.ABSENT if k < 2 else s for k, s in enumerate(found.status))
        found = replace(found, status=gone)
    elif what == "spread":
        found = replace(found, covariance=found.covariance * 40)
    elif what == "score":
        found = replace(found, score=found.score - 0.6)
    elif what == "cut":
        half = image.grid.shape[-1] // 2
        grid = Grid.from_axes((*image.grid.shape[:-1], half), image.grid.axes, image.grid.origin)
        image = Image(image.array[..., :half], grid)
    else:
        found = found.with_points(found.points + 30)
    suspicion, why = judged(learned, image, found)
    assert suspicion > learned[2].limit
    assert any(word in line for line in why), why


def test_an_implausible_point_is_named_first(learned: tuple[int, Reference, Usual]) -> None:
    image, found = case(np.random.default_rng(8), learned[0])
    moved = found.points.copy()
    moved[3] += 20
    why = judged(learned, image, found.with_points(moved))[1]
    assert any(line.startswith("implausible shape, most of all d") for line in why)


def test_too_few_landmarks_cannot_be_looked_at(learned: tuple[int, Reference, Usual]) -> None:
    image, found = case(np.random.default_rng(9), learned[0])
    few = found.points.copy()
    few[2:] = np.nan
    gone = Landmarks(found.names, few, tuple(Status.ABSENT if k > 1 else Status.DEFINED for k in range(len(few))))
    assert learned[1].measure(image, gone) is None


def test_it_survives_being_written(learned: tuple[int, Reference, Usual]) -> None:
    d, reference, usual = learned
    again = Reference.from_tensors(reference.names, reference.to_tensors())
    other = Usual.from_json(usual.to_json())
    image, found = case(np.random.default_rng(10), d)
    a = usual.suspicion(reference.compare(reference.measure(image, found)))
    b = other.suspicion(again.compare(again.measure(image, found)))
    assert a == pytest.approx(b, abs=0.05)


def test_pose_of_the_patient_does_not_matter_where_any_pose_is_usual() -> None:
    rng = np.random.default_rng(12)
    cases = [case(rng, 2, turn=180.0) for _ in range(12)]
    reference, others = Reference.of_shapes(cases[0][1].names, np.stack([m.points for _, m in cases]))
    looks = [o.measure(*one) for o, one in zip(others, cases, strict=True)]
    reference = reference.with_pictures(looks)
    known = [reference.compare(s, own=s) for s in looks]
    usual = Usual.learned(known, [])
    flagged = []
    for _ in range(10):
        seen = reference.measure(*case(rng, 2, turn=180.0))
        flagged.append(usual.suspicion(reference.compare(seen)) > usual.limit)
    assert sum(flagged) <= 1


def test_a_turn_that_the_model_knows_is_not_unusual(learned: tuple[int, Reference, Usual]) -> None:
    d, reference, usual = learned
    rng = np.random.default_rng(3)
    turned = [case(rng, d, turn=0.0) for _ in range(3)]
    knows = replace(reference, turns_deg=45.0)
    c, s = np.cos(np.radians(40)), np.sin(np.radians(40))
    turn = np.eye(d)
    turn[:2, :2] = [[c, -s], [s, c]]
    for image, found in turned:
        grid = Grid.from_axes(image.grid.shape, turn @ image.grid.axes, turn @ image.grid.origin)
        found = found.with_points(found.points @ turn.T)
        image = Image(image.array, grid)
        assert "turned" in " ".join(judged(learned, image, found)[1])
        assert "turned" not in " ".join(judged((d, knows, usual), image, found)[1])


def test_nothing_known_gives_no_usual() -> None:
    assert Usual.learned([], []) is None


def test_what_is_left_out_is_left_out() -> None:
    rng = np.random.default_rng(20)
    cases = [case(rng, 2) for _ in range(5)]
    reference, others = Reference.of_shapes(cases[0][1].names, np.stack([m.points for _, m in cases]))
    strange = cases[0][1].points + rng.normal(0, 4, cases[0][1].points.shape)
    again, without = Reference.of_shapes(cases[0][1].names, np.stack([strange, *(m.points for _, m in cases[1:])]))
    assert reference.shapes.size == again.shapes.size == 1
    # poses of all shapes hang together a little; the modes without the first case hardly move, those of others do
    assert abs(np.abs(others[0].shapes.modes[:, 0] @ without[0].shapes.modes[:, 0]) - 1) < 0.05
    assert np.abs(others[1].shapes.modes[:, 0] @ without[1].shapes.modes[:, 0]) < 0.95


def test_slices_that_are_thick_along_one_axis_are_not_noise() -> None:
    rng = np.random.default_rng(21)
    image, found = case(rng, 3)
    reference, _ = Reference.of_shapes(found.names, np.stack([case(rng, 3)[1].points for _ in range(6)]))
    thick = Image(image.array[..., ::2], Grid.from_axes((48, 48, 24), image.grid.axes * [1, 1, 2], image.grid.origin))
    values = [reference.measure(i, found).values["noise"] for i in (image, thick)]
    assert abs(values[1] - values[0]) < 0.15
