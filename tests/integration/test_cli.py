"""The command line from end to end with a small method."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from anatomark import __version__
from anatomark.cli import app as cli
from anatomark.doctor import Check, Examination
from anatomark.io.landmarks import read_landmarks

tiny.register()


class Commands:
    """Runs the command line in this process and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self.capsys, self.out, self.err = capsys, "", ""

    def __call__(self, *arguments: object) -> int:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main([str(a) for a in arguments])
        said = self.capsys.readouterr()
        self.out, self.err = said.out, said.err
        return int(exit.value.code or 0)

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


def test_the_whole_loop(run: Commands, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 7, splits=["train"] * 5 + ["val", "test"])
    model, found, measured = tmp_path / "model", tmp_path / "found", tmp_path / "measured"
    assert run("fit", study, "--out", model, "--method", "tiny", "--steps", 60, "--set", "license=CC0") == 0
    assert "validation error: " in run.out
    assert str(model) in run.out
    assert "rough" in run.err
    assert "CC0" in (model / "card.md").read_text()
    assert run("predict", model, tmp_path / "data" / "case6.nii.gz", "--out", found, "--pictures") == 0
    assert re.search(rf"1 of 1 predicted: {found}\n[01] of 1 are flagged for review\n", run.out)
    image = tmp_path / "data" / "case6.nii.gz"
    assert run.out.splitlines()[-1] == f"next: anatomark review {found} {image} --model {model} --out CORRECTED"
    assert {p.name for p in found.iterdir()} == {"case6.mrk.json", "case6.json", "case6.png"}
    assert run("evaluate", model, study, "--out", measured, "--json") == 0
    by_model = run.json()
    assert (measured / "report.html").exists()
    assert run("evaluate", found, study, "--out", tmp_path / "again", "--thresholds", "1, 750.5") == 0
    assert "report.html" in run.out
    assert f"{by_model['mre_mm']:.3f}" in run.out and "mean position" in run.out
    assert "SDR 1, 750.5 mm" in run.out and run.out.count("success detection rate") == 1
    assert "no landmark was found within" not in run.out
    assert run("evaluate", found, study, "--out", tmp_path / "fine", "--thresholds", "1e-9,1e-8") == 0
    assert "no landmark was found within 1e-08 mm; --thresholds sets other distances" in run.out
    assert run("evaluate", found, study, "--out", tmp_path / "wide", "--thresholds", "1e6,2e6") == 0
    near = re.search(r"distances are wide for these errors; --thresholds (\S+),\S+,\S+ would tell more", run.out)
    assert near and float(near[1]) == pytest.approx(by_model["median_mm"], rel=0.5)
    assert "next: see the worst case in the report, case6, first at " in run.out
    assert json.loads((measured / "summary.json").read_text()) == by_model
    assert run("convert", found / "case6.mrk.json", tmp_path / "x.fcsv") == 0
    assert read_landmarks(tmp_path / "x.fcsv").names == ("a", "b", "c")
    assert run("convert", found / "case6.mrk.json", tmp_path / "x.fcsv") == 2
    assert "--overwrite" in run.err


def test_a_program_can_read_the_results(run: Commands, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 2)
    assert run("fit", study, "--out", tmp_path / "m", "--method", "tiny", "--steps", 2, "--json") == 0
    fitted = run.json()
    assert fitted["run"] == str(tmp_path / "m")
    assert fitted["independent"] is False
    assert run.err == ""
    assert run("predict", tmp_path / "m", tmp_path / "data", "--out", tmp_path / "p", "--json") == 0
    assert [r["state"] for r in run.json()] == ["written", "written"]
    assert run("zoo", "--json") == 0
    assert isinstance(run.json(), list)
    assert run("convert", tmp_path / "p" / "case0.mrk.json", tmp_path / "x.fcsv", "--json") == 0
    assert run.json() == {"file": str(tmp_path / "x.fcsv"), "landmarks": ["a", "b", "c"], "defined": 3, "notes": []}


