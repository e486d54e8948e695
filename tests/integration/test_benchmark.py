"""anatomark benchmark: cells in processes of their own, resumed after a kill, one failing beside others that go on."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tiny
from anatomark.benchmark.run import Benchmarked, benchmark
from anatomark.benchmark.work import State
from anatomark.errors import InputError
from anatomark.progress import Reporter

QUIET = Reporter(quiet=True)
METHODS: dict[str, Any] = {"wide": {"method": "tiny"}, "narrow": {"method": "tiny", "set": {"method.width": 2}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study, and ``tiny`` installed as another package's method, so that the cells' processes know it too."""
    plugin = tmp_path / "plugin" / "tiny_method-1.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-method\nVersion: 1\n")
    (plugin / "entry_points.txt").write_text("[anatomark.methods]\ntiny = tiny:Tiny\n")
    for place in (plugin.parent, Path(tiny.__file__).parent):
        monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny.write_study(tmp_path / "study", 7, splits=("train",) * 3 + ("val",) + ("test",) * 3)
    return tmp_path


def _suite(folder: Path, **changes: Any) -> Path:
    suite = {"data": {"study": {"manifest": "study/cases.csv", "thresholds": [1, 500]}}, "methods": METHODS}
    path = folder / "suite.yaml"
    path.write_text(
        yaml.safe_dump({**suite, "steps": 60, "threads": 1, "baseline": "wide", **changes}, sort_keys=False)
    )
    return path


def _run(folder: Path, **options: Any) -> Benchmarked:
    return benchmark(folder / "suite.yaml", folder / "out", report=QUIET, **options)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _located(path: Path) -> dict[tuple[str, str], float]:
    return {(r["case"], r["label"]): float(r["error_mm"]) for r in _rows(path) if r["error_mm"]}


