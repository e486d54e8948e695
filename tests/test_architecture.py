"""What holds for the whole code base: layers, lazy imports, no prints, no machine's paths, docstrings, sizes.

Each check reads every file and names all that offend it.
"""

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
import yaml

import anatomark

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "anatomark"
MODULES = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
TREES = {name: ast.parse(text) for name, text in sorted(MODULES.items())}
TEXTS = {".cfg", ".csv", ".j2", ".html", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
HEAVY = ("torch", "matplotlib", "SimpleITK", "lightning", "lightning_fabric")
MACHINE = re.compile(
    r"(?<![\w.])/(?:work|home|Users|root|opt|mnt)/[\w.-]+"  # an absolute path of somebody's machine
    r"|[\w.-]*(?:pypi|artifactory|nexus)[\w-]*\.[\w.-]+/"  # a package index
    r"|--(?:extra-)?index-url(?! https://download\.pytorch\.org/)",  # PyTorch's own is everybody's
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ELSEWHERE = {"benchmark/provenance.py", "doctor.py"}  # the options of other programs
MOST_LINES = 350
LONG_METHOD = 8  # lines from which on a public method says in a docstring what it does


def _loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nimport json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


LEARNING = ("training/", "methods/pin/spaces.py", "tools/simulate/")  # where seconds of imports do not matter


def test_predicting_imports_no_optimiser() -> None:
    imports = re.compile(r"torch\.optim|from torch import .*\boptim\b")
    assert [n for n, text in MODULES.items() if imports.search(text) and not n.startswith(LEARNING)] == []


def _texts() -> Iterator[Path]:
    for top in ("src", "tests", "docs", "studies", "zoo-research", "website", ".ci", ".github"):
        yield from (p for p in sorted((ROOT / top).rglob("*")) if p.suffix in TEXTS or p.parent.name == ".ci")
    yield from (p for p in sorted(ROOT.iterdir()) if p.is_file() and p.suffix in TEXTS)


def _prints(tree: ast.Module) -> list[int]:
    """Lines that print."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]


def _undocumented(tree: ast.Module) -> list[str]:
    """A module, public classes and functions, and public methods of more than a few lines, that have no docstring."""
    missing = ["the module"] if tree.body and not ast.get_docstring(tree) else []
    for node in _public(tree.body):
        missing += [] if ast.get_docstring(node) else [node.name]
        for method in _public(node.body) if isinstance(node, ast.ClassDef) else ():
            long = isinstance(method, ast.ClassDef) or (method.end_lineno or 0) - method.lineno >= LONG_METHOD
            missing += [f"{node.name}.{method.name}"] if long and not ast.get_docstring(method) else []
    return missing


def _public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def _options(tree: ast.Module) -> list[str]:
    """Words such as ``--out`` in strings and docstrings."""
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [f"{n.lineno}: {word}" for n in strings for word in OPTION.findall(n.value)]


def _tops(tree: ast.Module) -> set[str]:
    """The packages that a module imports."""
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_import_contracts_hold() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    assert program, "lint-imports comes with pip install '.[test]'"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert f"Contracts: {len(contracts)} kept, 0 broken" in done.stdout


def test_import_loads_nothing_heavy() -> None:
    assert "torch" in _loaded("import torch")  # what is loaded is seen
    assert _loaded("import anatomark; anatomark.InputError; dir(anatomark)") == set()
    assert _loaded("import anatomark.cli.app") == set()


def test_public_names_load() -> None:
    assert anatomark.__all__
    assert [name for name in anatomark.__all__ if getattr(anatomark, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = anatomark.nonsense


def test_version_is_stated_once() -> None:
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert facts["project"]["dynamic"] == ["version"]
    assert facts["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "anatomark.__version__"}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == anatomark.__version__
    assert f"## [{anatomark.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_folder_of_code_is_a_package() -> None:
    folders = {(SOURCE / name).parent for name in MODULES}
    assert [str(f) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_only_the_command_line_prints() -> None:
    silent = {name: tree for name, tree in TREES.items() if not name.startswith("cli/") and name != "demo.py"}
    assert {name: lines for name, tree in silent.items() if (lines := _prints(tree))} == {}


def test_what_is_public_has_a_docstring() -> None:
    assert {name: missing for name, tree in TREES.items() if (missing := _undocumented(tree))} == {}


def test_core_imports_numpy_and_torch_only() -> None:
    allowed = {"numpy", "torch", "anatomark", *sys.stdlib_module_names}
    core = {name: _tops(tree) - allowed for name, tree in TREES.items() if name.startswith("core/")}
    assert core and {name: more for name, more in core.items() if more} == {}


def test_no_file_is_long() -> None:
    lines = {name: len(text.splitlines()) for name, text in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_options_are_named_by_the_command_line_alone() -> None:
    others = {n: _options(tree) for n, tree in TREES.items() if not n.startswith("cli/") and n not in ELSEWHERE}
    assert {name: words for name, words in others.items() if words} == {}


def test_no_file_names_a_machines_path_or_a_package_index() -> None:
    offending = []
    for path in _texts():
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := MACHINE.search(line):
                offending.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert offending == []


def test_the_checks_find_what_they_look_for() -> None:
    long = "\n".join(f"        self.x = {i}" for i in range(LONG_METHOD))
    source = f"""
import os.path
from yaml import load
class A:
    '''What it is.'''
    def short(self): return 1
    def _private(self):
{long}
    def long(self):
{long}
class B: pass
def f(): print("give --out", "a--b", "--")
"""
    tree = ast.parse(source)
    assert _undocumented(tree) == ["the module", "A.long", "B", "f"]
    assert _prints(tree) == [len(source.splitlines())]
    assert [word.split()[1] for word in _options(tree)] == ["--out"]
    assert _tops(tree) == {"os", "yaml"}
    lines = ["/work/main/x.py", "see /home/me/data", "https://pypi.example.org/simple", "--index-url x"]
    assert all(map(MACHINE.search, lines)) and not MACHINE.search("docs/work/x.md")
    assert not MACHINE.search("pip install torch --index-url https://download.pytorch.org/whl/cpu")


def test_the_workflows_try_every_python_and_system_that_is_promised() -> None:
    read = {p.name: yaml.safe_load(p.read_text()) for p in (ROOT / ".github" / "workflows").glob("*.yml")}
    matrix = read["tests.yml"]["jobs"]["tests"]["strategy"]["matrix"]
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [c.rpartition(" ")[2] for c in facts["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert matrix["python"] == named and facts["requires-python"] == f">={named[0]},<3.{int(named[-1][2:]) + 1}"
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    steps = [step for flow in read.values() for job in flow["jobs"].values() for step in job["steps"]]
    scripts = {part for step in steps for part in re.findall(r"python (\S+\.py)", step.get("run", ""))}
    assert scripts and all((ROOT / script).is_file() for script in scripts)
