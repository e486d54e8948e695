"""``anatomark register``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import Form, From, Json, Out, Overwrite, Spacing, Split, in_mm, reporter, show_cases
from anatomark.tools.register.kind import Kind


def register(
    fixed: Annotated[str, typer.Argument(metavar="FIXED", help="Landmark file, or the name of one of the cases.")],
    moving: Annotated[
        list[Path],
        typer.Argument(metavar="MOVING...", help="Landmark files, a folder that predict wrote, a manifest, or images."),
    ],
    out: Out,
    kind: Annotated[Kind, typer.Option(help="What the transform may do.")] = Kind.RIGID,
    fixed_image: Annotated[Path | None, typer.Option(help="Image of FIXED.")] = None,
    moving_image: Annotated[Path | None, typer.Option(help="Image of MOVING, a single landmark file.")] = None,
    landmarks: From = None,
    smooth_mm: Annotated[
        float, typer.Option(help="tps: root mean square distance left at the points; 0 goes through them.")
    ] = 0.0,
    field_mm: Annotated[
        float | None, typer.Option(help="tps: spacing of the written field; default 1/64 of its longest side.")
    ] = None,
    equal_weights: Annotated[bool, typer.Option("--equal-weights", help="Ignore the landmarks' confidence.")] = False,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Reject no outliers.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Draw a checkerboard of both images.")] = False,
    split: Split = None,
    spacing: Spacing = None,
    form: Form = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Register images by landmarks that they share.

    Writes ITK transforms, the resampled images, and errors by leave-one-out.
    """
    from anatomark.tools.register.register import register as run

    result = run(
        fixed, moving, out, kind, smooth_mm=smooth_mm, field_mm=field_mm, equal_weights=equal_weights,
        keep_all=keep_all, pictures=pictures, fixed_image=fixed_image, moving_image=moving_image, landmarks=landmarks,
        split=split, spacing=in_mm(spacing), form=form, overwrite=overwrite, report=reporter(as_json),
    )  # fmt: skip
    show_cases(result, as_json, "{case}: {reason}")
