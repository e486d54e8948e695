"""The studies are scripts beside the package; here they are imported by their files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

STUDIES = Path(__file__).resolve().parents[3] / "studies"
sys.path.append(str(STUDIES))  # for what they share; last, because one has the name of a package: coverage


@pytest.fixture
def study() -> Callable[[str], ModuleType]:
    """A study's module by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"study_{name}", STUDIES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
