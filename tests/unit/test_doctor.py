"""What ``doctor`` says is missing is missing, and what it advises is a command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anatomark import doctor as module
from anatomark import machine
from anatomark.doctor import Check, Examination, examine, extra, lacking, packages, parse


def test_requirements_are_read() -> None:
    assert parse("numpy>=1.26") == ("numpy", "1.26", "")
    assert parse('python-multipart>=0.0.18; extra == "serve"') == ("python-multipart", "0.0.18", "serve")
    assert parse("anatomark[serve] ; extra == 'test'") == ("anatomark", "", "test")
    assert parse("ray[default]<3,>=2.30; extra == 'ray'") == ("ray", "2.30", "ray")


def test_what_is_missing_or_old_is_named_with_the_command() -> None:
    assert lacking("numpy", "1.0") == ""
    assert lacking("numpy", "999.0").endswith("is older than 999.0")
    assert lacking("no-such-package", "") == "no-such-package is missing"
    found = packages([("numpy", "999.0", ""), ("no-such-package", "", ""), ("pyyaml", "6.0", "")])
    assert found.needed and found.remedy == "pip install 'numpy>=999.0' no-such-package"
    assert packages([("numpy", "1.0", "")]).remedy == ""
    part = extra("serve", [("no-such-package", "1", "serve"), ("nor-this", "", "other")])
    assert part.remedy == "pip install 'anatomark[serve]'" and not part.needed
    assert "no-such-package is missing" in part.found and "nor-this" not in part.found


def test_this_machine_can_be_used() -> None:
    found = examine()
    assert found.broken == []
    assert found.lines()[-1] == "anatomark can be used here"
    told = found.summary()
    assert told["usable"] and {"packages", "processor", "memory", "GPU", "browser", "writing"} <= set(told["checks"])


def test_without_a_needed_thing_it_cannot_be_used() -> None:
    lines = Examination([Check("a", "there"), Check("torch", "cannot be loaded", "pip install torch", True)]).lines()
    assert lines == ["a      there", "torch  cannot be loaded", "       needed: pip install torch"]
    useless = Examination([Check("browser", "none", "install chromium")])
    assert useless.broken == [] and useless.summary()["usable"]


def test_no_browser_is_said_and_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER", raising=False)
    assert module.browser().remedy and not module.browser().needed
    (tmp_path / "firefox").write_text("#!/bin/sh\n")
    (tmp_path / "firefox").chmod(0o755)
    assert module.browser().found == "firefox"


def test_a_folder_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "fonts"))
    assert module.writing().remedy == ""
    refused = tmp_path / "fonts"
    monkeypatch.setattr(module, "_writable", lambda folder: folder != refused)
    found = module.writing()
    assert str(refused) in found.found and "MPLCONFIGDIR" in found.remedy and not found.needed


def test_a_folder_to_be_made_is_judged_by_the_one_above(tmp_path: Path) -> None:
    assert module._writable(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists() and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    assert not module._writable(tmp_path / "file")


def test_missing_models_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.anatomark, "__file__", str(tmp_path / "__init__.py"))
    found = module.bundled()
    assert found.needed and str(tmp_path) in found.found and found.remedy


def test_a_containers_limits_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.usable_cores() == 64
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores() == 64
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert machine.usable_cores() == 2
    assert machine.idle_cores(0.05) in (0, 1, 2)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("400000000\n")
    total, free = machine.memory_gb()
    assert total == 1.0 and (free is None or 0 < free <= 0.6)


@pytest.mark.parametrize(("idle", "cores"), [((0.0, 0.0), 0), ((100.0, 100.0), 4), ((50.0, 100.0), 2)])
def test_busy_cores_are_not_free(monkeypatch: pytest.MonkeyPatch, idle: tuple[float, float], cores: int) -> None:
    seen = iter([(1000.0, 5000.0), (1000.0 + idle[0], 5100.0)] * 2)
    monkeypatch.setattr(machine, "_idle_time", lambda: next(seen))
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert machine.idle_cores(0.0) == cores
    assert machine.free_cores() == max(1, cores)