def test_flags_are_counted_of_cases_finished_before_too(run: Commands, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "a b", 3)
    assert run("fit", study, "--out", tmp_path / "m", "--method", "tiny", "--steps", 2) == 0
    assert run("predict", tmp_path / "m", study.parent, "--out", tmp_path / "p") == 0
    for k, flags in enumerate([["low score: a"], [], []]):
        file = tmp_path / "p" / f"case{k}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"flagged": bool(flags), "flags": flags}))
    (tmp_path / "p" / "case2.json").unlink()
    (tmp_path / "p" / "case2.mrk.json").unlink()
    assert run("predict", tmp_path / "m", study.parent, "--out", tmp_path / "p") == 0
    made = json.loads((tmp_path / "p" / "case2.json").read_text())["flagged"]
    assert "case0: finished before; low score: a" in run.out
    assert f"{1 + made} of 3 are flagged for review" in run.out
    given = f"'{study.parent}' --model {tmp_path / 'm'}"
    assert f"next: anatomark review {tmp_path / 'p'} {given} --out CORRECTED" in run.out


def test_the_command_that_is_suggested_says_the_same_of_the_images(run: Commands, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "a b", 3, ndim=2)
    assert run("fit", study, "--out", tmp_path / "my model", "--method", "tiny", "--steps", 2) == 0
    assert run.out.splitlines()[-1].startswith(("next: more time", f"next: anatomark predict '{tmp_path}/my model'"))
    images = [study.parent / f"case{k}.png" for k in range(3)]
    assert run("predict", tmp_path / "my model", *images, "--out", tmp_path / "p", "--spacing", "2;2") == 0
    given = shlex.split(run.out.splitlines()[-1])
    assert given == ["next:", "anatomark", "review", str(tmp_path / "p"), *map(str, images), "--spacing", "2;2",
                     "--model", str(tmp_path / "my model"), "--out", "CORRECTED"]  # fmt: skip


def test_why_a_single_image_failed_is_said_once(run: Commands, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 2)
    assert run("fit", study, "--out", tmp_path / "m", "--method", "tiny", "--steps", 2) == 0
    (tmp_path / "broken.nii.gz").write_text("this is text")
    assert run("predict", tmp_path / "m", tmp_path / "broken.nii.gz", "--out", tmp_path / "p") == 2
    assert run.err.count("broken.nii.gz") == 1 and "next:" not in run.out


def test_one_failed_image_is_told_and_the_exit_code_says_so(run: Commands, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 2)
    assert run("fit", study, "--out", tmp_path / "m", "--method", "tiny", "--steps", 2) == 0
    broken = tmp_path / "data" / "broken.nii.gz"
    broken.write_text("this is text")
    images = [broken, tmp_path / "data" / "case0.nii.gz"]
    assert run("predict", tmp_path / "m", *images, "--out", tmp_path / "p") == 2
    assert "1 of 2 images failed: broken" in run.err
    assert (tmp_path / "p" / "case0.mrk.json").exists()
    assert not list((tmp_path / "p").glob("broken*"))


def test_version_and_help(run: Commands) -> None:
    assert run("--version") == 0
    assert run.out.strip() == f"anatomark {__version__}"
    assert run("--help") == 0
    for command in ("demo", "plan", "fit", "predict", "evaluate", "convert", "zoo", "doctor"):
        assert f"  {command} " in run.out
        assert Commands(run.capsys)(command, "--help") == 0


