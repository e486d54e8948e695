"""``anatomark planes``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import From, Json, Out, Overwrite, Spacing, Split, reporter, show
from anatomark.errors import InputError


def planes(
    definition: Annotated[str, typer.Argument(metavar="DEFINITION", help="YAML file, or a ready one, brain-afids.")],
    paths: Annotated[list[Path], typer.Argument(metavar="CASES.csv|IMAGE...", help="Manifest, images or folders.")],
    out: Out,
    landmarks: From = None,
    split: Split = None,
    spacing: Spacing = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut standard scan planes that landmarks define out of volumes: oblique slices, pictures, planes.json."""
    from anatomark.io.frames import parse_spacing
    from anatomark.tools.planes.planes import cut_planes

    mm = parse_spacing(spacing, "--spacing") if spacing is not None else None
    result = cut_planes(
        definition, paths, out, landmarks=landmarks, split=split, spacing=mm, overwrite=overwrite,
        report=reporter(as_json),
    )  # fmt: skip
    show(result, as_json)
    if failed := result.failed:
        names = ", ".join(c.case for c in failed[:5]) + (", ..." if len(failed) > 5 else "")
        raise InputError(f"{len(failed)} of {len(result.cases)} images failed: {names}; the first: {failed[0].failed}")
    if not result.slices:
        raise InputError("no slice was written: none of the planes is defined and within its image")
