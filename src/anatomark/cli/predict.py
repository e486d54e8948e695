"""``anatomark predict``."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anatomark.cli.options import (
    Device,
    Engine,
    Form,
    Json,
    Out,
    Overwrite,
    RayAddress,
    Spacing,
    Threads,
    Views,
    engine_of,
    in_mm,
    of_it_alignment,
    print_json,
    reporter,
    spell_options,
)
from anatomark.errors import InputError

if TYPE_CHECKING:
    from anatomark.model.predict import Predicted
    from anatomark.scale.cohort import Cohort


IMAGES_SHOWN = 3  # paths in the command that is suggested


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
    format: Annotated[Format, typer.Option("--format", help="Format of the landmark files.")] = Format.MRK,
    tta: Views = 1,
    device: Device = None,
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes of one thread (or --threads) that predict.")
    ] = None,
    engine: Engine = None,
    ray_address: RayAddress = None,
    shard: Annotated[str | None, typer.Option(metavar="K/N", help="Only the K-th of N parts of the images.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed with --shard or --workers.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the landmarks in new images."""
    from anatomark.model.memory import keep_freed_memory
    from anatomark.model.predict import load, told_of
    from anatomark.model.predict import predict as run
    from anatomark.model.worker import Spread

    report = reporter(as_json)
    asked: dict[str, Any] = {
        "spacing": in_mm(spacing), "form": form, "pictures": pictures, "format": format, "overwrite": overwrite,
        "report": report,
    }  # fmt: skip
    spread = engine_of(engine, ray_address, workers, gpu=(device or "").startswith("cuda"))
    if spread is not None or shard is not None or retry_failed:
        from anatomark.scale.cohort import predict_cohort
        from anatomark.scale.shard import Shard

        part = None if shard is None else Shard.parse(shard)
        cohort = predict_cohort(
            model, images, out, shard=part, engine=spread, retry_failed=retry_failed, device=device,
            threads=threads, tta=tta, **asked,
        )  # fmt: skip
        _show_cohort(cohort, _given(images, spacing, form, model), out, as_json)
        return
    keep_freed_memory()
    trained = load(model, device, threads, tta)
    for line in told_of(trained):
        report.say(line)
    by = Spread(model, out, device, threads or 1, tta)
    _show(run(trained, images, out, by=by, **asked), _given(images, spacing, form, model), out, as_json)


def _given(images: list[Path], spacing: str | None, form: str | None, model: str) -> str:
    """The images, what was said of them, and the model, where it is one that can be trained on, as ``review`` takes
    them."""
    from anatomark.model.ensemble import is_ensemble

    words = [*map(str, images)] if len(images) <= IMAGES_SHOWN else ["IMAGE..."]
    told = [w for option, value in (("spacing", spacing), ("form", form)) if value for w in (f"--{option}", str(value))]
    return shlex.join([*words, *told, *([] if is_ensemble(model) else ["--model", model])])


def _show_cohort(cohort: Cohort, given: str, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(cohort.summary())
    else:
        before = f", {cohort.skipped} of them finished before" if cohort.skipped else ""
        made = cohort.cases - len(cohort.failed)
        typer.echo(f"{made} of {cohort.cases} predicted{before}: {out}")
        _what_next(made, cohort.flagged, given, out, of=cohort.shard.of)
    _refuse_failed(cohort.failed, cohort.cases)


def _refuse_failed(failed: list[tuple[str, str]], count: int) -> None:
    """Raises InputError where of so many images some failed: their names, and the reason of the first."""
    if len(failed) == 1 and count == 1:
        raise InputError(failed[0][1])
    if failed:
        names = ", ".join(name for name, _ in failed[:5]) + (", ..." if len(failed) > 5 else "")
        raise InputError(f"{len(failed)} of {count} images failed: {names}; the first: {failed[0][1]}")


def _what_next(made: int, flagged: int, given: str, out: Path, of: int = 1) -> None:
    """Of so many predictions how many are flagged, and the command to look at them, or at the other shards."""
    if not made:
        return
    typer.echo(f"{flagged} of {made} are flagged for review")
    if of > 1:
        typer.echo(f"next: anatomark status {shlex.quote(str(out))}")
        return
    typer.echo(f"next: anatomark review {shlex.quote(str(out))} {given} --out CORRECTED")


def _show(predicted: list[Predicted], given: str, out: Path, as_json: bool) -> None:
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
                typer.echo(f"{o.stem}: finished before" + "".join(f"; {f}" for f in o.flags))
        made = len(predicted) - len(failed)
        typer.echo(f"{made} of {len(predicted)} predicted: {out}")
        _what_next(made, sum(bool(o.flags) for o in predicted if o.state != "failed"), given, out)
    _refuse_failed([(o.stem, o.reason) for o in failed], len(predicted))
