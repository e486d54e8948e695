"""The review flag: silent on what is usual, loud on what is not, and it says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import random_rotation
from anatomark.model.confidence import review as review_module
from anatomark.model.confidence.presence import with_absent
from anatomark.model.confidence.reference import Measured, Reference
from anatomark.model.confidence.review import Review, Usual, described_review, learn_review
from anatomark.model.residuals import Residuals
from anatomark.progress import Reporter

QUIET = Reporter(quiet=True)
SHAPE = {
    2: np.array([[-30, -20], [25, -25], [0, 5], [-20, 30], [28, 22.0], [5, -35], [-36, 4]]),
    3: np.array([[-30, -20, 5], [25, -25, -20], [0, 5, 30], [-20, 30, -8], [28, 22, 12], [4, -30, 16.0]]),
}


def case(rng: np.random.Generator, d: int, *, noise: float = 0.01, turn: float = 3.0) -> tuple[Image, Landmarks]:
    """Blobs of different width and sign about the landmarks of a slightly varied shape."""
    size = float(np.exp(rng.normal(0, 0.03)))
    shape = SHAPE[d] * [1 + rng.normal(0, 0.03)] + rng.normal(0, 0.8, SHAPE[d].shape)
    points = size * shape @ random_rotation(rng, d, turn).T + rng.normal(0, 3, d)
    grid = Grid.centred((48,) * 2 if d == 2 else (36,) * 3, np.eye(d)[:, ::-1] * (2.4 if d == 2 else 3.2), np.zeros(d))
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


def test_too_few_landmarks_are_a_reason_by_themselves(learned: tuple[int, Reference, Usual]) -> None:
    image, found = case(np.random.default_rng(9), learned[0])
    few = np.where(np.arange(len(found))[:, None] > 1, np.nan, found.points)
    absent = [Status.ABSENT if k > 1 else Status.DEFINED for k in range(len(few))]
    n, names = len(few), ", ".join(found.names[2:])
    assert judged(learned, image, Landmarks(found.names, few, tuple(absent))) == (
        np.inf, [f"only 2 of {n} landmarks are in the image; absent: {names}"]
    )  # fmt: skip
    assert judged(learned, image, Landmarks(found.names, few))[1] == [f"only 2 of {n} landmarks are in the image"]


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
    thick = Image(image.array[..., ::2], Grid.from_axes((36, 36, 18), image.grid.axes * [1, 1, 2], image.grid.origin))
    values = [reference.measure(i, found).values["noise"] for i in (image, thick)]
    assert abs(values[1] - values[0]) < 0.15


# ---------------------------------------------------------------------- what is usual


def one(value: float) -> dict[str, float]:
    return {"whole": value}


def test_usual_are_the_median_and_the_widest_of_three_scales() -> None:
    def of(values: list[float], name: str = "whole") -> tuple[float, float]:
        usual = Usual.learned([{name: v} for v in values], [])
        assert usual is not None and set(usual.middle) == set(usual.scale) == {name}
        return usual.middle[name], usual.scale[name]

    spread = [0, 1, 2, 10, 10.5, 11, 12.0]  # most lie below
    few = 2.447 / 1.96 * np.sqrt(1 + 1 / 7)  # Student's t of six degrees of freedom
    assert of(spread) == pytest.approx((10, few * 1.4826 * 2), rel=0.01)
    tail = [0, 0, 0, 0, 0, 0, 0, 0, 3, 9.0]
    few = 2.262 / 1.96 * np.sqrt(1 + 1 / 10)
    assert of(tail) == pytest.approx((0, few * np.quantile(tail, 0.9) / 1.28), rel=0.01)
    assert of(tail * 100) == pytest.approx((0, np.quantile(tail * 100, 0.9) / 1.28), rel=0.002)
    floors = {"shape": 0.10, "size": 0.04, "turn": 1.5, "cut off": 0.01, "absent": 0.02, "whole": 0.05,
              "detail": 0.04, "noise": 0.12}  # fmt: skip
    for name, floor in floors.items():
        assert of([2.0, 2.0, np.nan, 2.0], name) == (2.0, floor)
    alone = Usual.learned([], [{"spread": 1.0, "score": 0.1}])
    assert alone is not None and alone.scale == {"spread": 0.12, "score": 0.03}


def test_what_only_predictions_have_is_learned_of_predictions_alone() -> None:
    true = [{"spread": 9.0, "score": 9.0, "whole": 0.0}] * 3
    usual = Usual.learned(true, [{"spread": 1.0, "score": 0.1, "whole": 4.0}])
    assert usual is not None
    assert usual.middle == {"whole": 0.0, "spread": 1.0, "score": 0.1}
    assert (usual.cases, usual.independent) == (3, 1)
    assert Usual.learned([], []) is None
    assert Usual.learned([{"score": 1.0}, {"whole": np.nan}], []) is None


@pytest.mark.parametrize(
    ("true", "predicted", "counted", "rank"),
    [(10, 0, 10, None), (0, 19, 19, None), (9, 10, 19, None),  # few: a quarter above the worst
     (20, 0, 20, 20), (39, 0, 39, 38), (1, 19, 20, 20), (41, 19, 60, 58),  # all together while predictions are few
     (9, 20, 20, 20), (9, 39, 39, 38), (0, 79, 79, 76)],
)  # fmt: skip
def test_one_in_twenty_usual_cases_lies_above_the_limit(
    true: int, predicted: int, counted: int, rank: int | None
) -> None:
    def steep(n: int) -> list[dict[str, float]]:  # half of them 0, the others rise with the tenth power
        return [one(max(0.0, k - n // 2) ** 10) for k in np.random.default_rng(n).permutation(n)]

    cases = steep(true + predicted)
    if predicted >= 20:
        cases = [*[one(1e30)] * (true > 0), *steep(max(0, true - 1)), *steep(predicted)]  # a strange training case
    usual = Usual.learned(cases[:true], cases[true:])
    assert usual is not None and (usual.cases, usual.independent) == (true, predicted)
    heights = sorted(usual.suspicion(v) for v in (cases[true:] if predicted >= 20 else cases))
    assert len(heights) == counted
    assert usual.limit == pytest.approx(1.25 * heights[-1] if rank is None else heights[rank - 1])
    assert usual.limit > 4.0


def test_a_landmark_that_is_hardly_found_is_named_where_usual_scores_are_unknown(
    learned: tuple[int, Reference, Usual],
) -> None:
    d, reference, usual = learned
    image, marks = case(np.random.default_rng(40), d)
    low = replace(marks, score=np.where(np.arange(len(marks)) == 1, 0.1, 0.9))
    middle = {k: v for k, v in usual.middle.items() if k not in ("score", "weakest")}
    plain = replace(usual, middle=middle)
    assert judged((d, reference, plain), image, marks)[1] == []
    suspicion, reasons = judged((d, reference, plain), image, low)
    assert suspicion > plain.limit and reasons == ["hardly a trace of b (score below 0.2)"]
    assert not any("trace" in r for r in judged(learned, image, low)[1])  # there the usual scores decide


def test_the_limit_is_never_below_four() -> None:
    usual = Usual.learned([one(1.0)] * 30, [])
    assert usual is not None and usual.limit == 4.0
    assert usual.suspicion(one(-5.0)) == 0
    assert usual.suspicion({"whole": 2.0, "shape": 1e9}) == pytest.approx(20)  # shape was never seen
    assert usual.suspicion({"whole": np.nan}) == 0


def test_what_is_usual_is_rounded_in_its_file() -> None:
    usual = Usual({"turn": 1.123456, "whole": 2.0}, {"turn": 0.123456, "whole": 1.0}, 5.12345, 12, 3)
    said = usual.to_json()
    measures = {"turn": {"middle": 1.12346, "scale": 0.12346}, "whole": {"middle": 2.0, "scale": 1.0}}
    assert said == {"limit": 5.123, "cases": 12, "independent": 3, "usual": measures}
    assert Usual.from_json(said).to_json() == said


# ---------------------------------------------------------------------- the reasons


class Fixed:
    """A reference that measures what it is told."""

    names, turns_deg = ("a", "b", "c", "d"), 10.0

    def __init__(self, values: dict[str, float]):
        self.values = values

    def measure(self, image: Image, found: Landmarks) -> Measured:
        return Measured(self.values, np.zeros(0), np.zeros(0), np.array([1, np.nan, 3, 2.0]), tuple("abcdefghij"))

    def compare(self, seen: Measured) -> dict[str, float]:
        return seen.values


LINES = {
    "shape": "implausible shape, most of all c, d, a",
    "size": "of unusual size, 2.00 times larger or smaller than usual",
    "turn": "turned by 35 degrees, usual are 13",
    "cut off": "30% of the landmarks would lie outside the image",
    "absent": "40% of the landmarks are absent: a, b, c, d, e, f, g, h and 2 more",
    "whole": "unlike the training images (likeness 0.40, usual 0.90)",
    "detail": "surroundings of the landmarks unlike those in training (likeness 0.30, usual 0.80)",
    "noise": "noisier than the training images, 3.0 times",
    "spread": "votes or starts spread 4.0 times as wide as usual",
    "score": "low scores, 0.25 on average, usual 0.95",
}


def test_reasons_stand_with_the_worst_first() -> None:
    middle = {"shape": 0, "size": 0, "turn": 3, "cut off": 0, "absent": 0, "whole": 0.1, "detail": 0.2, "noise": 1,
              "spread": 1, "score": 0.05}  # fmt: skip
    values = {"shape": 1, "size": np.log(2), "turn": 25, "cut off": 0.3, "absent": 0.4, "whole": 0.6, "detail": 0.7,
              "noise": 1 + np.log(3), "spread": 1 + np.log(4), "score": 0.75}  # fmt: skip
    order = list(np.random.default_rng(0).permutation(list(LINES)))
    # the k-th in this order lies 20 - k scales above its middle; the last two not above the limit of 12
    scale = {n: (values[n] - middle[n]) / (20 - k) for k, n in enumerate(order)}
    image, found = case(np.random.default_rng(0), 2)
    review = Review(Fixed(values), Usual(middle, scale, 12.0, 30, 30))  # type: ignore[arg-type]
    judgement = review.judge(image, found)
    assert judgement.limit == 12 and judgement.suspicion == pytest.approx(20)
    assert [k for k, n in enumerate(order) if LINES[n] in judgement.reasons] == list(range(len(judgement.reasons)))
    assert list(judgement.reasons) == [LINES[n] for n in order if (values[n] - middle[n]) / scale[n] > 12]
    assert len(judgement.reasons) in (8, 9)
    every = Review(review.reference, replace(review.usual, limit=1.0)).judge(image, found)
    assert list(every.reasons) == [LINES[n] for n in order]
    exact = Usual({"whole": 0.0}, {"whole": 0.5}, 2.0, 3, 0)
    at_the_limit = Review(Fixed({"whole": 1.0}), exact).judge(image, found)  # type: ignore[arg-type]
    assert at_the_limit.suspicion == 2.0 and at_the_limit.reasons == ()


# ---------------------------------------------------------------------- learning it


@dataclass
class Example:
    """A case as the review reads it."""

    id: str
    landmarks: Landmarks
    picture: Image

    def image(self) -> Image:
        return self.picture


def examples(seed: int, count: int, names: str = "abcdefg") -> list[Example]:
    rng, out = np.random.default_rng(seed), []
    for k in range(count):
        image, landmarks = case(rng, 2, noise=0.02)
        bare = Landmarks(landmarks.names, landmarks.points).select(names)
        out.append(Example(f"{seed}-{k}", bare, image))
    return out


def learned_of(
    train: list[Example],
    val: Sequence[Example] = (),
    residuals: Residuals | None = None,
    turns: float = 0.0,
    **low: float,
) -> Review | None:
    """The review of a model that was trained to find the anatomy turned by ``turns`` degrees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(review_module, "known_turns", lambda plan: turns)
        plan: Any = SimpleNamespace(names=list(train[0].landmarks.names))
        return learn_review(plan, train, val, residuals, low or None, QUIET)  # type: ignore[arg-type]


