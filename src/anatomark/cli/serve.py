"""``anatomark serve``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import Device, Form, Json, Spacing, in_mm, reporter
from anatomark.cli.service_options import (
    Host,
    Names,
    Person,
    Port,
    Token,
    TrainWith,
    Workers,
    announce,
    make_setting,
    needs_extra,
    user_name,
)
from anatomark.errors import InputError


def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Run folders or zoo names.")],
    host: Host = "127.0.0.1",
    port: Port = 8777,
    token: Token = None,
    allow_host: Names = None,
    workers: Workers = 1,
    queue: Annotated[int, typer.Option(min=1, max=10_000, help="Requests under way or waiting; more get 503.")] = 32,
    timeout: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds for one prediction.")] = 600.0,
    max_mb: Annotated[int, typer.Option(min=1, max=65_536, help="Largest image that is taken; more gets 413.")] = 512,
    monailabel: Annotated[bool, typer.Option("--monailabel", help="Speak MONAI Label's protocol too.")] = False,
    cases: Annotated[
        list[Path] | None,
        typer.Option("--cases", metavar="CASES.csv|IMAGE", help="Cases to review by the first model; may be repeated."),
    ] = None,
    found: Annotated[Path | None, typer.Option("--found", help="Their predictions; made first where missing.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the corrections.")] = None,
    spacing: Spacing = None,
    form: Form = None,
    train_with: TrainWith = None,
    person: Person = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Answer programs over HTTP: predictions, and the review page.

    The page needs --cases and --out.
    """
    needs_extra()
    from anatomark.serve.start import Service, bound, predicted_first
    from anatomark.serve.start import serve as run

    service = Service(
        host, port, token, allow_host or (), workers, queue, timeout, max_mb, monailabel, device
    )  # fmt: skip
    service.check()
    bound(host, port).close()  # a port that is taken is said before any work
    if bool(cases) != bool(out):
        raise InputError("`cases` and `out` belong together: the cases to review, and the folder of the corrections")
    setting = None
    if cases and out:
        paths = [found, *cases] if found else cases
        mm = in_mm(spacing)
        facts = {"spacing": mm, "form": form, "train_with": train_with, "device": device}
        setting, given = make_setting(paths, out, models[0], person=person or user_name(), **facts)
        setting = predicted_first(setting, given, reporter(as_json))
    run(models, service, setting, partial(announce, as_json=as_json), reporter(as_json))
