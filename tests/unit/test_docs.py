"""The documentation's code runs, its links lead somewhere, its commands and options are those of the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import typer

import anatomark
from anatomark import methods
from anatomark.cli.app import app
from anatomark.model.align.aligner import AlignConfig
from anatomark.model.config import RunConfig
from anatomark.model.refine.refiner import RefineConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
COMMANDS = ROOT / "docs" / "reference" / "commands.md"
RUN = ("docs/concepts/coordinates.md",)
AUTHORS = {"anatomark.methods.base"}  # the contract, which the author of a method imports


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


def test_code_of_pages_that_show_results_runs() -> None:
    for page in RUN:
        blocks = _blocks(ROOT / page)
        assert blocks
        assert all("assert " in block for block in blocks), page
        names: dict[str, object] = {}
        for block in blocks:
            exec(compile(block, page, "exec"), names)


def test_code_of_every_page_is_python() -> None:
    assert any(_blocks(page) for page in PAGES)
    for page in PAGES:
        for block in _blocks(page):
            compile(block, str(page), "exec")


def test_pages_import_from_anatomark_alone() -> None:
    inner = {
        _name(page): set(re.findall(r"^ *(?:from|import) (anatomark\.[\w.]+)", page.read_text("utf-8"), re.M)) - AUTHORS
        for page in PAGES
    }
    assert {page: modules for page, modules in inner.items() if modules} == {}


def test_every_public_name_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    named = {re.match(r"\w+", code)[0] for code in re.findall(r"`(\w[^`\n]*)`", text)}
    assert set(anatomark.__all__) - named == set()


def test_links_lead_to_files() -> None:
    missing = []
    for page in PAGES:
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        missing += [f"{_name(page)}: {k}" for k in links if "://" not in k and not (page.parent / k).exists()]
    assert missing == []


def test_the_readme_holds_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("pip install -c constraints.txt ")]
    assert commands == [
        "pip install -c constraints.txt '.[serve]' && anatomark demo",
        "pip install -c constraints.txt '.[test]' && pytest",
    ]


def test_the_readme_installs_the_torch_of_the_constraints_from_pytorchs_own_index() -> None:
    tested = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)[1]
    command = f"pip install torch=={tested} --index-url https://download.pytorch.org/whl/cpu"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_the_reference_has_every_command_with_its_options() -> None:
    documented = _documented()
    assert set(documented) == set(typer.main.get_command(app).commands)
    wrong = {}
    for command, section in documented.items():
        table = "\n".join(re.findall(r"^\| *`(--[^`]*)`", section, flags=re.M))
        if differing := _options(table) ^ _options(_help(command)):
            wrong[command] = differing
    assert wrong == {}


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


def test_every_setting_and_preset_of_a_method_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8").split("## ")[0]
    # test modules put methods of their own into the table
    ours = [m for m, classes in methods.TABLE.items() if str(classes[0]).startswith("anatomark.")]
    assert ours
    for method in ours:
        presets = methods.presets(method)
        assert [p for p in presets if f"`{p}`" not in text] == [], method
        for preset in {"recommended", "paper"} & set(presets):
            fields = set(methods.find(method, preset).Config.model_fields)
            assert fields == _rows("methods.md", f"{method}, {preset}"), (method, preset)
