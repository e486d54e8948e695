"""The ``anatomark`` command. Imports stand inside the commands, so that ``--help`` is instant.

Exit codes: 0 done, 2 bad input or usage (one clear line), 1 our fault.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from anatomark import __version__
from anatomark.cli.benchmark import benchmark
from anatomark.cli.calibrate import calibrate
from anatomark.cli.crop import crop
from anatomark.cli.measure import measure as take_measures
from anatomark.cli.options import (
    Cases,
    Device,
    Json,
    Out,
    Overwrite,
    Spacing,
    Threads,
    Views,
    reporter,
    show,
    spell_options,
)
from anatomark.cli.planes import planes
from anatomark.cli.register import register
from anatomark.errors import InputError

if TYPE_CHECKING:
    from anatomark.model.predict import Outcome
    from anatomark.training.fit import Fitted

REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
REFUSALS |= {errno.ENOTDIR, errno.EISDIR}
DEMO_MINUTES = "ANATOMARK_DEMO_MINUTES"  # default budget of the demo

app = typer.Typer(
    help="Find anatomical landmarks in 2D and 3D medical images. For research, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Format(StrEnum):
    """Landmark files that ``predict`` writes."""

    MRK = "mrk.json"
    FCSV = "fcsv"
    CSV = "csv"


class LabelFrom(StrEnum):
    """Where ``convert`` takes the names from."""

    LABEL = "label"
    DESCRIPTION = "description"


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Options of all commands."""
    if version:
        typer.echo(f"anatomark {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit()


@app.command()
def demo(
    out: Out = Path("anatomark-demo"),
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, envvar=DEMO_MINUTES, help="Training budget instead of a fixed number of steps."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The whole loop on the bundled brain: fit, predict, evaluate, report."""
    from anatomark.demo import demo as run_demo

    result = run_demo(out, minutes=minutes, report=reporter(as_json))
    show(result, as_json)


@app.command()
def plan(
    cases: Cases,
    out: Annotated[Path | None, typer.Option("--out", help="Write the suggested config here.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Training time to plan for.")] = None,
    as_json: Json = False,
) -> None:
    """Look at the data: spacing, extent, poses, landmark spread, suspect annotations; suggest a config.yaml."""
    from anatomark.training.plan import plan as look

    show(look(cases, out, minutes=minutes), as_json)


@app.command()
def fit(
    cases: Cases,
    out: Out,
    method: Annotated[str | None, typer.Option(help="auto (the default), pin, t2dl ...")] = None,
    preset: Annotated[str | None, typer.Option(help="recommended or paper.")] = None,
    config: Annotated[Path | None, typer.Option(help="A config.yaml to start from.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as method.alpha=0.5 or seed=1."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for about this long.")] = None,
    steps: Annotated[int | None, typer.Option(help="Train for this many steps in all.")] = None,
    init: Annotated[str | None, typer.Option(metavar="MODEL", help="Start from its weights.")] = None,
    folds: Annotated[int, typer.Option(min=0, help="Cross-validate first, with this many folds.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    device: Device = None,
    threads: Threads = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read data.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model on the manifest's training cases; the run folder goes to --out."""
    from anatomark.model.config import make_config
    from anatomark.training.fit import fit as train

    given: dict[str, Any] = {"method": method, "preset": preset, "minutes": minutes, "steps": steps}
    settings = make_config(config, set_ or [], **given, device=device, threads=threads, workers=workers)
    try:
        fitted = train(cases, out, settings, resume=resume, init=init, folds=folds, report=reporter(as_json))
    except KeyboardInterrupt:
        kept = (out / "last.ckpt").exists()
        how = "the same command with --resume goes on from the last checkpoint" if kept else "nothing was saved yet"
        typer.echo(f"stopped; {how}", err=True)
        raise typer.Exit(130) from None
    _show_fit(fitted, as_json)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or zoo name; A+B: averaged.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, folders or a manifest.")],
    out: Out,
    spacing: Spacing = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Draw the landmarks into a PNG as well.")] = False,
    format: Annotated[Format, typer.Option("--format", help="Of the landmark files.")] = Format.MRK,
    tta: Views = 1,
    device: Device = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the landmarks in new images."""
    from anatomark.io.frames import parse_spacing
    from anatomark.model.ensemble import described_cost
    from anatomark.model.predict import load, predict_paths

    mm = parse_spacing(spacing, "--spacing") if spacing is not None else None
    trained = load(model, device, threads, tta)
    report = reporter(as_json)
    if cost := described_cost(trained):
        report.say(cost)
    if trained.licence:
        report.say(f"licence of the model {trained.name}: {trained.licence}")
    outcomes = predict_paths(
        trained, images, out, spacing=mm, pictures=pictures, format=format, overwrite=overwrite, report=report
    )
    _show_predictions(outcomes, out, as_json)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL|PREDICTIONS", help="Run folder, zoo name, A+B, predictions.")],
    cases: Cases,
    out: Out,
    split: Annotated[str | None, typer.Option(help="train, val or test; default test, else val.")] = None,
    truth: Annotated[str | None, typer.Option(help="Which observer, or mean of all.")] = None,
    planes: Annotated[
        str | None, typer.Option(metavar="DEFINITION", help="Angle and offset errors of these scan planes too.")
    ] = None,
    tta: Views = 1,
    device: Device = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a model, or a folder of predictions, against the manifest's landmarks: tables and report.html."""
    from anatomark.evaluation.evaluate import chosen_model
    from anatomark.evaluation.evaluate import evaluate as measure
    from anatomark.tools.planes.errors import plane_lines

    used = chosen_model(model, device, threads, tta)
    result = measure(
        used, cases, out, split=split, truth=truth, planes=planes, overwrite=overwrite, progress=reporter(as_json)
    )
    if as_json:
        typer.echo(json.dumps(result.summary(), indent=2))
        return
    for line in summary_lines(result.summary()) + plane_lines(result.tables.get("scan planes", ())):
        typer.echo(line)
    typer.echo(f"report: {out / 'report.html'}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Landmark file; table.csv#observer picks one.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".mrk.json, .fcsv, .csv, .tsv or .json")],
    case: Annotated[str | None, typer.Option(help="Which case of a table that holds many.")] = None,
    frame: Annotated[str | None, typer.Option(help="LPS, RAS or image, where IN does not say.")] = None,
    unit: Annotated[str | None, typer.Option(help="mm or px, where IN does not say.")] = None,
    spacing: Spacing = None,
    label_from: Annotated[LabelFrom, typer.Option("--label-from", help="What the names are.")] = LabelFrom.LABEL,
    overwrite: Overwrite = False,
) -> None:
    """Convert between landmark formats."""
    from anatomark.io.frames import parse_spacing
    from anatomark.io.landmarks import convert as run_convert

    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; add --overwrite to replace it")
    mm = parse_spacing(spacing, "--spacing") if spacing is not None else None
    written = run_convert(source, target, case=case, frame=frame, unit=unit, spacing=mm, label_from=label_from)
    typer.echo(f"{len(written)} landmarks, {int(written.defined.sum())} of them defined: {target}")


@app.command()
def simulate(
    cases: Cases,
    out: Out,
    count: Annotated[int, typer.Option(help="How many new cases.")],
    points: Annotated[int, typer.Option(help="Landmarks to add, spread over the foreground.")] = 0,
    reference: Annotated[str | None, typer.Option(metavar="CASE", help="Where points are spread.")] = None,
    include_originals: Annotated[bool, typer.Option("--include-originals", help="List the real cases too.")] = False,
    split: Annotated[str, typer.Option(help="Make them from train, val or test cases.")] = "train",
    seed: Annotated[int, typer.Option(help="Another seed, other cases.")] = 0,
    amplitude_mm: Annotated[float | None, typer.Option(help="Largest displacement of the warp.")] = None,
    wavelength_mm: Annotated[float | None, typer.Option(help="From one swing of the warp to the next.")] = None,
    rotation_deg: Annotated[float, typer.Option(help="Largest rotation.")] = 10.0,
    scale: Annotated[float, typer.Option(help="Largest change of size, 0.05 is 5 %.")] = 0.05,
    intensity: Annotated[float, typer.Option(help="Contrast, uneven gain, noise; 0 changes no value.")] = 0.5,
    as_json: Json = False,
) -> None:
    """Make new cases from real ones: warped, turned, with another contrast; landmarks carried exactly."""
    from anatomark.tools.simulate.simulate import simulate as make

    done = make(
        cases, out, count, points=points, reference=reference, seed=seed, split=split, originals=include_originals,
        amplitude_mm=amplitude_mm, wavelength_mm=wavelength_mm, rotation_deg=rotation_deg, scale=scale,
        intensity=intensity, report=reporter(as_json),
    )  # fmt: skip
    show(done, as_json)


@app.command()
def zoo(as_json: Json = False) -> None:
    """List the trained models that come with the package."""
    from anatomark.io.atomic import read_json
    from anatomark.model.run_folder import list_zoo

    models = []
    for name, folder in list_zoo().items():
        facts = read_json(folder / "plan.json")
        models.append({"name": name, "dimension": facts["ndim"], "modality": facts["modality"], "folder": str(folder),
                       "landmarks": facts["names"]})  # fmt: skip
    if as_json:
        typer.echo(json.dumps(models, indent=2))
        return
    for m in models:
        about = f"{len(m['landmarks'])} landmarks, {m['dimension']}D {m['modality']}"
        typer.echo(f"{m['name']:<20} {about}; card: {Path(m['folder']) / 'card.md'}")
    if not models:
        typer.echo("no model is bundled with this installation; anatomark fit makes one")


for use in (planes, take_measures, register, crop, calibrate, benchmark):  # each is a file of its own
    app.command()(use)


# ---------------------------------------------------------------------- output


def _show_fit(fitted: Fitted, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "run": str(fitted.run),
        "seconds": round(fitted.seconds, 1),
        "independent": fitted.independent,
    }
    if fitted.validation is not None:
        facts["validation_mm"] = round(fitted.validation.selection_mm(), 4)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    if "validation_mm" in facts:
        kind = "validation" if fitted.independent else "validation on augmented copies (not independent)"
        typer.echo(f"{kind}: mean error {facts['validation_mm']:.3f} mm")
    typer.echo(f"model: {fitted.run}  (card: {fitted.run / 'card.md'}, log: {fitted.run / 'log.csv'})")
    typer.echo(f"next: anatomark predict {fitted.run} IMAGE... --out DIR")


def _show_predictions(outcomes: list[Outcome], out: Path, as_json: bool) -> None:
    failed = [o for o in outcomes if o.state == "failed"]
    if as_json:
        rows = [
            {"case": o.stem, "image": str(o.image), "state": o.state, "seconds": round(o.seconds, 4),
             "align_seconds": None if o.align_seconds is None else round(o.align_seconds, 4),
             "files": [str(f) for f in o.files], "flags": list(o.flags), "reason": o.reason}
            for o in outcomes
        ]  # fmt: skip
        typer.echo(json.dumps(rows, indent=2))
    else:
        for o in outcomes:
            if o.state == "written":
                said = f"{o.stem}: {o.seconds:.2f} s{_of_it_alignment(o.align_seconds)}, {o.files[0]}"
                typer.echo(said + "".join(f"; {f}" for f in o.flags))
            elif o.state == "skipped":
                typer.echo(f"{o.stem}: finished before")
        typer.echo(f"{len(outcomes) - len(failed)} of {len(outcomes)} predicted: {out}")
    if len(failed) == 1 and len(outcomes) == 1:
        raise InputError(failed[0].reason)
    if failed:
        names = ", ".join(o.stem for o in failed[:5]) + (", ..." if len(failed) > 5 else "")
        raise InputError(f"{len(failed)} of {len(outcomes)} images failed: {names}; the first: {failed[0].reason}")


def summary_lines(s: dict[str, Any]) -> list[str]:
    """The main figures of an evaluation's summary as text, comparisons (baselines, observers) below."""
    where = f"{s['model']} on {s['split']} of {s['manifest']}: {s['cases']} cases, {s['landmarks']} landmarks"
    rows = {s["model"]: s, **s["comparisons"]}
    width = max(len(name) for name in rows)
    head = f"{'':<{width}} mean mm   median   95th   missed   SDR {', '.join(s['sdr'])} mm"
    lines = [f"{where}, truth: {s['truth']}", head]
    lines += [_figures(f"{name:<{width}}", one) for name, one in rows.items()]
    if s["mre_ci95_mm"]:
        lines.append("mean, 95 % confidence over cases: {:.3f} to {:.3f} mm".format(*s["mre_ci95_mm"]))
    if s["absent"]:
        precision = "-" if s["absence_precision"] is None else f"{s['absence_precision']:.1%}"
        known = f"recall {s['absence_recall']:.1%} of {s['absent']}, precision {precision}"
        lines.append(f"absent landmarks: {known}, {s['false_absences']} false absences")
    if s["seconds_per_case"] is not None:
        lines.append(f"{s['seconds_per_case']:.2f} s per case{_of_it_alignment(s.get('align_seconds_per_case'))}")
    if flagged := s.get("review", {}).get("flagged"):
        lines.append(f"{flagged} of {s['cases']} cases are flagged for review; why: per_case.csv and the report")
    return lines + list(s["notes"])


def _of_it_alignment(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds:.2f} s of it alignment"


def _figures(name: str, s: dict[str, Any]) -> str:
    """One row of the table; nothing located gives dashes."""
    mm = [f"{s[k]:.3f}" if s[k] is not None else "-" for k in ("mre_mm", "median_mm", "p95_mm")]
    rates = ", ".join(f"{v:.1%}" if v is not None else "-" for v in s["sdr"].values())
    return f"{name} {mm[0]:>7} {mm[1]:>8} {mm[2]:>6} {s['failures']:>8}   {rates}"


# ---------------------------------------------------------------------- errors


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    try:
        app(args=given, prog_name="anatomark")
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what reads our output has gone; nothing more can be said
        sys.exit(1)
    except Exception as error:  # the last stop: everything becomes one line and an exit code
        if debug:
            raise
        typer.echo(f"error: {_line(error)}", err=True)
        sys.exit(2 if _users(error) else 1)
    sys.exit(0)


def _users(error: Exception) -> bool:
    """Whether the user can mend it: bad input, or a disk that refuses."""
    return isinstance(error, InputError) or (isinstance(error, OSError) and error.errno in REFUSALS)


def _line(error: Exception) -> str:
    if isinstance(error, InputError):
        return spell_options(str(error))
    if _users(error) and isinstance(error, OSError):
        return f"{error.filename or 'output'}: cannot be written: {error.strerror}"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first} (our fault, not yours; --debug shows the traceback)"
