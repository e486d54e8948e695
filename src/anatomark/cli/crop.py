"""``anatomark crop``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import From, Json, Out, Overwrite, Spacing, Split, reporter, show
from anatomark.errors import InputError


def crop(
    images: Annotated[list[Path], typer.Argument(metavar="CASES.csv|IMAGE...", help="Manifest, images or folders.")],
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
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut a region of interest around landmarks out of images, geometry kept, to segment it and put it back."""
    from anatomark.io.frames import parse_spacing
    from anatomark.tools.crop import Request
    from anatomark.tools.crop import crop as cut

    try:
        size = None if size_mm is None else tuple(float(v) for v in size_mm.split(","))
    except ValueError:
        raise InputError(f"--size-mm {size_mm}: is not numbers in mm, such as 60,60,40") from None
    chosen = None if points is None else tuple(p.strip() for p in points.split(",") if p.strip())
    request = Request(margin_mm, size, chosen, pad)
    mm = parse_spacing(spacing, "--spacing") if spacing is not None else None
    report = reporter(as_json)
    result = cut(images, out, request, landmarks=landmarks, spacing=mm, split=split, overwrite=overwrite, report=report)
    show(result, as_json)
    if result.failed:
        _, reason = result.failed[0]
        count = f"{len(result.failed)} of {len(result.rows)} cases failed; the first: " if len(result.rows) > 1 else ""
        raise InputError(f"{count}{reason}")
