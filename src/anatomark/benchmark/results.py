"""The results of finished cells, read from their files: errors, time, memory, size, and the course of the training."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.benchmark.cells import Cell
from anatomark.benchmark.work import RECORD, SUMMARY
from anatomark.errors import InputError
from anatomark.evaluation.metrics import Errors, Outcome, Statistics, statistics
from anatomark.io.atomic import read_json, read_text
from anatomark.io.sheets import read_sheet
from anatomark.model.run_folder import WEIGHTS, load_run


@dataclass(frozen=True, eq=False)
class Result:
    """A finished cell. Times in seconds, memory in GB, None where not known; ``seconds`` per image (median).

    ``course``: (seconds, validation error in mm) of the training; ``case_seconds`` by case.
    """

    cell: Cell
    errors: Errors
    figures: Statistics
    truth: str
    seconds: float | None
    case_seconds: Mapping[str, float]
    train_seconds: float | None
    steps: int | None
    train_gb: float | None
    predict_gb: float | None
    parameters: int | None
    course: Sequence[tuple[float, float]]
    machine: str


def read_result(cell: Cell) -> Result | None:
    """The result of a finished cell; None where it is not finished. Raises InputError where a file is damaged, or the
    evaluation is not one of this data set's truth, split and all its cases."""
    if not (cell.evaluation / SUMMARY).exists():
        return None
    summary = read_json(cell.evaluation / SUMMARY)
    if not isinstance(summary, dict) or not {"truth", "split", "seconds_per_case"} <= summary.keys():
        raise InputError(f"{cell.name}: {cell.evaluation / SUMMARY} is no summary of evaluate")
    if cell.truth is not None and summary["truth"] != cell.truth:
        raise InputError(f"{cell.name}: {cell.evaluation}: its truth is {summary['truth']!r}, not {cell.truth!r}")
    if summary["split"] != cell.split:
        raise InputError(f"{cell.name}: {cell.evaluation}: is of split {summary['split']!r}, not {cell.split!r}")
    errors = read_errors(cell.evaluation / "errors.csv")
    wanted = [case for case, split, *_ in cell.key["cases"] if split == cell.split]
    if other := [c for c in errors.cases if c not in wanted]:
        raise InputError(f"{cell.name}: {cell.evaluation}: case {other[0]!r} is not in split {cell.split!r}")
    if missing := [c for c in wanted if c not in errors.cases]:
        raise InputError(
            f"{cell.name}: {cell.evaluation}: lacks {len(missing)} of the {len(wanted)} cases of split {cell.split!r}, "
            f"such as {missing[0]!r}"
        )
    record = read_json(cell.folder / RECORD) if (cell.folder / RECORD).exists() else {}
    machine = record.get("machine", {})
    models = [_model(run) for run in cell.runs]
    return Result(
        cell=cell,
        errors=errors,
        figures=statistics(errors, thresholds=cell.thresholds),
        truth=str(summary["truth"]),
        seconds=summary["seconds_per_case"],
        case_seconds=_case_seconds(cell.evaluation / "per_case.csv"),
        train_gb=record.get("fit", {}).get("peak_memory_gb"),
        predict_gb=summary.get("peak_memory_gb"),
        machine=", ".join(str(machine[k]) for k in ("gpu", "cpu") if machine.get(k)),
        course=models[0]["course"] if len(models) == 1 else (),
        **{k: _total([m[k] for m in models]) for k in ("train_seconds", "steps", "parameters")},
    )


def read_errors(path: Path) -> Errors:
    """``errors.csv`` of an evaluation as :class:`Errors`. Raises InputError where it is no such table."""
    sheet = read_sheet(path)
    axes = [c for c in ("dx_mm", "dy_mm", "dz_mm") if c in sheet.columns]
    missing = [c for c in ("case", "label", "outcome", "dx_mm", "dy_mm") if c not in sheet.columns]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]!r}; evaluate writes it")
    cases = tuple(dict.fromkeys(cells["case"] for _, cells in sheet.rows))
    names = tuple(dict.fromkeys(cells["label"] for _, cells in sheet.rows))
    shape = (len(cases), len(names))
    offset, outcome = np.full((*shape, len(axes)), np.nan), np.full(shape, Outcome.UNSCORED, dtype=object)
    score, radius = np.full(shape, np.nan), np.full(shape, np.nan)
    row, column = ({n: i for i, n in enumerate(group)} for group in (cases, names))
    for line, cells in sheet.rows:
        at = row[cells["case"]], column[cells["label"]]
        try:
            outcome[at] = Outcome(cells["outcome"])
            offset[at] = [_float(cells[a]) for a in axes]
            score[at], radius[at] = (_float(cells.get(k, "")) for k in ("score", "radius90_mm"))
        except ValueError as error:
            raise InputError(f"{path}: row {line}: {error}") from None
    return Errors(cases, names, offset, outcome, score, radius)


