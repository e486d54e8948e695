"""The method of ``docs/how-to/add-a-method.md``, as the page has it."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "add-a-method.md"


def code() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    return block


def install(folder: Path) -> Path:
    """Write the module, and what pip writes for its entry point, into ``folder``."""
    (entry,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    group, name, target = re.fullmatch(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "([\w:]+)"\n', entry).groups()  # type: ignore[union-attr]
    facts = folder / "glance-1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: glance\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    (folder / "glance.py").write_text(code())
    return folder / "glance.py"


def load(path: Path) -> Any:
    spec = spec_from_file_location("glance_of_the_page", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
