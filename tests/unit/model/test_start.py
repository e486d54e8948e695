"""Another model's weights at this model's landmarks: each order, axis and kind of new landmark, by hand."""

from __future__ import annotations

import pytest
import torch

from anatomark.methods.base import PerLandmark
from anatomark.model.start import moved_weights

OLD, NEW = ("a", "b", "c"), ("c", "x", "a", "y")
OWN = torch.tensor([100.0, 101, 102, 103])


def moved(value: torch.Tensor, rule: int | PerLandmark, own: torch.Tensor = OWN) -> torch.Tensor:
    return moved_weights({"w": value}, {"w": rule}, NEW, OLD, {"w": own})["w"]


def test_rows_go_to_their_names_and_new_ones_get_the_mean() -> None:
    bias = torch.tensor([1.0, 2, 6])
    assert moved(bias, 0).tolist() == [6, 3, 1, 3]
    assert moved(bias, PerLandmark(new="zero")).tolist() == [6, 0, 1, 0]
    assert moved(bias, PerLandmark(new="own")).tolist() == [6, 101, 1, 103]
    weight = torch.arange(12.0).view(3, 2, 2)
    torch.testing.assert_close(moved(weight, 0), torch.stack([weight[2], weight.mean(0), weight[0], weight.mean(0)]))


def test_blocks_of_each_landmark() -> None:
    two = torch.tensor([1.0, 2, 11, 12, 21, 22])  # two a landmark
    assert moved(two, 0).tolist() == [21, 22, 11, 12, 1, 2, 11, 12]
    own = torch.arange(8.0) + 100
    assert moved(two, PerLandmark(new="own"), own).tolist() == [21, 22, 102, 103, 1, 2, 106, 107]


def test_the_landmark_may_run_fastest() -> None:
    two = torch.tensor([1.0, 11, 21, 2, 12, 22])
    assert moved(two, PerLandmark(order="inner")).tolist() == [21, 11, 1, 11, 22, 12, 2, 12]
    own = torch.arange(8.0) + 100
    assert moved(two, PerLandmark(order="inner", new="own"), own).tolist() == [21, 101, 1, 103, 22, 105, 2, 107]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis(axis: int) -> None:
    value = torch.randn(4, 6, 5).movedim(1, axis)  # two a landmark
    blocks = value.chunk(3, axis)
    mean = (blocks[0] + blocks[1] + blocks[2]) / 3
    torch.testing.assert_close(moved(value, axis), torch.cat([blocks[2], mean, blocks[0], mean], axis))


def test_what_does_not_run_over_the_old_landmarks_stays() -> None:
    for value in (torch.tensor(7), torch.arange(4.0), torch.zeros(0, 2)):
        assert torch.equal(moved(value, 0), value)
    state = {"body.weight": torch.arange(3.0)}
    assert moved_weights(state, {"head.*": 0}, NEW, OLD, {}) == state


def test_own_weights_of_another_size_leave_the_tensor_out() -> None:
    value = torch.randn(3, 2)
    for own in ({}, {"w": torch.randn(4, 5)}, {"w": torch.randn(4)}, {"w": torch.randn(3, 2)}):
        assert moved_weights({"w": value}, {"w": PerLandmark(new="own")}, NEW, OLD, own) == {}


def test_own_weights_decide_on_precision() -> None:
    half = torch.tensor([1.0, 2, 6], dtype=torch.float16)
    assert moved(half, PerLandmark(new="own")).dtype == torch.float32


def test_the_first_pattern_counts_and_none_is_not_taken_over() -> None:
    state = {"net.head.weight": torch.tensor([1.0, 2, 6]), "net.body.weight": torch.arange(3.0), "seen": torch.ones(3)}
    rules = {"net.body.*": None, "net.*.weight": 0, "seen": None}
    assert {k: v.tolist() for k, v in moved_weights(state, rules, NEW, OLD, {}).items()} == {
        "net.head.weight": [6, 3, 1, 3]
    }


def test_landmarks_with_tensors_of_their_own_are_renamed() -> None:
    state = {f"nets.{i}.conv.{k}": torch.tensor([i, k]) for i in range(3) for k in range(2)}
    state["other.1.bias"] = torch.ones(3)
    out = moved_weights(state, {"nets.{landmark}.*": 0}, NEW, OLD, {})
    assert {k: v.tolist() for k, v in out.items()} == {
        "nets.0.conv.0": [2, 0],
        "nets.0.conv.1": [2, 1],
        "nets.2.conv.0": [0, 0],
        "nets.2.conv.1": [0, 1],
        "other.1.bias": [1, 1, 1],
    }


def test_twelve_landmarks_are_not_taken_for_one() -> None:
    many = [f"l{i}" for i in range(12)]
    state = {f"nets.{i}.w": torch.tensor(i) for i in range(12)}
    out = moved_weights(state, {"nets.{landmark}.w": 0}, ["l11", "l1"], many, {})
    assert {k: int(v) for k, v in out.items()} == {"nets.0.w": 11, "nets.1.w": 1}
