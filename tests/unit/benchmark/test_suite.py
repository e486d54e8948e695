"""Suites: what is refused and how, which cells come of one, and where their paths lead."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from anatomark.benchmark.cells import Cell, asked, chosen, plan_cells
from anatomark.benchmark.run import benchmark
from anatomark.benchmark.suite import read_suite
from anatomark.errors import InputError

tiny.register()
SUITE: dict[str, Any] = {
    "data": {"study": {"manifest": "study/cases.csv"}},
    "methods": {"a": {"method": "tiny"}, "b": {"method": "tiny", "set": {"method.width": 8}, "steps": 7}},
    "minutes": 0.5,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_study(tmp_path / "study", 4, splits=("train", "train", "train", "test"))
    return tmp_path


def _write(folder: Path, **changes: Any) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}, sort_keys=False))
    return path


def _cells(path: Path, minutes: float | None = None) -> list[Cell]:
    return plan_cells(read_suite(path, minutes), path, path.parent / "out")


def test_cells_are_data_by_seed_by_method_with_the_suites_budget(folder: Path) -> None:
    cells = _cells(_write(folder, seeds=[0, 3]))
    assert [c.name for c in cells] == ["study/a/seed0", "study/b/seed0", "study/a/seed3", "study/b/seed3"]
    configs = [c.config for c in cells]
    assert all(c is not None for c in configs)
    assert [(c.minutes, c.steps, c.seed) for c in configs if c] == [
        (0.5, None, 0), (None, 7, 0), (0.5, None, 3), (None, 7, 3)
    ]  # fmt: skip
    assert [asked(c)["method"] for c in configs if c][:2] == [
        {"name": "tiny"},
        {"name": "tiny", "settings": {"width": 8}},
    ]
    assert {c.split for c in cells} == {"test"}
    replaced = _cells(folder / "suite.yaml", 2.0)
    assert {(c.config.minutes, c.config.steps) for c in replaced if c.config} == {(2.0, None)}


def test_settings_of_suite_data_and_method_the_nearest_wins(folder: Path) -> None:
    data = {"study": {"manifest": "study/cases.csv", "set": {"method.width": 4, "method.dropout": 0.1}}}
    cells = _cells(_write(folder, data=data, set={"method.width": 2, "method.side": 6, "val_fraction": 0}))
    found = [
        (s.get("width"), s.get("dropout"), s.get("side")) for c in cells if c.config for s in [c.config.method.settings]
    ]
    assert found == [(4, 0.1, 6), (8, 0.1, 6)]
    assert all(c.config.val_fraction == 0 for c in cells if c.config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {}}, "unknown key 'method' (did you mean 'methods'?)"),
        ({"methods": {"a": {"metod": "tiny"}}}, "unknown key 'methods.a.metod' (did you mean 'method'?)"),
        ({"methods": {"a": {"method": "tyni"}}}, "methods.a: unknown method 'tyni' (did you mean 'tiny'?)"),
        ({"methods": {"a": {"method": "tiny", "set": {"method.widht": 3}}}}, "(did you mean 'width'?)"),
        ({"methods": {"a": {}}}, "give method or config"),
        ({"methods": {"a": {"run": "x", "minutes": 3}}}, "minutes: nothing is trained"),
        ({"methods": {"a": {"run": "nowhere"}}}, "methods.a.run: there is no folder"),
        ({"methods": {"a/b": {"method": "tiny"}}}, "'a/b': names are folders"),
        ({"methods": {"a": {"method": "tiny", "data": ["stady"]}}}, "'stady' is no data set here (did you mean"),
        ({"data": {"study": {}}}, "data.study.manifest: is missing"),
        ({"data": {"study": {"manifest": "study/none.csv"}}}, "study/none.csv: no such file"),
        ({"methods": {"a": {"run": {"other": "x"}}}}, "none of its methods is given for any of its data sets"),
        ({"data": {"study": {"manifest": "${NO_SUCH_FOLDER}/x.csv"}}}, "variable NO_SUCH_FOLDER is not set"),
        ({"data": {"study": {"manifest": "study/cases.csv", "split": "val"}}}, "no case has split 'val'"),
        ({"methods": {"a": {"predictions": "x", "run": "y"}}}, "run and predictions are given"),
        ({"methods": {"a": {"predictions": "x", "tta": 4}}}, "tta: nothing is predicted"),
        ({"methods": {"a": {"method": "tiny"}, "e": {"ensemble": ["a", "e"]}}}, "'e' is not trained here"),
        ({"baseline": "c"}, "baseline 'c' is no method here"),
        ({"data": {n: {"manifest": "study/cases.csv"} for n in ("study", "two")},
          "methods": {**SUITE["methods"], "c": {"method": "tiny", "data": ["study"]}, "e": {"ensemble": ["a", "c"]}}},
         "methods.e.ensemble: 'c' of it not trained on 'two'"),
        ({"data": {"study": {"manifest": "study/cases.csv", "thresholds": [float("inf")]}}}, "finite number"),
        ({"data": {"study": {"manifest": "study/cases.csv", "thresholds": [2, 2.0000001]}}}, "two of them are written"),
        ({"set": {"method.width": date(2020, 1, 2)}}, "width: Input should be a valid integer"),
        ({"steps": 3}, "minutes and steps are both given"),
        ({"seeds": [1, 1]}, "seeds: each once"),
    ],
)  # fmt: skip
def test_bad_suites_are_refused_before_any_work(folder: Path, changes: dict[str, Any], said: str) -> None:
    path = _write(folder, **changes)
    with pytest.raises(InputError) as refused:
        benchmark(path, folder / "out", dry_run=True)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not (folder / "out").exists()


def test_only_names_data_sets_and_methods(folder: Path) -> None:
    path = _write(folder, data={n: {"manifest": "study/cases.csv"} for n in ("one", "two")})
    suite, cells = read_suite(path), _cells(path)
    assert [c.name for c in chosen(suite, cells, ["two", "b"])] == ["two/b/seed0"]
    assert len(chosen(suite, cells, ["b"])) == 2 and len(chosen(suite, cells, [])) == 4
    with pytest.raises(InputError, match=r"`only` tow: no data set or method \(did you mean 'two'"):
        chosen(suite, cells, ["tow"])


def test_what_is_there_is_taken_for_the_data_sets_and_seeds_it_names(folder: Path) -> None:
    for name in ("one_0", "one_1", "two"):
        (folder / "runs" / name).mkdir(parents=True)
    data = {n: {"manifest": "study/cases.csv"} for n in ("one", "two")}
    methods = {
        "by-seed": {"evaluation": "runs/{data}_{seed}", "data": ["one"]},
        "once": {"run": {"two": "runs/two"}},
    }
    cells = _cells(_write(folder, data=data, methods=methods, seeds=[0, 1]))
    found = {c.name: (c.config, c.run.name, c.evaluation.name) for c in cells}
    assert found == {
        "one/by-seed/seed0": (None, "run", "one_0"),
        "one/by-seed/seed1": (None, "run", "one_1"),
        "two/once/seed0": (None, "two", "evaluation"),
    }


def test_an_ensemble_averages_all_seeds_and_comes_last(folder: Path) -> None:
    both = {"both": {"ensemble": ["a", "b"], "tta": 4}, **SUITE["methods"]}
    cells = _cells(_write(folder, methods=both, seeds=[1, 2]))
    assert [c.name for c in cells][-1] == "study/both/seed1" and len(cells) == 5
    assert cells[-1].members == tuple(c.run for c in cells[:4]) == cells[-1].runs
    assert cells[-1].model.count("+") == 3 and cells[-1].tta == 4


def test_init_is_a_folder_beside_the_suite_or_a_name(folder: Path) -> None:
    (folder / "base").mkdir()
    methods = {"a": {"method": "tiny", "init": "base"}, "b": {"method": "tiny", "init": "zoo-name"}}
    assert [c.init for c in _cells(_write(folder, methods=methods))] == [str(folder / "base"), "zoo-name"]