def predicted(rng: np.random.Generator, one: Example) -> Landmarks:
    points = one.landmarks.points + rng.normal(0, 1, one.landmarks.points.shape)
    d = points.shape[1]
    return Landmarks(one.landmarks.names, points, score=rng.uniform(0.5, 1, len(points)),
                     covariance=np.eye(d) * rng.uniform(1, 2, (len(points), 1, 1)))  # fmt: skip


@pytest.mark.parametrize("most", [60, 6])
def test_each_case_is_measured_against_a_reference_that_leaves_it_out(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it again, one case after the other; two of the predicted cases are training cases, as out-of-fold."""
    monkeypatch.setattr(review_module, "MOST", most)
    rng, train, val = np.random.default_rng(1), examples(0, 9), examples(1, 6)
    cases = [*val[:4], *train[2:4], *val[4:]]
    predictions = [predicted(rng, c) for c in cases]
    low = {"threshold": 0.6}
    residuals = Residuals(tuple(c.id for c in cases), tuple(predictions), tuple(c.landmarks for c in cases))
    learned = learned_of(train, val, residuals, 5.0, **low)
    assert learned is not None and learned.reference.turns_deg == 5.0

    at = np.linspace(0, 8, min(9, most)).round().astype(int)
    chosen = [train[k] for k in at]
    held = np.linspace(0, 7, min(8, most)).round().astype(int)
    bare, others = Reference.of_shapes(tuple("abcdefg"), np.stack([c.landmarks.points for c in chosen]), 5.0)
    own = [o.measure(c.image(), c.landmarks) for o, c in zip(others, chosen, strict=True)]
    ids = [c.id for c in chosen]
    true = [bare.with_pictures([x for x in own if x is not o]).compare(o) for o in own]  # type: ignore[misc,arg-type]
    unseen = []
    for k in held:
        found = with_absent(predictions[k], cases[k].image().grid, {"presence": low})
        j = ids.index(cases[k].id) if cases[k].id in ids else None
        shapes = bare if j is None else others[j]
        rest = [x for i, x in enumerate(own) if i != j]
        unseen.append(bare.with_pictures(rest).compare(shapes.measure(cases[k].image(), found)))  # type: ignore[arg-type]
    assert any(v["absent"] > 0 for v in unseen)
    usual = Usual.learned(true, unseen)
    assert usual is not None
    assert learned.usual.middle == pytest.approx(usual.middle) and learned.usual.scale == pytest.approx(usual.scale)
    assert learned.usual.limit == pytest.approx(usual.limit)
    assert (learned.usual.cases, learned.usual.independent) == (len(chosen), len(held))
    assert learned.reference.count == len(chosen)
    np.testing.assert_allclose(learned.reference.whole, np.sum([o.whole for o in own], 0))  # type: ignore[union-attr]


def test_what_is_too_little_to_learn_from() -> None:
    train = examples(2, 3)
    assert learned_of(train) is not None
    assert learned_of(train[:2]) is None
    two, single = examples(2, 3, "ab"), examples(2, 3, "a")
    pair = learned_of(two)
    assert pair is not None and pair.usual.independent == 0
    assert learned_of(single) is None


def test_a_case_that_cannot_be_measured_is_passed_over() -> None:
    train = examples(3, 6)
    few = train[1].landmarks.points.copy()
    few[2:] = np.nan
    train[1].landmarks = Landmarks(train[1].landmarks.names, few)
    lost = Landmarks(train[0].landmarks.names, np.full((7, 2), np.nan))
    val = examples(4, 2)
    found = predicted(np.random.default_rng(0), val[1])
    residuals = Residuals(tuple(v.id for v in val), (lost, found), tuple(v.landmarks for v in val))
    learned = learned_of(train, val, residuals)
    assert learned is not None
    assert (learned.usual.cases, learned.usual.independent, learned.reference.count) == (5, 1, 5)
    for one in train:
        one.landmarks = replace(one.landmarks, status=("defined",) * 2 + ("absent",) * 5)
    train[0].landmarks = examples(3, 1)[0].landmarks
    train[0].picture = Image(train[0].picture.array, Grid(train[0].picture.grid.shape, np.diag([1e-3, 1e-3, 1])))
    assert learned_of(train) is None


def test_cases_are_spread_evenly_and_every_landmark_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    train = examples(5, 9)
    for k, one in enumerate(train):
        if k not in (2, 3, 5, 7):
            one.landmarks = replace(one.landmarks, status=("unannotated",) + ("defined",) * 6)
    monkeypatch.setattr(review_module, "MOST", 3)  # 0, 4 and 8, and three of those that have the first landmark
    learned = learned_of(train)
    assert learned is not None and learned.usual.cases == 6
    assert learned.reference.counts[0] == 3
    monkeypatch.setattr(review_module, "MOST", 60)
    every = learned_of(train)
    assert every is not None and every.usual.cases == 9


def test_the_console_says_what_the_flag_rests_on() -> None:
    usual = Usual({}, {}, 5.55, 12, 3)
    assert described_review(None) == "review flag: too few training cases or landmarks to say what is usual"
    assert described_review(Review(Fixed({}), usual)) == (  # type: ignore[arg-type]
        "review flag: above 5.5 robust standard deviations of what is usual, learned from 12 training cases and "
        "3 independent ones"
    )
