"""What every training is judged beside, and the mean shape that a model settles on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, random_rotation
from anatomark.methods.base import Stage
from anatomark.model.residuals import Residuals
from anatomark.model.settle import SettleFacts, settled
from anatomark.training.baselines import GAIN, Judged, judged, settled_residuals
from anatomark.training.finish import short, stalled

NAMES = tuple("abcdefgh")


GRID = Grid.centred((40, 40), np.eye(2)[:, ::-1] * 2, [3.0, 4.0])


def study(count: int, noise: float, bend: float = 0.3) -> tuple[list[Case], Residuals]:
    """Cases of one shape, bent by ``bend`` mm, and predictions that err by ``noise`` mm in each coordinate."""
    rng = np.random.default_rng(5)
    mean = np.random.default_rng(1).normal(0, 10, (8, 2))
    image = Image(np.zeros((1, 40, 40)), GRID)
    cases, predictions = [], []
    for i in range(count):
        pose = Pose(random_rotation(rng, 2, 15), np.array([3.0, 4.0]) + rng.normal(0, 2, 2))
        true = pose.apply(mean + rng.normal(0, bend, mean.shape))
        cases.append(Case(f"case{i}", given=Landmarks(NAMES, true), held=image))
        predictions.append(Landmarks(NAMES, true + rng.normal(0, noise, true.shape)))
    held = cases[-6:]
    return cases, Residuals(tuple(c.id for c in held), tuple(predictions[-6:]), tuple(c.landmarks for c in held))


def test_a_method_worse_than_the_mean_shape_settles_on_it() -> None:
    cases, residuals = study(20, noise=4.0)
    verdict = judged(cases[:-6], cases, residuals)
    assert verdict is not None
    assert verdict.placed < 0.6 * verdict.method and verdict.best_weight <= 0.25
    facts = verdict.facts(cases[:-6])
    assert facts is not None and facts.weight == verdict.best_weight and not facts.centred
    after = np.nanmean(settled_residuals(residuals, facts, cases).errors)
    assert after == pytest.approx(verdict.by_weight[verdict.best_weight])
    assert after < 0.6 * verdict.method
    first, second = verdict.lines()
    assert first.startswith("validation error ") and second.startswith("the model answers")
    assert "; " not in second and f"validation error {after:.3f} mm" in second
    assert verdict.lines("out-of-fold")[0].startswith("out-of-fold error ")


@pytest.mark.parametrize(
    ("method", "placed", "middle", "weight", "proven"),
    [
        (1.0, 2.0, 0.98, 1.0, True),  # hardly better: chance
        (1.0, 2.0, 0.9, 0.5, True),
        (1.0, 0.99, 0.98, 0.5, True),  # the placed shape is better: any gain is taken
        (1.0, 0.9, 0.95, 0.0, False),  # the model answers what costs nothing
        (3.0, 3.5, 3.2, 1.0, False),  # the mean position is better
    ],
)
def test_what_is_answered_and_whether_it_is_worth_anything(
    method: float, placed: float, middle: float, weight: float, proven: bool
) -> None:
    verdict = Judged(method, 2.5, placed, {1.0: method, 0.5: middle, 0.0: placed})
    assert (verdict.best_weight, verdict.proven) == (weight, proven)


def test_a_method_that_finds_nothing_answers_the_mean_position() -> None:
    cases, residuals = study(20, noise=60.0)
    verdict = judged(cases[:-6], cases, residuals)
    assert verdict is not None and verdict.lost and not verdict.proven
    assert verdict.position < 0.9 * min(verdict.by_weight.values())
    facts = verdict.facts(cases[:-6])
    assert facts is not None and facts.centred
    assert np.nanmean(settled_residuals(residuals, facts, cases).errors) == pytest.approx(verdict.position)
    assert verdict.lines()[1] == "the model answers the mean position in the image"


def test_a_good_method_stays_as_it_is() -> None:
    cases, residuals = study(20, noise=0.1)
    verdict = judged(cases[:-6], cases, residuals)
    assert verdict is not None and verdict.best_weight == 1.0
    assert verdict.method == pytest.approx(np.nanmean(residuals.errors))
    assert verdict.method < verdict.placed < verdict.position
    assert len(verdict.lines()) == 1 and verdict.facts(cases[:-6]) is None


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_good_method_for_few_landmarks_is_proven(count: int) -> None:
    """Their mean shape, placed by the points, is as good as these, or nearly: it is all pose."""
    cases, residuals = study(20, noise=0.5, bend=0.5)
    kept = NAMES[:count]
    cases = [replace(c, given=c.landmarks.select(kept)) for c in cases]
    residuals = replace(
        residuals,
        predictions=tuple(p.select(kept) for p in residuals.predictions),
        truths=tuple(t.select(kept) for t in residuals.truths),
    )
    verdict = judged(cases[:-6], cases, residuals)
    assert verdict is not None and verdict.proven and np.isfinite(verdict.placed) == (count == 4)
    assert ("placed" in verdict.lines()[0]) == (count == 4)
    assert verdict.facts(cases[:-6]) is None or count > 2


def test_between_the_two_both_help() -> None:
    """Where errors of method and shape are alike and independent, their middle is better than either by about 1.4."""
    cases, residuals = study(20, noise=1.0, bend=1.0)
    verdict = judged(cases[:-6], cases, residuals)
    assert verdict is not None and verdict.best_weight in (0.25, 0.5, 0.75)
    assert verdict.by_weight[verdict.best_weight] < GAIN * min(verdict.method, verdict.placed)


def test_the_mean_position_is_that_in_the_image() -> None:
    cases, residuals = study(20, noise=0.1)
    true = np.stack([c.landmarks.points for c in cases])
    position = true[:-6].mean(0)  # all images lie alike
    expected = np.linalg.norm(true[-6:] - position, axis=2).mean()
    verdict = judged(cases[:-6], cases, residuals)
    assert verdict is not None and verdict.position == pytest.approx(expected)


def test_nothing_held_out_is_not_judged() -> None:
    cases, residuals = study(20, noise=1.0)
    assert judged(cases, cases, Residuals((), (), ())) is None
    assert judged(cases[:-6], cases[:-6], residuals) is None  # cases that are not among those given


def test_what_is_not_located_stays_so_and_an_outlier_does_not_place_the_shape() -> None:
    mean = np.random.default_rng(1).normal(0, 10, (8, 2))
    points = mean + 5.0
    points[2] = np.nan
    points[3] += 300.0
    found = settled(Landmarks(NAMES, points), SettleFacts(mean_shape=mean.tolist(), weight=0.0), GRID).points
    assert np.isnan(found[2]).all()
    others = [0, 1, 4, 5, 6, 7]
    np.testing.assert_allclose(found[others], mean[others] + 5.0, atol=0.3)
    np.testing.assert_allclose(found[3], mean[3] + 5.0, atol=0.5)


def test_stages_too_short_to_teach_much_are_named() -> None:
    few = [Stage(name, steps, batch=1) for name, steps in (("a", 50), ("b", 49), ("c", 1))]
    assert short(few).startswith("hardly trained: b 49 steps, c 1 step;")
    assert not short(few[:1])


def row(step: int, loss: float, mm: float) -> dict[str, str]:
    return {"stage": "one", "step": str(step), "loss": str(loss), "val_mm": str(mm)}


def test_a_validation_that_stands_still_is_said() -> None:
    still = [row(100 * k, 10.0 / (k + 1), 3.0 if k == 2 else 3.2) for k in range(10)]
    assert stalled(still).startswith("one: the loss fell from step 200 on, validation did not")
    assert stalled([row(100 * k, 10.0 / (k + 1), 3.0 - 0.1 * k) for k in range(10)]) == ""  # still falling
    assert stalled([row(100 * k, 5.0, 3.0 if k == 2 else 3.2) for k in range(10)]) == ""  # the loss stands too
    assert stalled(still[:4]) == stalled([]) == ""
