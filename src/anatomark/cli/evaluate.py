"""``anatomark evaluate``."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from anatomark.cli.options import (
    Device,
    Json,
    ManyCases,
    Out,
    Overwrite,
    Threads,
    Views,
    of_it_alignment,
    print_json,
    reporter,
    spell_options,
)
from anatomark.errors import InputError, counted

NEAR = 0.5  # of the smallest distance of the SDR: with nearly all errors below, it says little


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL|PREDICTIONS", help="Run folder, zoo name, A+B, predictions.")],
    cases: ManyCases,
    out: Out,
    split: Annotated[str | None, typer.Option(help="train, val or test; default test, else val.")] = None,
    truth: Annotated[str | None, typer.Option(help="Which observer, or mean of all.")] = None,
    planes: Annotated[
        str | None, typer.Option(metavar="DEFINITION", help="Angle and offset errors of these scan planes too.")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(metavar="MM,MM,...", help="Distances of the SDR; default 2,2.5,3,4.")
    ] = None,
    tta: Views = 1,
    device: Device = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure errors against the manifest's landmarks; report.html.

    Of a model, or of a folder of predictions: tables as CSV and JSON, and the report.
    """
    from anatomark.evaluation.evaluate import THRESHOLDS_MM
    from anatomark.evaluation.evaluate import evaluate as measure
    from anatomark.model.memory import keep_freed_memory
    from anatomark.tools.planes.errors import plane_lines

    distances = THRESHOLDS_MM if thresholds is None else _distances(thresholds)
    keep_freed_memory()
    result = measure(
        model, cases, out, split=split, truth=truth, thresholds=distances, planes=planes, overwrite=overwrite,
        report=reporter(as_json), device=device, threads=threads, tta=tta,
    )  # fmt: skip
    if as_json:
        print_json(result.summary())
        return
    for line in summary_lines(result.summary()) + plane_lines(result.tables.get("scan planes", ())):
        typer.echo(spell_options(line))
    typer.echo(f"report: {out / 'report.html'}")
    if order := result.errors.ranking():
        worst, labels = result.errors.cases[order[-1]], result.worst(order[-1], 1)
        typer.echo(f"next: see the worst case in the report, {worst}, first at {labels[0]}; is the truth right there?")
        typer.echo(f"      anatomark plan {shlex.join(map(str, cases))} names annotations that are in doubt")


def summary_lines(s: dict[str, Any]) -> list[str]:
    """The main figures of an evaluation's summary as text, comparisons (baselines, observers) below."""
    many = f"{counted(s['cases'], 'case')}, {counted(s['landmarks'], 'landmark')}"
    where = f"{s['model']} on {s['split']} of {s['manifest']}: {many}"
    rows = {s["model"]: s, **s["comparisons"]}
    width = max(len(name) for name in rows)
    head = f"{'':<{width}} mean mm   median   95th   missed   SDR {', '.join(s['sdr'])} mm"
    lines = [f"{where}, truth: {s['truth']}", head]
    lines += [_figures(f"{name:<{width}}", one) for name, one in rows.items()]
    lines.append("SDR, success detection rate: share of the landmarks that were found within so many mm")
    if s["mre_ci95_mm"]:
        lines.append("mean, 95 % confidence over cases: {:.3f} to {:.3f} mm".format(*s["mre_ci95_mm"]))
    if s["absent"]:
        precision = "-" if s["absence_precision"] is None else f"{s['absence_precision']:.1%}"
        known = f"recall {s['absence_recall']:.1%} of {s['absent']}, precision {precision}"
        lines.append(f"absent landmarks: {known}, {s['false_absences']} false absences")
    if s["seconds_per_case"] is not None:
        lines.append(f"{s['seconds_per_case']:.2f} s per case{of_it_alignment(s.get('align_seconds_per_case'))}")
    if flagged := s.get("review", {}).get("flagged"):
        lines.append(f"{flagged} of {s['cases']} cases are flagged for review; why: per_case.csv and the report")
    if (mm := s["p95_mm"]) is not None and mm < NEAR * min(map(float, s["sdr"])):
        near = ",".join(f"{float(f'{share:.1g}'):g}" for share in (s["median_mm"] * k for k in (1, 2, 4)))
        others = f"`thresholds` {near} would tell more" if s["median_mm"] else "`thresholds` sets others"
        lines.append(f"the SDR's distances are wide for these errors; {others}")
    elif s["sdr"] and all(share == 0 for share in s["sdr"].values()):  # empty where nothing is annotated
        lines.append(f"no landmark was found within {max(s['sdr'], key=float)} mm; `thresholds` sets other distances")
    return lines + list(s["notes"])


def _distances(text: str) -> list[float]:
    """Raises InputError."""
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"`thresholds` {text[:40]!r}: give distances in mm, such as 0.1,0.2,0.5") from None


def _figures(name: str, s: dict[str, Any]) -> str:
    """One row of the table; nothing located gives dashes."""
    mm = [f"{s[k]:.3f}" if s[k] is not None else "-" for k in ("mre_mm", "median_mm", "p95_mm")]
    rates = ", ".join(f"{v:.1%}" if v is not None else "-" for v in s["sdr"].values())
    return f"{name} {mm[0]:>7} {mm[1]:>8} {mm[2]:>6} {s['failures']:>8}   {rates}"
