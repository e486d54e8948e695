"""Examples depend on (seed, stage, number) alone."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

import tiny
from anatomark.cases.division import read_division, study_of
from anatomark.cases.store import CaseStore
from anatomark.methods.base import Batch, Stage
from anatomark.model.config import make_config
from anatomark.training.examples import Examples, StoredCases, batches, weightless

tiny.register()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    config = make_config(method="tiny", assignments=["val_fraction=0"])
    division = read_division(tiny.write_study(folder, 3), config)
    method = tiny.Tiny(tiny.TinyConfig(), tiny.Tiny.prepare(tiny.TinyConfig(), study_of(division, config)))
    store = CaseStore(folder / "cache")
    for source in division.train:
        store.add(source.id, source.id, source.landmarks, lambda s=source: method.working_images(s.image()))
    return Examples(method, method.stages()[0], 0, store, seed=5)


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
    other = Examples(examples.method, examples.stage, 1, examples.cases.store, seed=5)
    assert not _same(_all(examples), _all(other))
    other = Examples(examples.method, examples.stage, 0, examples.cases.store, seed=6)
    assert not _same(_all(examples), _all(other))


def test_every_round_takes_every_case_once(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(type(examples.method), "examples", lambda self, case, stage, rng: seen.append(case.id) or {})
    for i in range(6):
        examples[i]
    assert sorted(seen[:3]) == sorted(seen[3:]) == ["case0", "case1", "case2"]


def test_the_workers_copy_has_facts_and_buffers_but_no_weights(examples: Examples) -> None:
    method = tiny.Tiny(tiny.TinyConfig(), examples.method.plan)
    method.seen += 3
    copy = weightless(method)
    assert all(p.is_meta for p in copy.parameters())
    assert int(copy.seen) == 3
    assert not any(p.is_meta for p in method.parameters())
    assert copy.size == method.size


def test_stored_cases_are_a_sequence(examples: Examples) -> None:
    cases = StoredCases(examples.cases.store)
    assert [c.id for c in cases] == ["case0", "case1", "case2"] == [c.id for c in cases[:]]
    assert cases[-1].id == "case2"
    with pytest.raises(IndexError):
        cases[3]
    assert isinstance(examples.stage, Stage)
