"""The documentation's code runs, its links lead somewhere, its commands and options are those of the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anatomark import methods
from anatomark.model.align.aligner import AlignConfig
from anatomark.model.config import RunConfig
from anatomark.model.refine.refiner import RefineConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
COMMANDS = ROOT / "docs" / "reference" / "commands.md"
RUN = ("docs/concepts/coordinates.md",)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def _documented() -> dict[str, str]:
    sections = re.split(r"^## anatomark ", COMMANDS.read_text(encoding="utf-8"), flags=re.M)[1:]
    return {section.split()[0]: section for section in sections}


def _help(*arguments: str) -> str:
    wide = {**os.environ, "COLUMNS": "250", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "anatomark", *arguments, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=wide).stdout


def _options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help"}


@pytest.mark.parametrize("page", RUN)
def test_code_of_a_page_runs(page: str) -> None:
    blocks = _blocks(ROOT / page)
    assert blocks
    assert all("assert " in block for block in blocks)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_code_of_every_page_is_python(page: Path) -> None:
    for block in _blocks(page):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_holds_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("pip install")]
    assert commands == [
        "pip install -c constraints.txt . && anatomark demo",
        "pip install -c constraints.txt '.[test]' && pytest",
    ]


def test_every_command_has_a_section() -> None:
    listed = _help()
    for command in _documented():
        assert re.search(rf"^\W*{command}\b", listed, flags=re.M), command


@pytest.mark.parametrize("command", sorted(_documented()))
def test_a_commands_options_are_documented_and_real(command: str) -> None:
    table = "\n".join(re.findall(r"^\| *`(--[^`]*)`", _documented()[command], flags=re.M))
    assert _options(table) == _options(_help(command))


def _rows(page: str, heading: str = "") -> set[str]:
    """The keys in the first column of the tables under a heading of a reference page, or before the first one."""
    text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    part = re.split(r"^## ", text.split(f"## {heading}\n")[1] if heading else text, flags=re.M)[0]
    return {key for cell in re.findall(r"^\| *(`[^|]*)\|", part, flags=re.M) for key in re.findall(r"`([^`]*)`", cell)}


def test_every_setting_of_a_run_is_documented() -> None:
    fields = set(RunConfig.model_fields) - {"method", "align", "refine"}
    assert fields == {k for k in _rows("settings.md") if "." not in k}
    assert set(AlignConfig.model_fields) == _rows("settings.md", "The alignment")
    assert set(RefineConfig.model_fields) == _rows("settings.md", "The refiner")


# test modules put methods of their own into the table
OURS = [m for m, classes in methods.TABLE.items() if str(classes[0]).startswith("anatomark.")]


@pytest.mark.parametrize(
    ("method", "preset"), [(m, p) for m in OURS for p in methods.presets(m) if p in ("recommended", "paper")]
)
def test_every_setting_and_preset_of_a_method_is_documented(method: str, preset: str) -> None:
    assert set(methods.find(method, preset).Config.model_fields) == _rows("methods.md", f"{method}, {preset}")
    text = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8").split("## ")[0]
    assert all(f"`{p}`" in text for p in methods.presets(method))
