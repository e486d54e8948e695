"""Runs an example, a notebook or a script with cells (``# %%``), and shows it as Markdown with pictures.

An example runs in an empty folder, in a Python of its own. What it gave is kept, by its text and the package's, so that
only what changed runs anew.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from traitlets.config import Config

import anatomark

MOST_SECONDS = 900  # of one cell
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Shown:
    """An example as a page: its Markdown, and the pictures that this names, in order."""

    markdown: str
    pictures: list[Path]


def shown(source: Path, kept: Path) -> Shown:
    """The page of an example. ``kept``: a folder for what examples gave."""
    folder = kept / f"{source.stem}-{_key(source)}"
    page = folder / "page.md"
    if not page.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(_page(executed(source), folder, source.stem), encoding="utf-8")
    return Shown(page.read_text(encoding="utf-8"), sorted(folder.glob("*.png")))


def executed(source: Path) -> Any:
    """The notebook with its outputs. Raises CellExecutionError where a cell fails."""
    notebook = _read(source)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        settings = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}})  # no port is opened
        where = {"metadata": {"path": folder}}
        options = {"timeout": MOST_SECONDS, "kernel_name": "python3", "coalesce_streams": True}
        NotebookClient(notebook, resources=where, config=settings, **options).execute()
    return notebook


def _read(source: Path) -> Any:
    if source.suffix == ".ipynb":
        return nbformat.read(source, as_version=4)
    return of_script(source.read_text(encoding="utf-8"))


def of_script(text: str) -> Any:
    """A notebook of a script: its docstring first, then cells; ``# %% [markdown]`` begins one of commented text."""
    head, *cells = re.split(r"^# %%", text, flags=re.M)
    made = [new_markdown_cell(ast.get_docstring(ast.parse(head)) or "")]
    for cell in cells:
        kind, _, body = cell.partition("\n")
        if kind.strip() == "[markdown]":
            made.append(new_markdown_cell(re.sub(r"^# ?", "", body, flags=re.M).strip()))
        else:
            made.append(new_code_cell(body.strip()))
    return new_notebook(cells=made, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def _page(notebook: Any, folder: Path, stem: str) -> str:
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code" and cell.source:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_output(output, folder, stem) for output in cell.outputs]
    return "\n\n".join(part for part in parts if part) + "\n"


def _output(output: Any, folder: Path, stem: str) -> str:
    """What a cell printed in a block, a picture as a file; the values of last lines are not shown."""
    if output.output_type == "stream":
        text = ANSI.sub("", output.text).rstrip()
        return f"```{{.text .no-copy}}\n{text}\n```" if text else ""
    data = output.get("data", {})
    if "image/png" in data:
        number = len(list(folder.glob("*.png"))) + 1
        picture = folder / f"{stem}-{number:02d}.png"
        picture.write_bytes(base64.b64decode(data["image/png"]))
        return f"![]({picture.name})"
    return ""


def _key(source: Path) -> str:
    """Changes with the example, with what runs it, and with the package."""
    package = sorted(Path(anatomark.__file__).parent.rglob("*.py"))
    whole = hashlib.sha256()
    for path in (source, Path(__file__), *package):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]
