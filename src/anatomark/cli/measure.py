"""``anatomark measure``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import From, Json, Overwrite, Split, show


def measure(
    definition: Annotated[str, typer.Argument(metavar="DEFINITION", help="YAML file, or a ready definition's name.")],
    cases: Annotated[
        list[Path], typer.Argument(metavar="CASES...", help="Manifest, landmark files, or a folder that predict wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="TABLE.csv", help="The table to write.")],
    landmarks: From = None,
    split: Split = None,
    truth: Annotated[
        bool, typer.Option("--truth", help="Compare --landmarks with the manifest's own: agreement, classes.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Distances, angles and ratios from landmarks, as a table.

    With their uncertainty and, where the definition has them, classes.
    """
    from anatomark.tools.measure.measure import measure as take

    result = take(definition, cases, out, landmarks=landmarks, split=split, truth=truth, overwrite=overwrite)
    show(result, as_json)
