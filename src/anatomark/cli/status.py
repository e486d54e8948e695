"""``anatomark status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import Json, show

INCOMPLETE = 3  # exit code


def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of predictions in shards, or by workers.")],
    accept_failed: Annotated[
        bool, typer.Option("--accept-failed", help="Failed images count as finished for the exit code.")
    ] = False,
    as_json: Json = False,
) -> None:
    """How far the prediction of many images is.

    Images done, failed and why; missing shards. Exit code 3 while incomplete.
    """
    from anatomark.scale.status import status as look

    found = look(out, accept_failed=accept_failed)
    show(found, as_json)
    if not found.complete:
        raise typer.Exit(INCOMPLETE)
