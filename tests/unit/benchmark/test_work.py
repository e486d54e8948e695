"""Cells: when what is there is refused, what a sitting leaves in the record, and which evaluations are taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from anatomark.benchmark import work
from anatomark.benchmark.cells import Cell, asked, fingerprint, plan_cells
from anatomark.benchmark.results import fewer_landmarks, read_result
from anatomark.benchmark.run import benchmark
from anatomark.benchmark.suite import read_suite
from anatomark.benchmark.work import State, state_of
from anatomark.errors import InputError
from anatomark.evaluation.predictions import peak_memory_gb
from anatomark.io.atomic import read_json, write_json
from anatomark.progress import Reporter

tiny.register()
QUIET = Reporter(quiet=True)
TWO_OF_EACH = ("train", "train", "test", "test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_study(tmp_path / "study", 4, splits=TWO_OF_EACH)
    (tmp_path / "there").mkdir()
    return tmp_path


def _cells(folder: Path, **changes: Any) -> list[Cell]:
    methods = {"a": {"method": "tiny"}, "given": {"run": "there"}, "measured": {"evaluation": "there"}}
    suite = {"data": {"study": {"manifest": "study/cases.csv"}}, "methods": methods, "steps": 5, **changes}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return plan_cells(read_suite(path), path, folder / "out")


def _begun(cell: Cell, **more: Any) -> None:
    write_json(cell.folder / work.RECORD, {"schema": 1, "hash": fingerprint(cell.key), "key": cell.key, **more})


def test_a_cell_is_refused_after_its_landmarks_or_spacing_changed(folder: Path) -> None:
    cell = _cells(folder)[0]
    _begun(cell, inputs=cell.inputs)
    assert state_of(_cells(folder)[0]) is State.BEGUN
    marks, table = folder / "study" / "case3.mrk.json", folder / "study" / "cases.csv"
    text, rows = marks.read_text(), table.read_text()
    marks.write_text(text + " ")
    with pytest.raises(InputError, match=r"study/a/seed0: the suite or its data .*\(landmarks\.case3: "):
        state_of(_cells(folder)[0])
    marks.write_text(text)
    head, *lines = rows.splitlines()  # whose last column is the spacing, blank for 3D
    table.write_text("\n".join([head, *(f"{line}2" for line in lines)]))
    with pytest.raises(InputError, match=r"\(spacing\.case0: None to 2"):
        state_of(_cells(folder)[0])
    _begun(cell)  # as earlier versions wrote it
    assert state_of(_cells(folder)[0]) is State.BEGUN


def test_threads_and_device_belong_to_what_is_measured_here(folder: Path) -> None:
    trained, given, measured = _cells(folder, threads=1)
    assert given.inputs["threads"] == 1 and "threads" not in measured.inputs and trained.key["threads"] == 1
    _begun(given, inputs=given.inputs)
    with pytest.raises(InputError, match="threads: 1 to 2"):
        state_of(_cells(folder, threads=2)[1])


@pytest.mark.parametrize(
    ("changes", "device"), [({}, "auto"), ({"device": "mps"}, "mps"), ({"set": {"device": "mps"}}, "mps")]
)
def test_training_and_evaluation_are_given_the_same_device(folder: Path, changes: dict[str, Any], device: str) -> None:
    cell = _cells(folder, **changes)[0]
    assert cell.config is not None and asked(cell.config).get("device", "auto") == device
    assert "--device" not in work._fit_command(cell)  # the config counts
    command = work._evaluate_command(cell)
    assert command[command.index("--device") + 1] == device


def test_commands_name_what_differs_from_the_defaults(folder: Path) -> None:
    cell = _cells(folder, threads=2, methods={"a": {"method": "tiny", "folds": 3, "init": "zoo-name"}})[0]
    config, run = cell.folder / "config.yaml", cell.run
    command = ["fit", str(cell.manifest), "--config", str(config), "--out", str(run)]
    assert work._fit_command(cell) == [*command, "--folds", "3", "--init", "zoo-name"]
    (run / "folds" / "1").mkdir(parents=True)
    (run / "folds" / "1" / "config.yaml").touch()
    assert work._fit_command(cell) == [*command, "--resume", "--folds", "3", "--init", "zoo-name"]
    assert work._evaluate_command(cell)[-4:-2] == ["--threads", "2"]
    measured = _cells(folder, methods={"given": {"predictions": "there"}}, steps=None)[0]
    assert work._evaluate_command(measured) == [
        "evaluate", str(folder / "there"), str(cell.manifest), "--out", str(measured.evaluation), "--split", "test"
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says it of a child")
def test_the_peak_of_a_child_is_its_own(folder: Path) -> None:
    ours = peak_memory_gb()
    assert ours is not None and ours > 0.1  # torch is loaded here
    peaks = [0.001]
    with open(folder / "log", "wb") as log:
        code = work._run(
            [sys.executable, "-S", "-c", "import time; x = bytearray(30_000_000); time.sleep(0.5)"], log, peaks
        )
    assert code == 0 and len(peaks) == 2 and 0.03 < peaks[1] < 0.08


def test_a_killed_child_says_so_and_an_old_line_of_the_log_is_no_reason(folder: Path) -> None:
    cell = _cells(folder)[0]
    cell.folder.mkdir(parents=True)
    log = folder / "log"
    log.write_text("error: of an earlier sitting\n")
    with open(log, "ab") as file:
        code = work._run([sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"], file, [])
    assert work._why(code, log, 0) == "killed by signal 9 (often: out of memory)"
    assert work._why(3, log, log.stat().st_size) == "ended with code 3"
    assert work._why(3, log, 0) == "of an earlier sitting"


def test_an_interrupted_sitting_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = _cells(folder)[0]
    cell.folder.mkdir(parents=True)

    def interrupted(command: list[str], log: Any, peaks: list[float]) -> int:
        peaks.append(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work._step(cell, "fit", [], {"fit": {"wall_seconds": 100.0, "peak_memory_gb": 0.2}}, QUIET)
    facts = read_json(cell.folder / work.RECORD)["fit"]
    assert facts["wall_seconds"] >= 100 and facts["peak_memory_gb"] == 0.5


def test_a_cells_process_ends_with_its_benchmark(folder: Path) -> None:
    child = "import runpy, sys, time; sys.argv = ['x']; runpy.run_module = lambda *a, **k: time.sleep(60)"
    code = f"{child}; from anatomark.benchmark.child import main; main()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert process.stdin is not None
        process.stdin.close()  # as the system does for a benchmark that is killed
        assert process.wait(20) == 1


def test_tables_that_are_not_of_a_benchmark_are_kept(folder: Path) -> None:
    suite = folder / "suite.yaml"
    _cells(folder)
    (folder / "out").mkdir()
    (folder / "out" / "results.csv").write_text("mine")
    with pytest.raises(InputError, match=r"results\.csv: exists already, and .* holds no benchmark"):
        benchmark(suite, folder / "out", tables_only=True)
    assert (folder / "out" / "results.csv").read_text() == "mine"


def _evaluation(
    folder: Path, split: str = "test", cases: tuple[str, ...] = ("case2", "case3"), labels: str = "ab"
) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"truth": "x", "split": split, "seconds_per_case": 1.0}))
    rows = [f"{c},{n},located,1,0,0,1" for c in cases for n in labels]
    (folder / "errors.csv").write_text("\n".join(["case,label,outcome,dx_mm,dy_mm,dz_mm,score", *rows]))
    (folder / "per_case.csv").write_text("\n".join(["case,seconds", *(f"{c},2" for c in cases)]))


def test_evaluations_that_are_there_must_be_of_the_split_and_all_its_cases(folder: Path) -> None:
    cell, there = _cells(folder)[2], folder / "there"
    _evaluation(there)
    taken = read_result(cell)
    assert taken is not None and taken.figures.mre_mm == 1 and taken.case_seconds == {"case2": 2, "case3": 2}
    for changes, said in (
        ({"split": "val"}, "is of split 'val', not 'test'"),
        ({"cases": ("case2",)}, "lacks 1 of the 2 cases of split 'test', such as 'case3'"),
        ({"cases": ("case1", "case2", "case3")}, "case 'case1' is not in split"),
    ):
        _evaluation(there, **changes)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=said):
            read_result(cell)
    _evaluation(there)
    for text, said in (
        ("name,seconds\ncase2,2", "has no column 'case'"),
        ("case,seconds\ncase2,2s", "row 2: seconds '2s'"),
    ):
        (there / "per_case.csv").write_text(text)
        with pytest.raises(InputError, match=said):
            read_result(cell)


def test_results_of_fewer_landmarks_are_named(folder: Path) -> None:
    for name, labels in (("all", "abc"), ("few", "ab")):
        _evaluation(folder / name, labels=labels)
    found = [read_result(c) for c in _cells(folder, methods={n: {"evaluation": n} for n in ("all", "few")}, steps=None)]
    assert fewer_landmarks([r for r in found if r]) == ["study/few/seed0 scores 2 of 3 landmarks."]
