"""Every command that the documentation shows is one of the program's, every Python one that could run."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import tomllib
from importlib.util import find_spec

import pytest
import typer
import yaml

import anatomark
import snippets
from anatomark.benchmark.suite import Suite
from anatomark.cli.app import app
from anatomark.tools.measure.schema import Measurements
from anatomark.tools.planes.schema import PlaneSet

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PAGES = {page.relative_to(snippets.ROOT).as_posix(): page for page in snippets.PAGES}
SCHEMAS = {"planes": PlaneSet, "measurements": Measurements, "data": Suite}  # by a key of theirs


def _wrong(words: list[str]) -> str | None:
    """What the program's own parser says against a command, if anything."""
    if words[0].startswith("-"):
        return None if words[0] in ("--version", "--help", "--install-completion", "--show-completion") else words[0]
    if words[0] not in COMMANDS:
        return f"no command {words[0]!r}"
    if words[-1] == "--help":
        return None
    try:
        COMMANDS[words[0]].make_context(words[0], words[1:])
    except Exception as error:
        return str(error)
    return None


def _unknown_options(words: list[str]) -> str | None:
    """Options that a command does not have; in running text the values of options may be left out."""
    if words[0] not in COMMANDS:
        return _wrong(words)
    known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts} | {"--help"}
    return ", ".join(word for word in words if word.startswith("--") and word.partition("=")[0] not in known) or None


def _not_python(text: str) -> list[str]:
    """What could not run: a name that is not there, arguments that a function does not take."""
    tree, wrong = ast.parse(text), []
    for module, name in snippets.imports(tree):
        if find_spec(module.partition(".")[0]) is None:
            wrong.append(f"no module {module}")
        elif name is not None and not hasattr(importlib.import_module(module), name):
            wrong.append(f"{module} has no {name}")
    wrong += [f"anatomark has no {name}" for name in sorted(snippets.public_uses(tree) - set(anatomark.__all__))]
    for name, call in snippets.public_calls(tree):
        if name in anatomark.__all__ and not any(isinstance(a, ast.Starred) for a in call.args):
            keywords = {k.arg: None for k in call.keywords if k.arg}
            try:
                inspect.signature(getattr(anatomark, name)).bind(*call.args, **keywords)
            except TypeError as error:
                wrong.append(f"anatomark.{name}: {error}")
    return wrong


def test_the_checks_find_what_they_look_for() -> None:
    shell = "anatomark fit a.csv --out run \\\n  --minutes 5  # 1\npip install x && anatomark zoo > z; anatomark crop"
    assert list(snippets.commands(shell)) == [["fit", "a.csv", "--out", "run", "--minutes", "5"], ["zoo"], ["crop"]]
    assert _wrong(["fit", "a.csv", "--out", "run", "--minutes", "5"]) is None
    assert "--minuets" in str(_wrong(["fit", "a.csv", "--out", "run", "--minuets", "5"]))
    assert "valid number" in str(_wrong(["fit", "a.csv", "--out", "run", "--minutes", "five"]))
    assert _wrong(["fti"]) == _unknown_options(["fti", "--out"]) == "no command 'fti'"
    assert _unknown_options(["fit", "CASES.csv", "--minutes"]) is None
    assert _unknown_options(["fit", "--minuets", "M"]) == "--minuets"
    assert _not_python("import anatomark\nanatomark.fit('a', 'b', minutes=1)\nanatomark.Grid.from_axes") == []
    assert _not_python("import anatomark\nanatomark.fits") == ["anatomark has no fits"]
    assert _not_python("from anatomark import Gird") == ["anatomark has no Gird"]
    assert _not_python("import nowhere_at_all") == ["no module nowhere_at_all"]
    assert "colour" in _not_python("import anatomark\nanatomark.crop(['a'], 'b', colour=1)")[0]


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_the_programs(name: str) -> None:
    page = PAGES[name]
    shown = [words for b in snippets.blocks(page) if not b.language for words in snippets.commands(b.text)]
    wrong = {" ".join(words): said for words in shown if (said := _wrong(words))}
    wrong |= {" ".join(w): said for w in snippets.inline_commands(page) if (said := _unknown_options(w))}
    assert wrong == {}


def test_commands_are_found_in_the_documentation() -> None:
    counts = {name: sum(len(list(snippets.commands(b.text))) for b in snippets.blocks(p)) for name, p in PAGES.items()}
    assert counts["README.md"] >= 5 and counts["docs/how-to/cohorts.md"] >= 1 and sum(counts.values()) > 60


def test_a_block_of_another_kind_says_so() -> None:
    known = {"", "python", "yaml", "toml", "json", "text"}
    assert {b.language for page in snippets.PAGES for b in snippets.blocks(page)} <= known


def test_data_in_blocks_can_be_read() -> None:
    read = {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}
    for page in snippets.PAGES:
        for block in snippets.blocks(page):
            data = read[block.language](block.text) if block.language in read else None
            for key, schema in SCHEMAS.items():
                if block.language == "yaml" and key in data:
                    schema.model_validate(data)


def test_what_is_installed_is_there_to_install() -> None:
    extras = tomllib.loads((snippets.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        extra
        for page in snippets.PAGES
        for part in re.findall(r"(?:anatomark|\.|whl)\[([\w,]+)\]", page.read_text(encoding="utf-8"))
        for extra in part.split(",")
    }
    assert {"serve", "test"} <= named <= set(extras)


def test_the_wheel_that_is_named_is_of_this_version() -> None:
    named = {
        w for page in snippets.PAGES for w in re.findall(r"anatomark-[\d.]+-py3", page.read_text(encoding="utf-8"))
    }
    assert named == {f"anatomark-{anatomark.__version__}-py3"}


def test_the_torch_that_is_named_is_the_one_that_was_tested() -> None:
    pinned = re.search(r"^torch==\S+$", (snippets.ROOT / "constraints.txt").read_text(), flags=re.M)
    named = {v for page in snippets.PAGES for v in re.findall(r"\btorch==[\w.]+", page.read_text(encoding="utf-8"))}
    assert pinned is not None and named <= {pinned[0]}


@pytest.mark.parametrize(("name", "text"), [pytest.param(*one, id=one[0]) for one in snippets.sources()])
def test_python_could_run(name: str, text: str) -> None:
    assert _not_python(text) == []