def test_a_demo_that_is_stopped_says_what_is_kept(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        (tmp_path / "d" / "run" / "last.ckpt").parent.mkdir(parents=True)
        (tmp_path / "d" / "run" / "last.ckpt").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr("anatomark.demo.fit", interrupted)
    assert run("demo", "--out", tmp_path / "d") == 130
    assert str(tmp_path / "d" / "run") in run.err and "goes on" in run.err


def test_a_command_that_is_stopped_says_so(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anatomark.training.plan.plan", interrupted)
    assert run("plan", "cases.csv") == 130
    assert run.err == "stopped; the same command can be given again\n"


def test_doctor(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("doctor") == 0
    assert f"anatomark  {__version__}" in run.out
    assert run("doctor", "--json") == 0
    assert run.json()["usable"] is True
    broken = Examination([Check("torch", "cannot be loaded", "pip install torch", needed=True)])
    monkeypatch.setattr("anatomark.doctor.examine", lambda: broken)
    assert run("doctor") == 2
    assert "pip install torch" in run.err


def test_a_program_that_starts_the_service_is_told_where_it_is(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setattr("anatomark.serve.start.serve", lambda *given: given[3]("http://127.0.0.1:1/"))
    assert run("serve", "brain-afids", "--port", 0, "--json") == 0
    assert run.json() == {"url": "http://127.0.0.1:1/"}
    assert run("serve", "brain-afids", "--port", 0) == 0
    assert run.out.startswith("anatomark is at http://127.0.0.1:1/")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(shell: str) -> None:
    asked = {"bash": {"COMP_WORDS": "anatomark pl", "COMP_CWORD": "1"}}.get(shell, {})
    variables = {"_ANATOMARK_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "anatomark pl",
                 "_TYPER_COMPLETE_FISH_ACTION": "get-args", **asked}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "anatomark"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert {"plan", "planes"} <= set(re.findall(r"\w+", done.stdout)), done.stderr
    assert "predict" not in done.stdout


def test_usage_errors_have_exit_code_2(run: Commands) -> None:
    assert run("fit") == 2
    assert run("nonsense") == 2
    assert run("predict", "m", "i", "--out", "o", "--format", "xyz") == 2
    assert "xyz" in run.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fit c.csv", "anatomark fit: Missing option '--out'"),
        ("predct", "No such command 'predct'"),
        ("fit c.csv --out o --stepz 3", "--stepz"),
        ("fit c.csv --out o --steps 1.5", "--steps"),
        ("fit c.csv --out o --steps 99999999999999999999", "steps: Input should be less than or equal to 1000000000"),
        ("fit c.csv --out o --minutes nan", "minutes: Input should be a finite number"),
        ("fit c.csv --out o --set method.warp_mm=.inf", "warp_mm is inf; give a finite number"),
        ("fit c.csv --out o --set seed=-1", "seed"),
        ("fit c.csv --out o --workers 99999", "workers"),
        ("predict m i --out o --threads 100000", "--threads"),
        ("predict m i --out o --threads 99999999999999999999", "--threads"),
        ("predict m i --out o --tta 0", "--tta"),
        ("plan c.csv --minutes inf", "--minutes inf: give a number above 0 to 1,000,000"),
        ("simulate c.csv --out o --count 0", "count 0: give a number from 1 to 1,000,000"),
        ("crop c.csv --out o --pad nan", "--pad nan: give a number from"),
        (f"evaluate {'x' * 5000} c.csv --out o", "File name too long"),
    ],
)
def test_what_no_command_can_take_is_one_line(run: Commands, line: str, said: str) -> None:
    assert run(*line.split()) == 2
    assert said in run.err and len(run.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [("status", ""), ("evaluate", "m", "c.csv", "--out", ""), ("predict", "m", "", "--out=o"), ("demo", "--out=")],
)
def test_an_empty_argument_is_not_the_folder_at_hand(run: Commands, arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2
    assert "an argument is empty" in run.err and ("--out: " in run.err) == ("--out" in run.err)


def test_our_own_faults_are_one_line_with_a_hint(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny.write_study(tmp_path / "data", 2)

    def broken(self: tiny.Tiny, batch: Any, stage: Any) -> Any:
        raise ZeroDivisionError("halves of nothing")

    monkeypatch.setattr(tiny.Tiny, "loss", broken)
    arguments = ("fit", study, "--method", "tiny", "--steps", 2)
    assert run(*arguments, "--out", tmp_path / "m") == 1
    assert "error: ZeroDivisionError: halves of nothing" in run.err
    assert "--debug" in run.err and "Traceback" not in run.err
    with pytest.raises(ZeroDivisionError):
        cli.main([*map(str, arguments), "--out", str(tmp_path / "n"), "--debug"])


def test_the_program_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "anatomark", "convert", "no-such.csv", "x.fcsv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: no-such.csv: no such file"
    assert done.stdout == ""


def test_help_is_instant() -> None:
    """It loads nothing that takes long: what a command works with is imported when it runs."""
    code = (
        "import sys; sys.argv = ['anatomark', '--help']\n"
        "try: import anatomark.__main__ as m; getattr(m, 'main', lambda: None)()\n"
        "except SystemExit: pass\n"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & set(%r)), file=sys.stderr)"
    ) % ["torch", "numpy", "scipy", "matplotlib", "pydantic", "PIL", "jinja2"]
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Commands" in done.stdout or "predict" in done.stdout
    assert done.stderr.strip() == "[]"
