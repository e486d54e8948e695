"""Tables, comparisons and pictures of all finished cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.benchmark.provenance import commit, machine
from anatomark.benchmark.results import Result, case_rows, cell_row, fewer_landmarks
from anatomark.benchmark.suite import Suite
from anatomark.errors import counted
from anatomark.evaluation.metrics import draws, interval, ratios
from anatomark.evaluation.paired import Paired, compare_methods
from anatomark.io.atomic import write_bytes, write_json, write_text
from anatomark.io.sheets import write_csv

Row = dict[str, Any]
TABLES, TABLE = ("results.csv", "per_case.csv", "paired.csv", "methods.csv"), "table.md"
RECORD = "benchmark.json"


def table_files(suite: Suite, out: Path) -> list[Path]:
    """What :func:`write_tables` may write; ``benchmark.json`` last."""
    return [out / name for name in (*TABLES, TABLE, *(f"{data}.png" for data in suite.data), RECORD)]


def write_tables(suite: Suite, out: Path, results: Sequence[Result], states: Mapping[str, str]) -> list[Path]:
    """Everything that follows from the finished cells; returns the files. ``states`` by name of the cell."""
    grouped = {d: by_method(results, suite, d) for d in suite.data}
    compared = {d: compare_methods({m: [r.errors for r in rs] for m, rs in g.items()}) for d, g in grouped.items()}
    rows = {d: method_rows(suite, g, compared[d]) for d, g in grouped.items()}
    tables: list[list[Row]] = [
        [cell_row(r) for r in results],
        [row for r in results for row in case_rows(r)],
        [{"data": d, **vars(p)} for d, pairs in compared.items() for p in pairs],
        [row for group in rows.values() for row in group],
    ]
    for name, table in zip(TABLES, tables, strict=True):
        write_csv(out / name, table, digits=6)
    write_text(out / TABLE, "\n".join(markdown(suite, rows, states, fewer_landmarks(results))))
    pictures = [_picture(out, d, g, rows[d]) for d, g in grouped.items() if g]
    figures = {
        f"{row['data']}_{row['method']}_{key}": row[key]
        for group in rows.values()
        for row in group
        for key in ("mre_mm", "seconds_per_image", "error_ratio", "time_ratio")
        if row[key] is not None
    }
    facts = {
        "schema": 1,
        "figures": figures,
        "suite": suite.model_dump(mode="json", exclude_defaults=True),
        "cells": dict(states),
        "machine": machine(),
        "commit": commit(),
    }
    write_json(out / RECORD, facts)
    return [out / TABLE, *pictures, *(out / name for name in TABLES), out / RECORD]


def by_method(results: Sequence[Result], suite: Suite, data: str) -> dict[str, list[Result]]:
    """The results of a data set by method, in the suite's order, the seeds together."""
    own = {m: [r for r in results if (r.cell.data, r.cell.method) == (data, m)] for m in suite.methods}
    return {m: rs for m, rs in own.items() if rs}


def method_rows(suite: Suite, grouped: Mapping[str, Sequence[Result]], compared: Sequence[Paired]) -> list[Row]:
    """One row per method on one data set: means over the seeds, and how it stands to the baseline.

    ``error_ratio`` and its interval are paired (same cases and landmarks); ``time_ratio`` below 1 is faster.
    """
    base = grouped.get(suite.baseline or "")
    rows = []
    for method, runs in grouped.items():
        figures = [r.figures for r in runs]
        seeds = [f.mre_mm for f in figures if f.mre_mm is not None]
        low, high = _interval(runs) or (None, None)
        to_base = _against(method, suite.baseline, compared)
        mine, theirs = _mean([r.seconds for r in runs]), _mean([r.seconds for r in base or ()])
        rows.append(
            {
                "data": runs[0].cell.data,
                "method": method,
                "seeds": len(runs),
                "truth": runs[0].truth,
                "cases": len(runs[0].errors.cases),
                "landmarks": len(runs[0].errors.names),
                "mre_mm": _mean(seeds),
                "ci_low_mm": low,
                "ci_high_mm": high,
                "seed_sd_mm": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None,
                "median_mm": _mean([f.median_mm for f in figures]),
                **{f"sdr_{t:g}": _mean([f.sdr.get(f"{t:g}") for f in figures]) for t in runs[0].cell.thresholds},
                "failures": _mean([float(f.failures) for f in figures]),
                "seconds_per_image": mine,
                "train_minutes": _scaled(_mean([r.train_seconds for r in runs]), 1 / 60),
                "steps": _mean([r.steps for r in runs]),
                "train_memory_gb": _mean([r.train_gb for r in runs]),
                "predict_memory_gb": _mean([r.predict_gb for r in runs]),
                "parameters": _mean([r.parameters for r in runs]),
                "baseline": suite.baseline,
                **to_base,
                "time_ratio": mine / theirs if mine and theirs else None,
            }
        )
    return rows


def _interval(runs: Sequence[Result]) -> tuple[float, float] | None:
    """95 % bootstrap interval over cases: the evaluation's own, for several seeds that of the mean of their MREs, the
    cases drawn for all of them together. None for fewer than two annotated cases."""
    if len(runs) == 1:
        return runs[0].figures.mre_ci95_mm
    seeds = [r.errors for r in runs if r.figures.mre_mm is not None]
    cases = list(dict.fromkeys(c for e in seeds for m, c in enumerate(e.cases) if e.annotated[m].any()))
    drawn, means = draws(len(cases)), []
    for e in seeds:
        sums = {
            case: (np.nansum(error), np.isfinite(error).sum()) for case, error in zip(e.cases, e.error, strict=True)
        }
        total, count = np.array([sums.get(case, (0.0, 0)) for case in cases]).T
        means.append(ratios(drawn, total, count))
    return interval(np.mean(means, 0)) if len(cases) > 1 else None


