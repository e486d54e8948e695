"""``anatomark review``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import Device, Form, Json, Out, Spacing, in_mm, print_json, reporter
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


def review(
    out: Out,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOUND] CASES.csv|IMAGE...",
            help="What predict wrote, and its images; or a manifest alone.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Predicts first where FOUND is missing, and is trained further.")
    ] = None,
    spacing: Spacing = None,
    form: Form = None,
    train_with: TrainWith = None,
    person: Person = None,
    host: Host = "127.0.0.1",
    port: Port = 8777,
    token: Token = None,
    allow_host: Names = None,
    workers: Workers = 1,
    device: Device = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address of the page.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Print what was corrected so far, and end.")] = False,
    as_json: Json = False,
) -> None:
    """See and correct predictions in the browser, and train on them."""
    if summary:
        _show_summary(out, as_json)
        return
    if not images:
        raise InputError("give images, or their manifest; before them the folder that predict wrote, or a `model`")
    needs_extra()
    from anatomark.serve.start import Service, bound, predicted_first
    from anatomark.serve.start import serve as run

    service = Service(host, port, token, allow_host or (), workers, device=device)
    service.check()
    bound(host, port).close()  # a port that is taken is said before any work
    facts = {"spacing": in_mm(spacing), "form": form, "train_with": train_with, "device": device}
    setting, given = make_setting(images, out, model, person=person or user_name(), **facts)
    report = reporter(as_json)
    setting = predicted_first(setting, given, report)

    def ready(url: str) -> None:
        announce(url, as_json)
        if not no_browser:
            import webbrowser

            webbrowser.open(url)

    run([], service, setting, ready, report)


def _show_summary(out: Path, as_json: bool) -> None:
    """What the review files in a folder say of the cases that somebody has begun; it may be open in a service too."""
    from anatomark.io.claim import is_passing
    from anatomark.review.files import read_review
    from anatomark.review.summary import lines
    from anatomark.review.summary import summary as summed

    reviews = [read_review(file) for file in sorted(out.glob("*.review.json")) if not is_passing(file.name)]
    if not reviews:
        raise InputError(f"{out}: holds no corrections (CASE.review.json); give the folder of a review")
    states = [review.state for review in reviews]
    facts = {**{state: states.count(state) for state in ("done", "open", "skipped")}, **summed(reviews)}
    if as_json:
        print_json(facts)
        return
    for line in lines(facts, "begun"):
        typer.echo(line)
