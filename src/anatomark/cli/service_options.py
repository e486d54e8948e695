"""Options that ``serve`` and ``review`` share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anatomark.errors import InputError

if TYPE_CHECKING:
    from anatomark.serve.desk import Setting

Host = Annotated[str, typer.Option("--host", help="Address to listen on; another than loopback needs --token.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")]
Token = Annotated[str | None, typer.Option("--token", envvar="ANATOMARK_TOKEN", help="Every request must bring it.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="Another name of this machine; may be repeated."),
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=256, help="Processes that predict, one thread each.")]
TrainWith = Annotated[
    list[Path] | None, typer.Option("--train-with", metavar="CASES.csv", help="Train on these cases too.")
]
Person = Annotated[str | None, typer.Option("--person", help="Who reviews; default the user's name.")]


def needs_extra() -> None:
    """Raises InputError where the service's packages are not installed."""
    from importlib.util import find_spec

    if missing := [name for name in ("fastapi", "uvicorn", "python_multipart") if find_spec(name) is None]:
        raise InputError(f"the service needs {', '.join(missing)}: pip install 'anatomark[serve]'")


def make_setting(paths: Sequence[Path], out: Path, model: str | None, **facts: Any) -> tuple[Setting, bool]:
    """What a review is opened with, and whether its predictions were given. Raises InputError."""
    from anatomark.io.sheets import read_sheet
    from anatomark.review.decide import check_person
    from anatomark.serve.desk import Setting
    from anatomark.serve.start import divided

    check_person(facts.get("person", ""))
    for manifest in facts.get("train_with") or ():
        read_sheet(manifest)  # what is wrong in it is said when it is trained on

    predictions, images = divided(paths, out, model)
    setting = Setting(out, images, predictions, model, **{k: v for k, v in facts.items() if v is not None})
    return setting, bool(images != list(paths))


def user_name() -> str:
    """The name of whoever runs the command; empty where the system knows none."""
    import getpass

    try:
        name = getpass.getuser()
        return name if name.isprintable() else ""
    except (KeyError, OSError, ImportError):
        return ""


def announce(url: str, as_json: bool = False) -> None:
    """The line that says where the service is; for a program one line of JSON."""
    typer.echo(json.dumps({"url": url}) if as_json else f"anatomark is at {url}  (Ctrl-C ends it)")
