"""Examples depend on (seed, stage, number) alone."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import tiny
from anatomark.cases.case import Case
from anatomark.cases.division import read_division
from anatomark.cases.store import CaseStore
from anatomark.methods.base import Batch
from anatomark.model.compose import Composition
from anatomark.model.config import make_config
from anatomark.training.examples import Examples, batches, weightless
from anatomark.training.start import study_of

tiny.register()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    config = make_config(method="tiny")
    division = read_division(tiny.write_study(folder, 3), val_fraction=0)
    parts = Composition.of(config)
    composed = parts.build(parts.prepare(study_of(division, config)))
    store = CaseStore(folder / "cache")
    for case in division.train:
        store.add(case, case.id, lambda c=case: composed.working_images(c.image()))
    return Examples(composed, composed.stages()[0], 0, store, seed=5)


def _all(examples: Examples, first: int = 0, workers: int = 0) -> list[Batch]:
    return list(batches(examples, first, 5, workers=workers))


def _same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_batches_are_the_same_whatever_the_workers(examples: Examples) -> None:
    plain = _all(examples)
    assert len(plain) == 5
    assert plain[0]["x"].shape == (4, 512)
    assert _same(plain, _all(examples, workers=2))


def test_spawned_workers_give_the_same(examples: Examples) -> None:
    loader = batches(examples, 0, 5, workers=1)
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    assert _same(_all(examples), list(loader))


def test_going_on_later_gives_the_same(examples: Examples) -> None:
    assert _same(_all(examples)[3:], _all(examples, first=3))


def test_seed_and_stage_matter(examples: Examples) -> None:
    other = Examples(examples.method, examples.stage, 1, examples.cases, seed=5)
    assert not _same(_all(examples), _all(other))
    other = Examples(examples.method, examples.stage, 0, examples.cases, seed=6)
    assert not _same(_all(examples), _all(other))


def test_every_round_takes_every_case_once(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(type(examples.method), "examples", lambda self, case, stage, rng: seen.append(case.id) or {})
    for i in range(6):
        examples[i]
    assert sorted(seen[:3]) == sorted(seen[3:]) == ["case0", "case1", "case2"]


def test_the_workers_copy_has_facts_and_buffers_but_no_weights(examples: Examples) -> None:
    method = tiny.Tiny(tiny.TinyConfig(), examples.method.plan.method)
    method.seen += 3
    bare = weightless(method)
    assert all(p.is_meta for p in bare.parameters()) and all(p.is_meta for p in examples.method.parameters())
    assert int(bare.seen) == 3
    assert not any(p.is_meta for p in method.parameters())
    assert bare.size == method.size


def test_what_a_part_collects_from_is_a_sequence_of_cases_with_its_own_images(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, composed = examples.cases, copy.deepcopy(examples.method)
    assert [list(c.images) for c in store] == [["method/image"]] * 3
    seen: list[Sequence[Case]] = []
    monkeypatch.setattr(composed.method, "collect", lambda cases, *_: seen.append(cases))
    composed.collect(store, examples.stage, np.random.default_rng(0))
    (cases,) = seen
    assert [c.id for c in cases] == ["case0", "case1", "case2"] == [c.id for c in cases[:]]
    assert len(cases) == 3 and cases[-1].id == "case2" and [c.id for c in cases[1:]] == ["case1", "case2"]
    assert [list(c.images) for c in (*cases, *cases[1:])] == [["image"]] * 5
    with pytest.raises(IndexError):
        cases[3]
