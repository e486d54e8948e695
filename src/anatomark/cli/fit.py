"""``anatomark fit``."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anatomark.cli.options import (
    Device,
    Engine,
    Jobs,
    Json,
    ManyCases,
    Out,
    RayAddress,
    Threads,
    engine_of,
    print_json,
    reporter,
    stopped,
)
from anatomark.errors import InputError
from anatomark.progress import clock

if TYPE_CHECKING:
    from anatomark.training.fit import Fitted
    from anatomark.training.members import Members


def fit(
    cases: ManyCases,
    out: Out,
    method: Annotated[str | None, typer.Option(help="auto (the default), pin, t2dl ...")] = None,
    preset: Annotated[str | None, typer.Option(help="recommended or paper.")] = None,
    config: Annotated[Path | None, typer.Option(help="A config.yaml to start from.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as method.alpha=0.5 or seed=1."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train for about this long; a look at the held-out cases follows.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Train for this many steps in all.")] = None,
    init: Annotated[str | None, typer.Option(metavar="MODEL", help="Start from this model's weights.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Learn from its answers too, in images without landmarks as well."),
    ] = None,
    folds: Annotated[int, typer.Option(min=0, max=1_000_000, help="Cross-validate with this many folds first.")] = 0,
    members: Annotated[
        int | None, typer.Option(min=2, max=100, help="Train so many, from seeds of their own; --out averages them.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    device: Device = None,
    threads: Threads = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read data.")] = None,
    jobs: Jobs = None,
    engine: Engine = None,
    ray_address: RayAddress = None,
    as_json: Json = False,
) -> None:
    """Train a model; the run folder goes to --out.

    Learns from the training cases of the manifest, and chooses method and settings itself unless told.
    """
    from anatomark.model.config import make_config
    from anatomark.training.fit import fit as train
    from anatomark.training.members import fit_members

    if members is not None and folds:
        raise InputError("`members` and `folds`: give one of them; the models of folds are an ensemble too, RUN/folds")
    side = engine_of(engine, ray_address, jobs, gpu=(device or "").startswith("cuda"))
    if side is not None and not (members or folds):
        raise InputError("`jobs` and `engine` are for several trainings; give `members` or `folds`")
    given: dict[str, Any] = {"method": method, "preset": preset, "minutes": minutes, "steps": steps}
    settings = make_config(config, set_ or [], **given, device=device, threads=threads, workers=workers)
    options: dict[str, Any] = {"resume": resume, "init": init, "teacher": teacher, "engine": side}
    options["report"] = reporter(as_json)
    began = time.monotonic()
    try:
        if members is not None:
            _show_members(fit_members(cases, out, settings, members=members, **options), as_json)
            return
        fitted = train(cases, out, settings, folds=folds, **options)
    except KeyboardInterrupt:
        kept = any(next(out.rglob(name), None) for name in ("last.ckpt", "weights.safetensors"))
        how = "the same command with --resume goes on from the last checkpoint" if kept else "nothing was saved yet"
        stopped(how)
    _show_fit(fitted, as_json, time.monotonic() - began)


def _show_members(made: Members, as_json: bool) -> None:
    facts = [_facts(one) for one in made.members]
    if as_json:
        print_json({"run": str(made.run), "members": facts})
        return
    for one in facts:
        error = f"validation {one['validation_mm']:.3f} mm" if "validation_mm" in one else "finished before"
        typer.echo(f"{one['run']}: {error}")
    typer.echo(f"model: {made.run}  (averages its {len(facts)} members)")
    typer.echo(f"next: anatomark predict {quote(str(made.run))} IMAGE... --out DIR")


def _facts(fitted: Fitted) -> dict[str, Any]:
    facts = {"run": str(fitted.run), "seconds": round(fitted.seconds, 1), "independent": fitted.independent}
    if fitted.validation is not None:
        facts["validation_mm"] = round(fitted.validation.selection_mm(), 4)
    return facts


def _show_fit(fitted: Fitted, as_json: bool, took: float) -> None:
    from anatomark.io.atomic import read_json

    facts = _facts(fitted)
    if as_json:
        print_json(facts)
        return
    if "validation_mm" in facts:
        where = "" if fitted.independent else " on augmented copies (not independent)"
        typer.echo(f"validation error{where}: {facts['validation_mm']:.3f} mm")
    typer.echo(f"took {clock(took)}, with the last validation")
    typer.echo(f"model: {fitted.run}  (card: {fitted.run / 'card.md'}, log: {fitted.run / 'log.csv'})")
    if read_json(fitted.run / "calibration.json").get("unproven"):
        typer.echo("next: more time (--minutes) or more cases, into another --out; this model flags all that it finds")
    else:
        typer.echo(f"next: anatomark predict {quote(str(fitted.run))} IMAGE... --out DIR")
