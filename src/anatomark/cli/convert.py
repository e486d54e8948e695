"""``anatomark convert``."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import Json, Overwrite, Spacing, in_mm, print_json, spell_options
from anatomark.errors import InputError


class LabelFrom(StrEnum):
    """Which of a point's two names in a Slicer file becomes the landmark's."""

    LABEL = "label"
    DESCRIPTION = "description"


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Landmark file; table.csv#observer, a.mrk.json#list pick one.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".mrk.json, .fcsv, .csv, .tsv or .json")],
    case: Annotated[str | None, typer.Option(help="Which case of a table that holds many.")] = None,
    frame: Annotated[str | None, typer.Option(help="LPS, RAS or image, where IN does not say.")] = None,
    unit: Annotated[str | None, typer.Option(help="mm or px, where IN does not say.")] = None,
    spacing: Spacing = None,
    image: Annotated[
        Path | None, typer.Option(help="Image whose pixels px count, for one that states an origin.")
    ] = None,
    label_from: Annotated[
        LabelFrom, typer.Option("--label-from", help="What becomes the landmark's name.")
    ] = LabelFrom.LABEL,
    markups: Annotated[
        str | None, typer.Option("--list", help="Which list of a Slicer file; its name, or 1, 2.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert between landmark formats."""
    from anatomark.io.images import image_grid, squeeze_grid
    from anatomark.io.landmarks import convert as run_convert

    if os.path.lexists(target) and not overwrite:
        raise InputError(f"{target}: exists already; add --overwrite to replace it")
    if markups is not None and not source.name.lower().endswith(".json"):
        raise InputError(f"{source}: --list is for markups files of 3D Slicer")
    chosen = source if markups is None else f"{source}#{markups}"
    mm = in_mm(spacing)
    pixels = mm if image is None else squeeze_grid(image_grid(image, mm))
    written = run_convert(chosen, target, case=case, frame=frame, unit=unit, spacing=pixels, label_from=label_from)
    notes = [spell_options(note) for note in (*written.meta.get("notes", ()), *written.meta.get("name_notes", ()))]
    defined = int(written.defined.sum())
    if as_json:
        print_json({"file": str(target), "landmarks": list(written.names), "defined": defined, "notes": notes})
        return
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{len(written)} landmarks, {defined} of them defined: {target}")
