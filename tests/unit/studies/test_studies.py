"""Every study starts, the documentation's commands are theirs, and what they share does what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import common
from anatomark import Grid, Image, InputError
from anatomark.core.shape import rotation_from_vector

ROOT = Path(__file__).resolve().parents[3]
SHARED = {"cases_right", "common", "data", "pin_tables_runs"}
STUDIES = sorted(p.stem for p in (ROOT / "studies").glob("*.py") if p.stem not in SHARED)
PAGES = [p for top in ("docs", "src", "zoo-research", "studies") for p in (ROOT / top).rglob("*") if p.is_file()]
TEXTS = [p for p in (*PAGES, *ROOT.glob("*.md")) if p.suffix in (".md", ".py", ".yaml")]


def _help(study: Callable[[str], ModuleType], name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        study(name).main(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def _commands() -> dict[str, set[str]]:
    """By study the options that the documentation gives it somewhere."""
    options: dict[str, set[str]] = {}
    for path in TEXTS:
        for name, rest in re.findall(r"studies/(\w+)\.py\b((?:\\\n|[^`\n)])*)", path.read_text(encoding="utf-8")):
            options.setdefault(name, set()).update(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest))
    return options


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_starts_and_knows_the_options_that_the_docs_give_it(
    study: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text = _help(study, name, capsys)
    own = set(re.findall(r"^  (--[a-z][a-z-]*)", text, flags=re.M))
    assert "--out" in own
    assert f"python studies/{name}.py" in text
    assert _commands()[name] - {"--help"} <= own


def test_the_docs_name_no_other_study() -> None:
    assert set(_commands()) <= {*STUDIES, *SHARED}


def test_figures_are_recorded_with_machine_and_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"mm": 1.23456789, "large": np.float64(123456.7), "cases": np.int64(150), "none": None, "nan": np.nan}
    common.record(tmp_path / "out.json", figures, model="m")
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["figures"] == {"mm": 1.2346, "large": 123460.0, "cases": 150, "none": None, "nan": None}
    assert facts["machine"]["versions"]["torch"] and "commit" in facts and facts["model"] == "m"
    assert "mm: 1.2346" in capsys.readouterr().out


def test_bad_input_ends_a_study_with_one_line() -> None:
    def refuse() -> None:
        raise InputError("no such case")

    with pytest.raises(SystemExit, match=r"^error: no such case$"):
        common.run(refuse)


def test_the_least_of_the_rounds_counts_without_the_first() -> None:
    waits = iter([0.0, 1.0, 0.02])
    times = common.least({"wait": lambda: __import__("time").sleep(next(waits))}, 2)
    assert 0.02 <= times["wait"] < 0.9


def test_a_moved_image_has_its_voxels_where_the_pose_takes_them() -> None:
    image = Image(np.zeros((1, 4, 5, 6), np.float32), Grid.from_axes((4, 5, 6), np.diag([1.0, 2, 3]), (7, 8, 9)))
    centre, shift = image.grid.centre, np.array([1.0, 0, 2])
    pose = common.about(centre, rotation_from_vector(np.array([0.1, 0.2, 0.3])), shift, 1.1)
    np.testing.assert_allclose(pose.apply(centre), centre + shift)
    moved, index = common.moved(image, pose), np.array([1.0, 2, 3])
    np.testing.assert_allclose(moved.grid.to_world(index), pose.apply(image.grid.to_world(index)))
    assert moved.array is image.array


def test_a_made_study_has_its_shape_around_the_middle() -> None:
    image = common.upright(np.zeros((30, 40, 50), np.int16), 0.5)
    shape = common.star(np.random.default_rng(0), 6, 3, 2, 4)
    assert ((np.linalg.norm(shape, axis=1) >= 2) & (np.linalg.norm(shape, axis=1) <= 4)).all()
    study = common.made_study(image, shape, np.random.default_rng(1), cases=3, degrees=20, noise_mm=0)
    for case in study.cases:
        away = case.landmarks.points - image.grid.centre
        np.testing.assert_allclose(np.linalg.norm(away, axis=1), np.linalg.norm(shape, axis=1))
        assert np.abs(away - shape).max() > 0.01
