"""Targets, loss and update rules against examples worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from anatomark.methods.pin.paper_net import pin_loss, targets, update

D = torch.tensor([[1.0, -4.0, 2.0], [3.0, 0.5, -1.0]])
# probabilities of 1+, 1-, 2+, 2-, 3+, 3-
P = torch.tensor([[0.1, 0.2, 0.05, 0.45, 0.15, 0.05], [0.5, 0.1, 0.1, 0.1, 0.05, 0.15]])
LOGITS = P.log() + 7.0  # a softmax does not mind the constant


def test_target_is_the_largest_component_and_its_sign() -> None:
    assert targets(torch.tensor([[1.0, -4.0, 2.0], [3.0, 0.5, -1.0], [0.0, 0.0, 0.0]])).tolist() == [3, 0, 1]


def test_rule_a_moves_one_unit_in_the_most_probable_direction() -> None:
    assert update("A", D, LOGITS).tolist() == [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]


def test_rule_b_is_the_displacement() -> None:
    assert torch.equal(update("B", D, LOGITS), D)


def test_rule_c_weights_by_the_larger_probability_over_all_classes() -> None:
    want = [[0.2 * 1, 0.45 * -4, 0.15 * 2], [0.5 * 3, 0.1 * 0.5, 0.15 * -1]]
    torch.testing.assert_close(update("C", D, LOGITS), torch.tensor(want))


def test_rule_c_pair_weights_within_each_component() -> None:
    want = [[2 / 3 * 1, 0.9 * -4, 0.75 * 2], [5 / 6 * 3, 0.5 * 0.5, 0.75 * -1]]
    torch.testing.assert_close(update("c-pair", D, LOGITS), torch.tensor(want))


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown update rule 'D'"):
        update("D", D, LOGITS)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_loss_is_equation_2(alpha: float) -> None:
    pred = torch.zeros(2, 3, requires_grad=True)
    logits = LOGITS.clone().requires_grad_(True)
    out = pin_loss(pred, logits, D, alpha)
    regression = (1 + 16 + 4 + 9 + 0.25 + 1) / 6
    classification = -(math.log(0.45) + math.log(0.5)) / 2
    assert out["loss"].item() == pytest.approx((1 - alpha) * regression + alpha * classification, rel=1e-6)
    assert out["regression"].item() == pytest.approx(regression)
    assert out["classification"].item() == pytest.approx(classification)
    out["loss"].backward()
    assert (pred.grad is None) == (alpha == 1)
    assert (logits.grad is None) == (alpha == 0)


def test_an_example_without_truth_carries_no_loss() -> None:
    pred = torch.randn(2, 3)
    both = pin_loss(pred, LOGITS, D, 0.5, weight=torch.tensor([1.0, 0.0]))
    one = pin_loss(pred[:1], LOGITS[:1], D[:1], 0.5)
    torch.testing.assert_close(both["loss"], one["loss"])
    assert pin_loss(pred, LOGITS, D, 0.5, weight=torch.zeros(2))["loss"].item() == 0


def test_huber_is_the_square_for_small_deviations_and_grows_linearly() -> None:
    def regression(deviation: float, huber: float | None) -> float:
        out = pin_loss(torch.full((1, 3), deviation), LOGITS[:1], torch.zeros(1, 3), 0.0, huber)
        return out["loss"].item()

    assert regression(0.5, 1.0) == pytest.approx(regression(0.5, None))
    assert regression(11.0, 1.0) - regression(10.0, 1.0) == pytest.approx(2.0, rel=1e-5)
