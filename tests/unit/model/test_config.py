"""Settings: what is refused, and in which words; what is written can be run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

import tiny
from anatomark.errors import InputError
from anatomark.model.config import checked, completed, make_config, method_of, read_config, write_config

tiny.register()


def test_what_is_written_is_complete_and_reads_back(tmp_path: Path) -> None:
    config = completed(
        make_config(method="tiny", assignments=["method.width=3", "seed=7", "landmarks=[a, b]"], steps=9)
    )
    write_config(tmp_path / "c.yaml", config)
    again = read_config(tmp_path / "c.yaml")
    assert again == config
    assert again.method.settings == {**tiny.TinyConfig().model_dump(), "width": 3}
    assert (again.seed, again.steps, again.landmarks) == (7, 9, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed: 1", ["sed", "'seed'"]),
        ("method: {name: tiny, widht: 4}", ["widht", "'width'"]),
        ("method: {name: tiny, settings: {widht: 4}}", ["widht", "'width'"]),
        ("method: {name: tiyn}", ["tiyn", "'tiny'"]),
        ("method: {name: tiny, preset: smal}", ["smal", "'small'"]),
        ("steps: many", ["steps", "many"]),
        ("steps: 0", ["steps", "0"]),
        ("steps: 5\nminutes: 3", ["steps", "minutes"]),
        ("val_fraction: 1.5", ["val_fraction", "1.5"]),
        ("precision: half", ["precision", "half"]),
        ("[1, 2]", ["list"]),
        ("seed: !!python/object/apply:os.system [true]", ["YAML", "line 1"]),
        ("seed: [1", ["YAML", "line"]),
    ],
)
def test_a_bad_config_is_one_clear_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        completed(make_config(path))
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("assignment", "word"),
    [("sede=1", "'seed'"), ("method.widht=4", "'width'"), ("seed", "key=value"), ("seed.deep=1", "holds a value"),
     ("seed={", "YAML"), ("method.width=wide", "wide")],
)  # fmt: skip
def test_a_bad_assignment_is_one_clear_line(assignment: str, word: str) -> None:
    with pytest.raises(InputError) as error:
        completed(make_config(method="tiny", assignments=["seed=0", assignment]))
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_values_are_coerced_and_later_ones_win(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: '3'\nminutes: 5\nmethod: {name: tiny, width: 5}\n")
    config = make_config(path, ["method.width=6", "method.dropout=1e-1", "method.settings.side=4"], steps=20)
    _, settings = method_of(config)
    assert (config.seed, config.steps, config.minutes) == (3, 20, None)
    assert (settings.width, settings.dropout, settings.side) == (6, 0.1, 4)


def test_settings_of_another_method_are_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("method: {name: pin, settings: {starts: 3}}\n")
    assert make_config(path, method="tiny").method.settings == {}


def test_a_preset_is_the_start() -> None:
    _, settings = method_of(make_config(method="tiny", preset="small"))
    assert settings.side == 4


def test_nested_unknown_keys_name_the_nested_neighbours() -> None:
    class Inner(BaseModel, extra="forbid"):
        radius_mm: float = 1

    class Outer(BaseModel, extra="forbid"):
        levels: list[Inner] | None = None

    with pytest.raises(InputError, match=r"levels.0.radius.*'radius_mm'"):
        checked(Outer, {"levels": [{"radius": 2}]}, "here")