def _against(method: str, baseline: str | None, compared: Sequence[Paired]) -> Row:
    """A method's error over the baseline's, with interval and corrected p."""
    keys = ("error_ratio", "ratio_low", "ratio_high", "p_holm")
    if method == baseline:
        return dict(zip(keys, (1.0, None, None, None), strict=True))
    for p in compared:
        if {p.method, p.against} == {method, baseline} and p.ratio:
            low, high = p.ratio_low, p.ratio_high
            if p.method == method:
                return dict(zip(keys, (p.ratio, low, high, p.p_holm), strict=True))
            return dict(zip(keys, (1 / p.ratio, high and 1 / high, low and 1 / low, p.p_holm), strict=True))
    return dict.fromkeys(keys)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return float(np.mean(there)) if there else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def markdown(
    suite: Suite, rows: Mapping[str, Sequence[Row]], states: Mapping[str, str], notes: Sequence[str] = ()
) -> list[str]:
    """``table.md``: a table per data set, ``notes`` on some results, and what the columns mean."""
    lines = ["# Benchmark", ""]
    for data, group in rows.items():
        if not group:
            continue
        first, entry = group[0], suite.data[data]
        where = f"{counted(first['cases'], 'case')}, {counted(first['landmarks'], 'landmark')}"
        lines += [f"## {data}", "", f"{where}, truth: {first['truth']}.", ""]
        shown = [f"{t:g}" for t in entry.thresholds]
        head = ["method", "MRE mm (95 % CI)", "median", *(f"SDR {t}" for t in shown), "missed", "s/image", "train min",
                "steps", "GB train/infer", "M par."]  # fmt: skip
        head += [f"error / {suite.baseline}", f"time / {suite.baseline}", "p"] if suite.baseline else []
        lines += [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
        lines += [f"| {' | '.join(_shown(row, shown, suite.baseline is not None))} |" for row in group]
        lines += [""]
    shown_data = {data for data, group in rows.items() if group}
    waiting = [n for n, s in states.items() if s != "finished"]
    named = [n for n in waiting if states[n] != "new" or n.split("/")[0] in shown_data]
    if named:
        lines += [f"Not in the tables: {', '.join(f'{n} ({states[n]})' for n in named)}.", ""]
    if others := len(waiting) - len(named):
        lines += [f"Not begun in other data sets: {others}.", ""]
    if notes:
        lines += [" ".join(notes), ""]
    return lines + [*NOTES, ""]


NOTES = (
    "MRE: mean over located landmarks, then over seeds; its interval is a bootstrap over cases; ± is the standard "
    "deviation between seeds. SDR: share of landmarks within so many mm, missed ones counted. s/image: median, without "
    "reading the file. GB: largest resident memory of the training's process, and of the evaluation's until its last "
    "prediction, pages of mapped files included. "
    "error, time: ratio to the baseline's, the error's on landmarks that both located, with its interval over cases. "
    "p: Wilcoxon's signed-rank test over cases, Holm-corrected over all pairs of methods of the data set "
    "(paired.csv); six cases cannot give less than 0.03 before the correction, one case gives none.",
)


def _shown(row: Row, thresholds: Sequence[str], baseline: bool) -> list[str]:
    mre = _text(row["mre_mm"], ".3f")
    mre += f" ({row['ci_low_mm']:.3f}-{row['ci_high_mm']:.3f})" if row["ci_low_mm"] is not None else ""
    mre += f" ± {row['seed_sd_mm']:.3f}, {row['seeds']} seeds" if row["seed_sd_mm"] is not None else ""
    out = [row["method"], mre, _text(row["median_mm"], ".3f")]
    out += [_text(_scaled(row[f"sdr_{t}"], 100), ".1f") for t in thresholds]
    out += [
        _text(row["failures"], ".4g"),
        _text(row["seconds_per_image"], ".3g"),
        _text(row["train_minutes"], ".1f"),
    ]
    memory = [_text(row[f"{k}_memory_gb"], ".2f") for k in ("train", "predict")]
    out += [_text(row["steps"], ".0f"), "/".join(memory), _text(_scaled(row["parameters"], 1e-6), ".2f")]
    if baseline:
        ratio = _text(row["error_ratio"], ".2f")
        ratio += f" ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})" if row["ratio_low"] is not None else ""
        out += [ratio, _text(row["time_ratio"], ".2f"), _text(row["p_holm"], ".2g")]
    return out


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _picture(out: Path, data: str, grouped: Mapping[str, Sequence[Result]], rows: Sequence[Row]) -> Path:
    from anatomark.pictures.plots import Dot, benchmark_picture

    dots = []
    for row in rows:
        if row["mre_mm"] is None:
            continue
        interval = None if row["ci_low_mm"] is None else (row["ci_low_mm"], row["ci_high_mm"])
        course = [(s / 60, mm) for s, mm in grouped[row["method"]][0].course]
        dots.append(
            Dot(row["method"], row["mre_mm"], interval, row["seconds_per_image"], row["train_minutes"],
                row["train_memory_gb"], row["predict_memory_gb"], course)
        )  # fmt: skip
    path = out / f"{data}.png"
    title = f"{data}: {counted(rows[0]['cases'], 'case')}, truth {rows[0]['truth']}"
    write_bytes(path, benchmark_picture(title, dots, next(iter(grouped.values()))[0].cell.split))
    return path
