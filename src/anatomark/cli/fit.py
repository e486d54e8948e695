"""``anatomark fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anatomark.cli.options import Device, Json, ManyCases, Out, Threads, print_json, reporter, stopped

if TYPE_CHECKING:
    from anatomark.training.fit import Fitted


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
    minutes: Annotated[float | None, typer.Option(help="Train for about this long.")] = None,
    steps: Annotated[int | None, typer.Option(help="Train for this many steps in all.")] = None,
    init: Annotated[str | None, typer.Option(metavar="MODEL", help="Start from this model's weights.")] = None,
    folds: Annotated[int, typer.Option(min=0, max=1_000_000, help="Cross-validate with this many folds first.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    device: Device = None,
    threads: Threads = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read data.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model; the run folder goes to --out.

    Learns from the training cases of the manifest, and chooses method and settings itself unless told.
    """
    from anatomark.model.config import make_config
    from anatomark.training.fit import fit as train

    given: dict[str, Any] = {"method": method, "preset": preset, "minutes": minutes, "steps": steps}
    settings = make_config(config, set_ or [], **given, device=device, threads=threads, workers=workers)
    try:
        fitted = train(cases, out, settings, resume=resume, init=init, folds=folds, report=reporter(as_json))
    except KeyboardInterrupt:
        kept = (out / "last.ckpt").exists()
        how = "the same command with --resume goes on from the last checkpoint" if kept else "nothing was saved yet"
        stopped(how)
    _show_fit(fitted, as_json)


def _show_fit(fitted: Fitted, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "run": str(fitted.run),
        "seconds": round(fitted.seconds, 1),
        "independent": fitted.independent,
    }
    if fitted.validation is not None:
        facts["validation_mm"] = round(fitted.validation.selection_mm(), 4)
    if as_json:
        print_json(facts)
        return
    if "validation_mm" in facts:
        kind = "validation" if fitted.independent else "validation on augmented copies (not independent)"
        typer.echo(f"{kind}: mean error {facts['validation_mm']:.3f} mm")
    typer.echo(f"model: {fitted.run}  (card: {fitted.run / 'card.md'}, log: {fitted.run / 'log.csv'})")
    typer.echo(f"next: anatomark predict {fitted.run} IMAGE... --out DIR")
