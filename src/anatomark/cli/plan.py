"""``anatomark plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import Json, ManyCases, reporter, show


def plan(
    cases: ManyCases,
    out: Annotated[Path | None, typer.Option("--out", help="Write the suggested config here.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Training time to plan for.")] = None,
    as_json: Json = False,
) -> None:
    """Look at the data before training, and suggest settings.

    Shows spacing, extent, poses and spread of the landmarks, names doubtful annotations, suggests a config.yaml.
    """
    from anatomark.training.plan import plan as look

    show(look(cases, out, minutes=minutes, report=reporter(as_json)), as_json)