def _float(text: str) -> float:
    return float(text) if text else float("nan")


def _case_seconds(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    sheet, seconds = read_sheet(path), {}
    if "case" not in sheet.columns:
        raise InputError(f"{path}: has no column 'case'; evaluate writes it")
    for line, cells in sheet.rows:
        if not cells.get("seconds"):
            continue
        try:
            seconds[cells["case"]] = float(cells["seconds"])
        except ValueError:
            raise InputError(f"{path}: row {line}: seconds {cells['seconds']!r} is no number") from None
    return seconds


def _model(run: Path) -> dict[str, Any]:
    """Training seconds (folds included), steps, parameters and the course, of a run folder as far as it is there."""
    if not (run / WEIGHTS).exists():
        return {"train_seconds": None, "steps": None, "parameters": None, "course": ()}
    loaded = load_run(run)
    logs = [_log(p) for p in [*sorted(run.glob("folds/*/log.csv")), run / "log.csv"] if p.exists()]
    seconds = [float(rows[-1]["seconds"]) for rows in logs if rows]
    course = [(float(r["seconds"]), float(r["val_mm"])) for r in (logs[-1] if logs else []) if r["val_mm"]]
    return {
        "train_seconds": sum(seconds) if seconds else None,
        "steps": sum(loaded.config.stage_steps.values()) or None,
        "parameters": sum(p.numel() for p in loaded.build().parameters()),
        "course": tuple((s, mm) for s, mm in course if np.isfinite(mm)),
    }


def _total(values: Sequence[Any]) -> Any:
    """Over the members of an ensemble; None where one is not known."""
    return None if not values or any(v is None for v in values) else sum(values)


def _log(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    if rows and not {"seconds", "val_mm"} <= rows[0].keys():
        raise InputError(f"{path}: is no log of fit: it has no columns seconds and val_mm")
    return rows


def same_truth(results: Sequence[Result]) -> None:
    """Raises InputError where results of one data set were measured against different truths."""
    first: dict[str, Result] = {}
    for r in results:
        other = first.setdefault(r.cell.data, r)
        if r.truth != other.truth:
            raise InputError(
                f"{r.cell.name}: its truth is {r.truth!r}, that of {other.cell.name} is {other.truth!r}; set truth of "
                f"the data set, and evaluate the others anew"
            )


def fewer_landmarks(results: Sequence[Result]) -> list[str]:
    """A sentence for each result that scores fewer landmarks than others of its data set: its figures are of those."""
    most: dict[str, set[str]] = {}
    for r in results:
        most.setdefault(r.cell.data, set()).update(r.errors.names)
    return [
        f"{r.cell.name} scores {len(r.errors.names)} of {len(most[r.cell.data])} landmarks."
        for r in results
        if len(r.errors.names) < len(most[r.cell.data])
    ]


def cell_row(r: Result) -> dict[str, Any]:
    """The row of ``results.csv``: one cell, measured against one truth."""
    figures = r.figures.cells()
    shown = ["pairs", "failures", "mre_mm", "ci_low_mm", "ci_high_mm", "sd_mm", "median_mm", "p95_mm"]
    return {
        "data": r.cell.data,
        "method": r.cell.method,
        "seed": r.cell.seed,
        "truth": r.truth,
        "split": r.cell.split,
        "cases": len(r.errors.cases),
        "landmarks": len(r.errors.names),
        **{key: figures[key] for key in (*shown, *(f"sdr_{t}" for t in r.figures.sdr))},
        "seconds_per_image": r.seconds,
        "train_seconds": r.train_seconds,
        "steps": r.steps,
        "train_memory_gb": r.train_gb,
        "predict_memory_gb": r.predict_gb,
        "parameters": r.parameters,
        "machine": r.machine,
    }


def case_rows(r: Result) -> list[dict[str, Any]]:
    """The rows of ``per_case.csv``: the same, for each case."""
    error = r.errors.case_error
    return [
        {
            "data": r.cell.data,
            "method": r.cell.method,
            "seed": r.cell.seed,
            "case": case,
            "error_mm": float(error[m]) if np.isfinite(error[m]) else None,
            "failures": r.errors.failures(m),
            "seconds": r.case_seconds.get(case),
        }
        for m, case in enumerate(r.errors.cases)
    ]