@pytest.mark.slow
def test_cells_tables_failures_and_changes(folder: Path) -> None:
    broken = {"method": "tiny", "init": "no-such-model"}
    _suite(folder, methods={**METHODS, "broken": broken})
    done = _run(folder)
    assert list(done.failed) == ["study/broken/seed0"]
    assert "no-such-model" in done.failed["study/broken/seed0"]
    assert [str(s) for s in done.states.values()] == ["finished", "finished", "failed"]
    out = folder / "out"
    rows = _rows(out / "results.csv")
    assert [r["method"] for r in rows] == ["wide", "narrow"]
    for row in rows:
        summary = json.loads((out / "study" / row["method"] / "seed0" / "evaluation" / "summary.json").read_text())
        assert float(row["mre_mm"]) == pytest.approx(summary["mre_mm"], rel=1e-4)
        assert [float(row[k]) for k in ("ci_low_mm", "ci_high_mm")] == pytest.approx(summary["mre_ci95_mm"], rel=1e-4)
        assert row["steps"] == "60"
        assert float(row["sdr_500"]) == pytest.approx(1 - int(row["failures"]) / 9, abs=1e-5)
        assert float(row["train_seconds"]) > 0 and float(row["seconds_per_image"]) > 0
        assert 0.05 < float(row["train_memory_gb"]) < 20 and 0.05 < float(row["predict_memory_gb"]) < 20
    assert int(rows[0]["parameters"]) > int(rows[1]["parameters"])
    assert len(_rows(out / "per_case.csv")) == 6
    (pair,) = _rows(out / "paired.csv")
    assert (pair["method"], pair["against"]) == ("wide", "narrow")
    mine, theirs = (_located(out / "study" / m / "seed0" / "evaluation" / "errors.csv") for m in ("wide", "narrow"))
    by_case: dict[str, list[float]] = {}
    for key in mine.keys() & theirs.keys():
        by_case.setdefault(key[0], []).append(mine[key] - theirs[key])
    assert int(pair["cases"]) == len(by_case) and int(pair["pairs"]) == sum(map(len, by_case.values()))
    difference = np.mean([np.mean(d) for d in by_case.values()])
    assert float(pair["difference_mm"]) == pytest.approx(difference, abs=1e-3)
    methods = _rows(out / "methods.csv")
    assert float(methods[0]["error_ratio"]) == 1
    assert float(methods[1]["error_ratio"]) == pytest.approx(1 / float(pair["ratio"]), rel=1e-4)
    table = (out / "table.md").read_text()
    assert "| wide |" in table and "study/broken/seed0 (failed)" in table
    assert (out / "study.png").read_bytes()[:4] == b"\x89PNG"
    facts = json.loads((out / "benchmark.json").read_text())
    assert facts["cells"]["study/wide/seed0"] == "finished" and facts["machine"]["versions"]["torch"]
    record = json.loads((out / "study" / "wide" / "seed0" / "cell.json").read_text())
    assert record["commit"] == facts["commit"] and len(record["inputs"]["landmarks"]) == 7
    assert done.minutes == {"study/wide/seed0": 0, "study/narrow/seed0": 0, "study/broken/seed0": None}

    # what is finished is not done again; what failed is tried again and takes its repaired settings in a new folder
    before = {p: p.stat().st_mtime_ns for p in out.rglob("weights.safetensors")}
    again = _run(folder, only=["wide", "narrow"])
    assert set(again.states.values()) == {State.FINISHED} and not again.failed
    assert {p: p.stat().st_mtime_ns for p in out.rglob("weights.safetensors")} == before
    _suite(folder, steps=70)
    with pytest.raises(
        InputError, match=r"study/wide/seed0: the suite or its data have changed .*config\.steps: 60 to 70"
    ):
        _run(folder)

    # results that are there join a table of their own
    _suite(folder, methods={**METHODS, "both": {"ensemble": ["wide", "narrow"], "tta": 2}})
    averaged = _run(folder, only=["both"])
    assert averaged.states == {"study/both/seed0": State.FINISHED}
    last = _rows(out / "results.csv")[-1]
    assert last["method"] == "both" and last["steps"] == "120"
    assert int(last["parameters"]) == sum(int(r["parameters"]) for r in rows)
    methods = {
        "recorded": {"evaluation": "out/{data}/wide/seed{seed}/evaluation", "run": "out/{data}/wide/seed{seed}/run"},
        "found": {"predictions": "out/study/narrow/seed0/evaluation/predictions"},
    }
    _suite(folder, methods=methods, baseline="recorded", steps=None)
    joined = benchmark(folder / "suite.yaml", folder / "joined", report=QUIET)
    assert not joined.failed
    shown = _rows(folder / "joined" / "results.csv")
    assert [r["mre_mm"] for r in shown] == [r["mre_mm"] for r in rows]
    assert [r["parameters"] for r in shown] == [rows[0]["parameters"], ""]


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["benchmark and cell", "benchmark alone"])
def test_after_kill_9_the_cell_goes_on(folder: Path, killed: str) -> None:
    _suite(folder, methods={"wide": METHODS["wide"]}, steps=400)
    out, run = folder / "out", folder / "out" / "study" / "wide" / "seed0" / "run"
    code = (
        "import sys, tiny; from anatomark.benchmark.run import benchmark;"
        f"benchmark({str(folder / 'suite.yaml')!r}, {str(out)!r})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True) as process:
        try:
            until = time.monotonic() + 120
            while not (run / "plan.json").exists() and time.monotonic() < until:
                time.sleep(0.01)
            assert (run / "plan.json").exists()
        finally:
            kill = os.killpg if killed == "benchmark and cell" else os.kill
            kill(process.pid, signal.SIGKILL)
    assert not (run / "weights.safetensors").exists()
    done = _run(folder)  # the cell's own process has ended with its benchmark
    assert done.states == {"study/wide/seed0": State.FINISHED}
    (row,) = _rows(out / "results.csv")
    assert row["steps"] == "400"
