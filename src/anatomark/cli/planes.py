"""``anatomark planes``."""

from __future__ import annotations

from typing import Annotated

import typer

from anatomark.cli.options import Form, From, Images, Json, Out, Overwrite, Spacing, Split, in_mm, reporter, show
from anatomark.errors import InputError, listed


def planes(
    definition: Annotated[str, typer.Argument(metavar="DEFINITION", help="YAML file, or a ready one, brain-afids.")],
    paths: Images,
    out: Out,
    landmarks: From = None,
    split: Split = None,
    spacing: Spacing = None,
    form: Form = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut the scan planes that landmarks define.

    Oblique slices out of volumes, as images that keep their place, as pictures and in planes.json.
    """
    from anatomark.tools.planes.planes import planes as cut

    result = cut(
        definition, paths, out, landmarks=landmarks, split=split, spacing=in_mm(spacing), form=form,
        overwrite=overwrite, report=reporter(as_json),
    )  # fmt: skip
    show(result, as_json)
    if failed := result.failed:
        names = listed([case for case, _ in failed], 5)
        raise InputError(f"{len(failed)} of {len(result.rows)} images failed: {names}; the first: {failed[0][1]}")
    if not result.slices:
        raise InputError("no slice was written: none of the planes is defined and within its image")
