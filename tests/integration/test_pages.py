"""The tutorials on the bundled brains do what they show: tables are written, commands and Python run, in order."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest

import snippets
from anatomark.cli.app import main

BRAINS = Path("src/anatomark/zoo/brain-data")
PAGES = {  # and where the part begins that needs other data
    "docs/tutorials/brain-landmarks.md": None,
    "docs/tutorials/scan-planes.md": "## Define your own",
    "docs/tutorials/registration.md": "Without a manifest, give landmark files",
    "docs/tutorials/measurements.md": "## Your own definition",
}


def _run(words: list[str]) -> str:
    """What a command prints. It has to end well."""
    printed = io.StringIO()
    with pytest.raises(SystemExit) as end, contextlib.redirect_stdout(printed):
        main(words)
    assert end.value.code == 0, words
    return printed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_does_what_it_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(snippets.ROOT / BRAINS, tmp_path / BRAINS)
    monkeypatch.chdir(tmp_path)
    end, ran = PAGES[page], 0
    names: dict[str, object] = {}
    for block in snippets.blocks(snippets.ROOT / page):
        if end is not None and end in block.before:
            break
        if block.text.startswith("case,image"):
            (table,) = re.findall(r"[Ww]rite `([\w.]+)`[^\n]*:\s*$", block.before)
            Path(table).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), names)
        else:
            for words in snippets.commands(block.text):
                _run(words)
                ran += 1
    assert ran
