"""The code and the commands that the documentation shows, for the tests that check and run them."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SHOWN = ("docs/**/*.md", "*.md", "studies/*.md", "zoo-research/**/*.md", "slicer/**/*.md")
PAGES = sorted({path for pattern in SHOWN for path in ROOT.glob(pattern)})
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", flags=re.M | re.S)
NOT_TYPED = re.compile(r"[\[\]…]|\.\.\.|COMMAND")  # of usage lines, such as `demo [--out DIR]`


class Block(NamedTuple):
    """A fenced block of a page, its language (empty where none is named) and the text before it."""

    page: str
    language: str
    text: str
    before: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    return [Block(name, found[1], found[2], text[: found.start()]) for found in FENCE.finditer(text)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each ``anatomark ...`` in the lines of a shell, without comments, redirections and what follows."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||(?<!\|)\|(?!\|)|;", re.sub(r"(?:^|\s)#.*", "", line)):
            words = (
                shlex.split(re.sub(r"\s\d?>.*|\s&\s*$", "", part))
                if re.match(r"\s*(srun\s+)?anatomark\s", part)
                else []
            )
            if words:
                yield words[words.index("anatomark") + 1 :]


def inline_commands(page: Path) -> Iterator[list[str]]:
    """Commands with options in running text, but for usage lines with brackets and dots."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`(anatomark [^`]* --[^`]*)`", prose):
        if not NOT_TYPED.search(code):
            yield from commands(code.replace("\\|", "|").replace("\n", " "))


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of all Python that the documentation shows: blocks, the gallery, the cells of notebooks."""
    for page in PAGES:
        for number, block in enumerate(b for b in blocks(page) if b.language == "python"):
            yield f"{block.page}, block {number + 1}", block.text
    for script in sorted(DOCS.glob("gallery/*.py")):
        yield script.relative_to(ROOT).as_posix(), script.read_text(encoding="utf-8")
    for notebook in sorted(DOCS.glob("notebooks/*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield notebook.relative_to(ROOT).as_posix(), "\n\n".join(code)


def imports(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """Each module that is imported, and each name that is imported from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def public_uses(tree: ast.Module) -> set[str]:
    """The names of ``anatomark`` that are used as ``anatomark.NAME``."""
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    return {use.attr for use in uses if isinstance(use.value, ast.Name) and use.value.id == "anatomark"} - {"__file__"}


def public_calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """The calls ``anatomark.NAME(...)``."""
    for node in ast.walk(tree):
        call = node.func if isinstance(node, ast.Call) else None
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "anatomark":
            assert isinstance(node, ast.Call)
            yield call.attr, node
