"""What holds for the whole code base: layers, lazy imports, no prints, no machine's paths, docstrings."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import anatomark

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "anatomark"
MODULES = sorted(SOURCE.rglob("*.py"))
TEXTS = {".cfg", ".csv", ".j2", ".html", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
HEAVY = ("torch", "matplotlib", "SimpleITK", "lightning", "lightning_fabric")
MACHINE = re.compile(
    r"(?<![\w.])/(?:work|home|Users|root|opt|mnt)/[\w.-]+"  # an absolute path of somebody's machine
    r"|[\w.-]*(?:pypi|artifactory|nexus)[\w-]*\.[\w.-]+/"  # a package index
    r"|--(?:extra-)?index-url",
)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nimport json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def _texts() -> Iterator[Path]:
    for top in ("src", "tests", "docs", "studies", "zoo-research", ".ci"):
        yield from (p for p in sorted((ROOT / top).rglob("*")) if p.suffix in TEXTS or p.parent.name == ".ci")
    yield from (p for p in sorted(ROOT.iterdir()) if p.is_file() and p.suffix in TEXTS)


def _public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public classes, functions and methods; not what is defined inside a function, nor overloads."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list):
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body, f"{prefix}{node.name}.")


def test_import_contracts_hold() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    assert program, "lint-imports comes with pip install '.[test]'"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert f"Contracts: {len(contracts)} kept, 0 broken" in done.stdout


def test_the_dependency_check_sees_what_is_loaded() -> None:
    assert "torch" in _loaded("import torch")


@pytest.mark.parametrize("statement", ["import anatomark", "import anatomark; anatomark.InputError; dir(anatomark)"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    assert _loaded(statement) == set()


def test_command_line_module_loads_nothing_heavy() -> None:
    assert _loaded("import anatomark.cli.app") == set()


@pytest.mark.parametrize("name", anatomark.__all__)
def test_public_names_load(name: str) -> None:
    assert getattr(anatomark, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = anatomark.nonsense


def test_version_is_stated_once() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == anatomark.__version__


def test_every_folder_of_code_is_a_package() -> None:
    folders = {p.parent for p in MODULES}
    assert [_name(f) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "cli.py"], ids=_name)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"] == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_public_thing_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    missing = [name for name, node in _public(tree.body) if not ast.get_docstring(node)]  # type: ignore[arg-type]
    if tree.body and not ast.get_docstring(tree):
        missing.insert(0, "the module")
    assert missing == []


@pytest.mark.parametrize("path", sorted((SOURCE / "core").rglob("*.py")), ids=_name)
def test_core_imports_numpy_and_torch_only(path: Path) -> None:
    tops = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add((node.module or "").split(".")[0])
    assert tops - set(sys.stdlib_module_names) <= {"numpy", "torch", "anatomark"}


def test_no_file_names_a_machines_path_or_a_package_index() -> None:
    found = []
    for path in _texts():
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := MACHINE.search(line):
                found.append(f"{_name(path)}:{number}: {match.group()}")
    assert found == []


@pytest.mark.parametrize(
    "line", ["/work/main/x.py", "see /home/me/data", "https://pypi.example.org/simple", "--index-url x"]
)
def test_the_path_check_finds(line: str) -> None:
    assert MACHINE.search(line)
