"""Options and output that the commands share."""

from __future__ import annotations

import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from anatomark.errors import InputError

INTERRUPTED = 130  # exit code after Ctrl-C


class NiftiForm(StrEnum):
    """The two places that a NIfTI file can state."""

    SFORM = "sform"
    QFORM = "qform"


class EngineName(StrEnum):
    """Where workers run."""

    LOCAL = "local"
    RAY = "ray"


Cases = Annotated[
    Path, typer.Argument(metavar="CASES.csv", help="Manifest: case,image,landmarks,split[,spacing,form].")
]
ManyCases = Annotated[
    list[Path],
    typer.Argument(
        metavar="CASES.csv...",
        help="Manifests: case,image,landmarks,split[,spacing,form]. Of two rows of a case the later counts.",
    ),
]
Images = Annotated[list[Path], typer.Argument(metavar="CASES.csv|IMAGE...", help="Manifest, images or folders.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write into.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON for a program.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:0 or mps.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Threads of torch on the CPU.")]
Views = Annotated[
    int,
    typer.Option(
        "--tta",
        min=1,
        max=1000,
        metavar="K",
        help="Average over K slightly changed views of each image; K times slower.",
    ),
]
Engine = Annotated[
    EngineName | None, typer.Option("--engine", help="local: processes of this machine (default); ray: a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="Of a Ray cluster to join; default one of this machine."),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, max=1024, help="Trainings at a time, in processes of one thread each."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]
Spacing = Annotated[str | None, typer.Option("--spacing", help="mm per pixel, 0.1 or 0.1;0.1 (x;y).")]
Form = Annotated[
    NiftiForm | None,
    typer.Option("--form", help="Which to use of a NIfTI file that holds two different ones; default sform."),
]
Split = Annotated[str | None, typer.Option(help="train, val or test of a manifest; default all rows.")]
From = Annotated[
    Path | None,
    typer.Option("--landmarks", help="Landmark file, or the folder that predict wrote; default the manifest's own."),
]


def stopped(what: str) -> NoReturn:
    """End after Ctrl-C; ``what`` is kept, or how it goes on."""
    typer.echo(f"stopped; {what}", err=True)
    sys.exit(INTERRUPTED)


def spell_options(text: str) -> str:
    """`` `name` ``, a parameter in the words of Python, as ``--name``."""
    return re.sub(r"`([a-z]\w*)`", lambda m: f"--{m[1].replace('_', '-')}", text)


def engine_of(name: EngineName | None, address: str | None, workers: int | None, gpu: bool = False) -> Any:
    """The engine that was asked for, of so many ``workers``; None where none was, so that work stays in this process.
    Raises InputError."""
    from anatomark.engine.cluster import Cluster
    from anatomark.engine.local import Processes, cores

    if address is not None and name is EngineName.LOCAL:
        raise InputError("`ray_address` is of `engine` ray, but local was given")
    if address is not None or name is EngineName.RAY:
        return Cluster(workers or (0 if address else cores()), address, gpu)
    return None if name is None and workers is None else Processes(workers or cores())


def in_mm(spacing: str | None) -> tuple[float, ...] | None:
    """What ``--spacing`` says. Raises InputError for anything but positive numbers."""
    from anatomark.io.frames import parse_spacing

    return None if spacing is None else parse_spacing(spacing, "--spacing")


def reporter(as_json: bool) -> Any:
    """Progress goes to standard error; a program that reads JSON is left alone."""
    from anatomark.progress import Reporter

    return Reporter(quiet=as_json, spell=spell_options)


def print_json(data: Any) -> None:
    """Plain data to stdout."""
    typer.echo(json.dumps(data, indent=2))


def show(result: Any, as_json: bool) -> None:
    """A result that offers ``summary()`` (plain data) and ``lines()`` (text)."""
    if as_json:
        print_json(result.summary())
        return
    for line in result.lines():
        typer.echo(spell_options(line))


def of_it_alignment(seconds: float | None) -> str:
    """What of the seconds before the alignment took, if anything was aligned."""
    return "" if seconds is None else f", {seconds:.2f} s of it alignment"


def show_cases(result: Any, as_json: bool, first: str) -> None:
    """As :func:`show`. Raises InputError where cases ``failed``: how many, and of the ``first`` its case and reason."""
    show(result, as_json)
    if result.failed:
        case, reason = result.failed[0]
        count = f"{len(result.failed)} of {len(result.rows)} cases failed; the first: " if len(result.rows) > 1 else ""
        raise InputError(count + first.format(case=case, reason=reason))
