"""The tree of neighbours: what it learns, and that it decides between alike peaks as a whole enumeration would."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from anatomark.methods.heatmap.tree import OUTLIER, WIDER, Tree, TreeFacts


def bent_chains(count: int, links: int = 8, ndim: int = 2) -> np.ndarray:
    """Chains of links 10 mm long that bend at random: near neighbours lie firmly, far ones do not."""
    rng = np.random.default_rng(3)
    turns = np.cumsum(rng.normal(0, 0.12, (count, links)), axis=1)
    steps = 10 * np.stack([np.sin(turns), np.cos(turns), *[0.1 * turns] * (ndim - 2)], -1)
    return np.asarray(np.cumsum(steps, axis=1))


def back_from_json(tree: Tree) -> Tree:
    return Tree.of(TreeFacts(**json.loads(tree.facts().model_dump_json())))


@pytest.mark.parametrize("ndim", [2, 3])
def test_neighbours_in_the_chain_are_neighbours_in_the_tree(ndim: int) -> None:
    shapes = bent_chains(60, ndim=ndim)
    shapes[4, 2] += 300.0  # a wrong point bends nothing
    shapes[5, 6] = np.nan
    tree = Tree.learned(shapes, 40.0)
    assert {tuple(sorted(e)) for e in tree.edges} == {(i, i + 1) for i in range(7)}
    expected = np.array([np.nanmedian(shapes[:, j] - shapes[:, i], 0) for i, j in tree.edges])
    np.testing.assert_allclose(tree.offset, expected)
    parents = [i for i, _ in tree.edges]
    assert all(p == tree.edges[0][0] or p in [j for _, j in tree.edges[:e]] for e, p in enumerate(parents))


def test_few_cases_leave_the_covariance_wide() -> None:
    few, many = (Tree.learned(bent_chains(n), 40.0) for n in (4, 200))
    assert few.covariance[:, 1, 1].mean() > 2 * many.covariance[:, 1, 1].mean()  # along the chain


def test_two_that_are_never_seen_together_are_no_neighbours() -> None:
    shapes = bent_chains(40)
    shapes[:20, 3], shapes[20:, 4] = np.nan, np.nan
    assert {3, 4} not in [set(e) for e in Tree.learned(shapes, 40.0).edges]


def test_it_comes_back_from_json() -> None:
    tree = Tree.learned(bent_chains(30), 40.0)
    back = back_from_json(tree)
    assert back.edges == tree.edges
    np.testing.assert_array_equal(back.offset, tree.offset)
    np.testing.assert_array_equal(back.covariance, tree.covariance)


def test_beliefs_are_those_of_all_combinations() -> None:
    shapes = bent_chains(40, links=4)
    tree, rng = Tree.learned(shapes, 20.0), np.random.default_rng(1)
    places = shapes[:1, :, None] + rng.normal(0, 6, (1, 4, 3, 2))
    mass = np.log(rng.uniform(0.05, 1, (1, 4, 3)))
    volume = 1e4
    belief = tree.beliefs(torch.from_numpy(places), torch.from_numpy(mass), volume)[0].numpy()
    weights = np.zeros((4, 3))
    for state in itertools.product(range(3), repeat=4):
        log = sum(mass[0, n, k] for n, k in enumerate(state))
        for (i, j), offset, covariance in zip(tree.edges, tree.offset, tree.covariance * WIDER, strict=True):
            away = places[0, j, state[j]] - places[0, i, state[i]] - offset
            density = np.exp(-0.5 * away @ np.linalg.inv(covariance) @ away)
            density /= np.sqrt(np.linalg.det(2 * np.pi * covariance))
            log += np.log((1 - OUTLIER) * density + OUTLIER / volume)
        for n, k in enumerate(state):
            weights[n, k] += np.exp(log)
    np.testing.assert_allclose(belief, weights / weights.sum(1, keepdims=True), rtol=1e-6)


def test_no_link_is_skipped() -> None:
    """Every map has two peaks, the true one and that of the next link; one end is sure, and decides for all."""
    shapes = bent_chains(60)
    tree, true = Tree.learned(shapes, 40.0), shapes[7]
    wrong = np.concatenate([true[1:], true[-1:] + true[-1:] - true[-2:-1]])
    places = torch.from_numpy(np.stack([wrong, true], 1))[None]
    mass = torch.tensor([[0.6, 0.4]] * 8).log()[None]
    mass[0, 0] = torch.tensor([0.02, 0.98]).log()
    assert tree.beliefs(places, mass, 1e4)[0].argmax(-1).tolist() == [1] * 8


def test_one_landmark_has_no_neighbours() -> None:
    tree = Tree.learned(np.zeros((3, 1, 2)), 1.0)
    assert tree.edges == []
    mass = torch.tensor([[[0.2, 0.8]]]).log()
    belief = back_from_json(tree).beliefs(torch.zeros(1, 1, 2, 2), mass, 1.0)
    torch.testing.assert_close(belief, torch.tensor([[[0.2, 0.8]]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("edges", [[0, 1], [1, 2], [1, 2]], "no tree"),
        ("edges", [[2, 3], [0, 1], [1, 2]], "no tree"),  # a child before its parent is known
        ("edges", [[0, 1], [1, 2]], "no tree"),
        ("edges", [[0, 1], [1, 2], [2, 7]], "no tree"),
        ("offset", [[1.0, 2.0]], "3 offsets"),
        ("covariance", [[[1.0, 0.0], [0.0, -1.0]]] * 3, "covariance"),
        ("covariance", [[[1.0]]] * 3, "covariance"),
    ],
)
def test_facts_that_are_no_tree_are_refused(field: str, value: object, words: str) -> None:
    good = Tree.learned(bent_chains(20, links=4), 20.0).facts()
    good.check(4, 2)
    with pytest.raises(ValueError, match=words):
        TreeFacts(**{**good.model_dump(), field: value}).check(4, 2)
