"""``anatomark demo``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from anatomark.cli.options import Json, Out, reporter, show, stopped

if TYPE_CHECKING:
    from anatomark.demo import Demonstrated

SERVE = "pip install 'anatomark[serve]'"
DEMO_MINUTES = "ANATOMARK_DEMO_MINUTES"  # default budget of the demo


def demo(
    out: Out = Path("anatomark-demo"),
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, envvar=DEMO_MINUTES, help="Train for this long, instead of a fixed number of steps."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The whole loop on two bundled brain scans, in minutes.

    Learns 32 landmarks from one brain, finds them in another, compares with the experts' points, writes a report. Says
    after a few steps how long it will take; the same command goes on where it was stopped.
    """
    from anatomark.demo import demo as run_demo
    from anatomark.demo import kept

    try:
        result = run_demo(out, minutes=minutes, report=reporter(as_json))
    except KeyboardInterrupt:
        stopped(kept(out))
    show(result, as_json)
    if not as_json:
        typer.echo("next:")
        for number, (what, command) in enumerate(what_next(result), 1):
            typer.echo(f"  {number}. {what}:\n     {command}")


def what_next(done: Demonstrated) -> list[tuple[str, str]]:
    """(what, command) of three things to do after the demo."""
    cases, model, out = (quote(str(p)) for p in (done.cases, done.model, done.cases.parent / "corrected"))
    first = "" if find_spec("fastapi") else f" (first: {SERVE})"
    return [
        ("open the report in a browser: the error of each landmark, and slices to look at", str(done.report)),
        (f"see the points in the brain, and correct them{first}",
         f"anatomark review {cases} --model {model} --out {out}"),
        ("your own data: list images and landmark files in a table, as the README shows, and let it be looked at",
         "anatomark plan cases.csv"),
    ]  # fmt: skip
