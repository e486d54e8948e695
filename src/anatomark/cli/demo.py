"""``anatomark demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import Json, Out, reporter, show

DEMO_MINUTES = "ANATOMARK_DEMO_MINUTES"  # default budget of the demo


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
