"""``anatomark crop``."""

from __future__ import annotations

from typing import Annotated

import typer

from anatomark.cli.options import Form, From, Images, Json, Out, Overwrite, Spacing, Split, in_mm, reporter, show_cases
from anatomark.errors import InputError


def crop(
    images: Images,
    out: Out,
    landmarks: From = None,
    points: Annotated[str | None, typer.Option(help="Crop around these landmarks, A,B,...; default all.")] = None,
    margin_mm: Annotated[float | None, typer.Option(help="Room on every side of them; default 10.")] = None,
    size_mm: Annotated[
        str | None, typer.Option(metavar="X,Y,Z", help="Instead: this size around their centroid (2D: X,Y).")
    ] = None,
    pad: Annotated[
        float | None, typer.Option(help="Continue beyond the image with this value; default: cut at its border.")
    ] = None,
    split: Split = None,
    spacing: Spacing = None,
    form: Form = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut a region around landmarks out of images.

    Voxels keep their values and places, so that a segmentation can be put back.
    """
    from anatomark.tools.crop import crop as cut

    try:
        size = None if size_mm is None else [float(v) for v in size_mm.split(",")]
    except ValueError:
        raise InputError(f"--size-mm {size_mm}: is not numbers in mm, such as 60,60,40") from None
    chosen = None if points is None else [p.strip() for p in points.split(",") if p.strip()]
    result = cut(
        images, out, points=chosen, margin_mm=margin_mm, size_mm=size, pad=pad, landmarks=landmarks, split=split,
        spacing=in_mm(spacing), form=form, overwrite=overwrite, report=reporter(as_json),
    )  # fmt: skip
    show_cases(result, as_json, "{reason}")
