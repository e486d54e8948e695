"""The ``anatomark`` command. Imports stand inside the commands, so that ``--help`` is instant.

Exit codes: 0 done, 2 bad input or usage (one clear line), 1 our fault, 130 stopped by Ctrl-C; of ``status`` 3: not
complete.
"""

from __future__ import annotations

import io
import os
import re
import sys
from typing import Annotated, Any, NoReturn

import typer

from anatomark import __version__
from anatomark.cli.benchmark import benchmark
from anatomark.cli.calibrate import calibrate
from anatomark.cli.convert import convert
from anatomark.cli.crop import crop
from anatomark.cli.demo import demo
from anatomark.cli.doctor import doctor
from anatomark.cli.evaluate import evaluate
from anatomark.cli.fit import fit
from anatomark.cli.measure import measure
from anatomark.cli.options import INTERRUPTED, spell_options, stopped
from anatomark.cli.plan import plan
from anatomark.cli.planes import planes
from anatomark.cli.predict import predict
from anatomark.cli.register import register
from anatomark.cli.review import review
from anatomark.cli.serve import serve
from anatomark.cli.simulate import simulate
from anatomark.cli.status import status
from anatomark.cli.zoo import zoo
from anatomark.errors import InputError, is_users, reason_of

COMMANDS = (
    demo, plan, fit, predict, evaluate, convert, simulate, zoo, planes, measure, register, crop, calibrate, benchmark,
    review, serve, status, doctor,
)  # fmt: skip
ClickException: Any = typer.BadParameter.__mro__[2]  # typer brings its own click in some versions

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Find anatomical landmarks in 2D and 3D medical images. For research, not a medical device."""
    if version:
        typer.echo(f"anatomark {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit()


for command in COMMANDS:
    app.command()(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command line; what goes wrong becomes one line and an exit code: 2 the user's to mend, 1 ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding has no sign for
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    _refuse_empty(given)
    try:
        code = app(args=given, prog_name="anatomark", standalone_mode=False)
    except ClickException as error:  # bad usage, such as an unknown option
        text = error.format_message()
        if "\n\n" in text:  # the help of a command that was given nothing
            typer.echo(text, err=True)
        else:
            typer.echo(f"error: {_usage(error, text)}", err=True)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):  # of some versions of typer
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what reads our output has gone; nothing more can be said
        sys.exit(1)
    except Exception as error:  # the last stop: everything becomes one line and an exit code
        if debug:
            raise
        line = reason_of(error)
        if isinstance(error, InputError):
            line = spell_options(line)
        elif not is_users(error):
            line = f"{line.removesuffix(')')}; --debug shows the traceback)"
        typer.echo(f"error: {line}", err=True)
        sys.exit(2 if is_users(error) else 1)
    if code == INTERRUPTED:  # Ctrl-C, and the command has nothing to say about it
        stopped("the same command can be given again")
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_empty(given: list[str]) -> None:
    """Ends with exit code 2 where an argument is empty: as a path it would be the folder at hand."""
    for before, argument in zip(["", *given], given, strict=False):
        if not argument or re.fullmatch("--[a-z-]+=", argument):
            where = argument.rstrip("=") or (before if before.startswith("-") else "")
            after = f"{where}: " if where else ""
            typer.echo(f"error: {after}an argument is empty; is a variable of the shell not set?", err=True)
            sys.exit(2)


def _usage(error: Any, text: str) -> str:
    """What is wrong with a command line, and which ``--help`` tells more."""
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "anatomark"
    return f"{command}: {' '.join(text.split()).rstrip('.')[:400]}; {command} --help shows what it takes"
