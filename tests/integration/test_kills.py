"""Whatever kills a command between two files, the same command again ends as an undisturbed one would."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from anatomark.cli import app as cli
from anatomark.demo import _is_demo
from anatomark.errors import InputError
from anatomark.io import claim
from anatomark.io.atomic import write_text
from anatomark.io.claim import LOCK, claimed
from anatomark.training import loop

tiny.register()
TIMES = re.compile(r'"[a-z_]*(seconds|memory)[a-z_]*": [^,\n]*,?|\d+(\.\d+)? (s|min)\b|\b\d+:\d\d\b')
PLANES = "planes: {one: {through: [a, b, c], size_mm: 8}}"
MEASURES = "measurements: {ab: {distance: [a, b], classes: [{name: near, below: 5}, {name: far, at_least: 5}]}}"


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0)


def _killed(at: int, *arguments: object) -> bool:
    """Run a command in a process that ends, as if killed, just before the ``at``-th file (or folder) appears; whether
    it came to that."""
    pid = os.fork()
    if pid == 0:
        count, code = itertools.count(1), 1

        def counted(work: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *a: os._exit(9) if next(count) == at else work(*a)

        os.replace, os.rename = counted(os.replace), counted(os.rename)
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


def _tree(folder: Path) -> dict[str, bytes | str]:
    """What lies in a folder, but for seconds and memory, and the digests of files that tell them."""
    out: dict[str, bytes | str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in (".json", ".md"):
            out[name] = TIMES.sub("", path.read_text())
        elif path.suffix == ".csv" and "seconds" in path.read_text().split("\n", 1)[0]:
            out[name] = re.sub(r"\d+\.\d+(?=,|$)", "", path.read_text())  # these are the floats of a log
        else:
            out[name] = b"" if path.suffix == ".html" or path.name == "SHA256SUMS" else path.read_bytes()
    return out


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies in 3D and 2D, a model of each, and its predictions in 3D."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "planes.yaml").write_text(PLANES)
    (folder / "measures.yaml").write_text(MEASURES)
    for ndim in (2, 3):
        tiny.write_study(folder / f"d{ndim}", 5, ndim, ("train", "train", "val", "test", "test"), size=16)
        assert _run("fit", folder / f"d{ndim}" / "cases.csv", "--out", folder / f"m{ndim}", "--method", "tiny",
                    "--steps", 4, "--workers", 0, "--json") == 0  # fmt: skip
    assert _run("predict", folder / "m3", folder / "d3" / "cases.csv", "--out", folder / "predictions") == 0
    return folder


COMMANDS = {
    "predict": "predict {h}/m3 {h}/d3/cases.csv --out {o}",
    "predict 2D": "predict {h}/m2 {h}/d2/case0.png {h}/d2/case1.png --spacing 2 --out {o} --pictures",
    "predict anew": "predict {h}/m3 {h}/d3/cases.csv --out {o} --overwrite",
    "evaluate": "evaluate {h}/m3 {h}/d3/cases.csv --out {o}",
    "crop": "crop {h}/d3/cases.csv --split test --out {o}",
    "planes": "planes {h}/planes.yaml {h}/d3/cases.csv --split test --out {o}",
    "measure": "measure {h}/measures.yaml {h}/d3/cases.csv --landmarks {h}/predictions --truth --out {o}/t.csv",
    "register": "register case0 {h}/d3/cases.csv --out {o}",
    "simulate": "simulate {h}/d3/cases.csv --count 3 --points 4 --include-originals --out {o}",
    "plan": "plan {h}/d3/cases.csv --out {o}",
    "calibrate": "calibrate {h}/m3 {h}/d3/cases.csv --out {o}/calibrated",
    "fit": "fit {h}/d3/cases.csv --out {o} --method tiny --steps 6 --folds 2 --workers 0 --resume",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_between_two_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    appeared = []
    for rename in ("replace", "rename"):
        work = getattr(os, rename)
        monkeypatch.setattr(os, rename, lambda *a, work=work: (appeared.append(a), work(*a)))
    command = COMMANDS[name].format(h=home, o=tmp_path / "out").split()
    assert _run(*command) == 0
    expected, before, n = _tree(tmp_path / "out"), _tree(home), len(appeared)
    for at in sorted({1, 2, n // 3, 2 * n // 3, n} if name in ("predict", "fit") else {max(1, n // 2), n}):
        if name != "predict anew":
            shutil.rmtree(tmp_path / "out")
        assert _killed(at, *command)
        assert _run(*command) == 0, f"refused after a kill before file {at}"
        assert _tree(tmp_path / "out") == expected, f"differs after a kill before file {at}"
    assert _tree(home) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(claim, "WAIT_S", 0.0)
    out = tmp_path / "out"
    taken = {"measure": out / "t.csv", "calibrate": out / "calibrated", "plan": out / "config.yaml"}
    with claimed(taken.get(name, out), beside=name in taken):
        assert _run(*COMMANDS[name].format(h=home, o=out).split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --out {taken.get(name, out)}: another run ({os.getpid()} on " in error
    assert not [p for p in out.rglob("*") if p.is_file()]


def test_a_killed_run_holds_no_lock_even_where_a_process_of_it_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "WAIT_S", 0.0)
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        with claimed(tmp_path / "out"):
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
                signal.pause()
            os._exit(9)
    os.waitpid(pid, 0)
    left = int(os.read(read, 20))
    try:
        assert (tmp_path / "out" / LOCK).exists()
        with claimed(tmp_path / "out"), pytest.raises(InputError, match="another run"), claimed(tmp_path / "out"):
            pass
    finally:
        os.kill(left, signal.SIGKILL)


def test_what_was_written_is_known_until_it_is_changed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claimed(tmp_path):
        write_text(tmp_path / "a" / "half.txt", "ours")
        raise KeyError
    with claimed(tmp_path) as now:
        assert now.unfinished(tmp_path / "a" / "half.txt") and not now.unfinished(tmp_path / "b.txt")
        (tmp_path / "a" / "half.txt").write_text("corrected")
        assert not now.unfinished(tmp_path / "a" / "half.txt")
    with claimed(tmp_path) as now:  # the list goes with the first run that comes to its end
        assert not now.written
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_half_done_case_of_an_earlier_version_is_done_again(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("predict", home / "m3", home / "d3" / "cases.csv", "--out", out)
    assert _run(*command) == 0
    whole = out / "case2.mrk.json"
    (out / "case1.json").unlink()
    whole.write_text(whole.read_text() + " ")  # of a finished case: corrected by hand, so to say
    before = whole.read_text()
    assert _run(*command) == 0
    assert (out / "case1.json").exists() and whole.read_text() == before


@pytest.mark.parametrize("corrected", [True, False])
def test_a_file_of_the_users_is_kept(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], corrected: bool
) -> None:
    out, command = tmp_path / "out", ("predict", home / "m3", home / "d3" / "cases.csv", "--out", tmp_path / "out")
    assert _run(*command) == 0
    (out / "case1.json").unlink()
    mine = out / "case1.mrk.json"
    text = mine.read_text()
    if corrected:
        facts = json.loads(text)
        facts["markups"][0]["controlPoints"][0]["position"][0] += 1.0
        mine.write_text(json.dumps(facts, indent=2))
    else:
        mine.write_text(re.sub(r"p=0\.\d+[^\"]*", "", text))
    text = mine.read_text()
    capsys.readouterr()
    assert _run(*command) == (0 if corrected else 2)
    said = capsys.readouterr()
    if corrected:  # the case is done, and what was there is kept beside it
        assert "perhaps corrected by hand: it is kept as case1.earlier.mrk.json" in said.out + said.err
        assert (out / "case1.earlier.mrk.json").read_text() == text and (out / "case1.json").exists()
    else:
        assert "is a result of another model or image" in said.err
        assert mine.read_text() == text and not (out / "case1.json").exists()


def test_pictures_are_added_without_touching_what_was_corrected(home: Path, tmp_path: Path) -> None:
    command = ("predict", home / "m3", home / "d3" / "case0.nii.gz", "--out", tmp_path / "out")
    assert _run(*command) == 0
    mine = tmp_path / "out" / "case0.mrk.json"
    mine.write_text(mine.read_text().replace('"locked": false', '"locked": true'))
    before = _tree(tmp_path)
    assert _run(*command, "--pictures") == 0
    after = _tree(tmp_path)
    assert after.pop("out/case0.png") and after == before


@pytest.mark.parametrize("name", ["predictions/case3.mrk.json", "errors.csv", "report.html", "planes.csv"])
def test_evaluate_replaces_nothing_of_the_users(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    mine = tmp_path / "out" / name
    write_text(mine, "mine")
    assert _run(*COMMANDS["evaluate"].format(h=home, o=tmp_path / "out").split()) == 2
    assert f"{mine}: exists already; add --overwrite" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_simulated_cases_that_were_changed_are_kept(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("simulate", home / "d2" / "cases.csv", "--count", 1, "--out", tmp_path / "out")
    assert _run(*command) == 0
    table = tmp_path / "out" / "cases.csv"
    table.write_text(table.read_text() + "more,x.png,x.csv,test,2;2,case0\n")
    before = table.read_text()
    assert _run(*command) == 2
    assert "cases.csv: was changed since it was written" in capsys.readouterr().err
    assert table.read_text() == before


def test_a_plan_replaces_its_own_config_alone(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, config = ("plan", home / "d3" / "cases.csv", "--out", tmp_path), tmp_path / "config.yaml"
    assert _run(*command) == _run(*command) == 0
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    assert _run(*command) == 2
    assert "is not as plan wrote it" in capsys.readouterr().err and "seed: 1" in config.read_text()


def test_a_demo_killed_before_its_first_file_may_begin_again(tmp_path: Path) -> None:
    for name, ours in ((LOCK, True), (".tmp-7-x-cases.csv", True), ("notes.txt", False)):
        (tmp_path / name).touch()
        assert _is_demo(tmp_path) == ours
