"""``anatomark predict``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anatomark.cli.options import (
    Device,
    Form,
    Json,
    Out,
    Overwrite,
    Spacing,
    Threads,
    Views,
    of_it_alignment,
    print_json,
    reporter,
    spell_options,
)
from anatomark.errors import InputError

if TYPE_CHECKING:
    from anatomark.model.predict import Predicted


class Format(StrEnum):
    """The landmark files that are written, by suffix."""

    MRK = "mrk.json"
    FCSV = "fcsv"
    CSV = "csv"


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or zoo name; A+B: averaged.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, folders or a manifest.")],
    out: Out,
    spacing: Spacing = None,
    form: Form = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Draw the landmarks into a PNG as well.")] = False,
    format: Annotated[Format, typer.Option("--format", help="Of the landmark files.")] = Format.MRK,
    tta: Views = 1,
    device: Device = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the landmarks in new images."""
    from anatomark.io.frames import parse_spacing
    from anatomark.model.predict import described_cost, load
    from anatomark.model.predict import predict as run

    mm = parse_spacing(spacing, "--spacing") if spacing is not None else None
    trained = load(model, device, threads, tta)
    report = reporter(as_json)
    if cost := described_cost(trained):
        report.say(cost)
    if trained.licence:
        report.say(f"licence of the model {trained.name}: {trained.licence}")
    rows = run(
        trained, images, out, spacing=mm, form=form, pictures=pictures, format=format, overwrite=overwrite,
        report=report,
    )  # fmt: skip
    _show(rows, out, as_json)


def _show(predicted: list[Predicted], out: Path, as_json: bool) -> None:
    failed = [o for o in predicted if o.state == "failed"]
    if as_json:
        rows = [
            {"case": o.stem, "image": str(o.image), "state": o.state, "seconds": round(o.seconds, 4),
             "align_seconds": None if o.align_seconds is None else round(o.align_seconds, 4),
             "files": [str(f) for f in o.files], "flags": list(o.flags), "notes": list(o.notes), "reason": o.reason}
            for o in predicted
        ]  # fmt: skip
        print_json(rows)
    else:
        for o in predicted:
            if o.state == "written":
                said = f"{o.stem}: {o.seconds:.2f} s{of_it_alignment(o.align_seconds)}, {o.files[0]}"
                typer.echo(said + "".join(f"; {f}" for f in o.flags))
                for note in o.notes:
                    typer.echo(f"  note: {spell_options(note)}")
            elif o.state == "skipped":
                typer.echo(f"{o.stem}: finished before")
        typer.echo(f"{len(predicted) - len(failed)} of {len(predicted)} predicted: {out}")
    if len(failed) == 1 and len(predicted) == 1:
        raise InputError(failed[0].reason)
    if failed:
        names = ", ".join(o.stem for o in failed[:5]) + (", ..." if len(failed) > 5 else "")
        raise InputError(f"{len(failed)} of {len(predicted)} images failed: {names}; the first: {failed[0].reason}")
