"""The ``anatomark`` command. Imports stand inside the commands, so that ``--help`` is instant.

Exit codes: 0 done, 2 bad input or usage (one clear line), 1 our fault.
"""

from __future__ import annotations

import errno
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
from anatomark.cli.evaluate import evaluate
from anatomark.cli.fit import fit
from anatomark.cli.measure import measure
from anatomark.cli.options import spell_options
from anatomark.cli.plan import plan
from anatomark.cli.planes import planes
from anatomark.cli.predict import predict
from anatomark.cli.register import register
from anatomark.cli.simulate import simulate
from anatomark.cli.zoo import zoo
from anatomark.errors import InputError

COMMANDS = (
    demo, plan, fit, predict, evaluate, convert, simulate, zoo, planes, measure, register, crop, calibrate, benchmark,
)  # fmt: skip
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
REFUSALS = FULL | {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
NAMES = {errno.ENAMETOOLONG, errno.ELOOP}
ALLOCATION = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
ClickException: Any = typer.BadParameter.__mro__[2]  # typer brings its own click in some versions

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
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
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        code = app(args=given, prog_name="anatomark", standalone_mode=False)
    except ClickException as error:  # bad usage, such as an unknown option
        text = error.format_message()
        if "\n\n" in text:  # the help of a command that was given nothing
            typer.echo(text, err=True)
        else:
            typer.echo(f"error: {_usage(error, text)}", err=True)
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what reads our output has gone; nothing more can be said
        sys.exit(1)
    except Exception as error:  # the last stop: everything becomes one line and an exit code
        if debug:
            raise
        typer.echo(f"error: {_line(error)}", err=True)
        sys.exit(2 if _users(error) else 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any, text: str) -> str:
    """What is wrong with a command line, and which ``--help`` tells more."""
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "anatomark"
    return f"{command}: {' '.join(text.split()).rstrip('.')[:400]}; {command} --help shows what it takes"


def _users(error: Exception) -> bool:
    """Whether the user can mend it: bad input, or a disk that refuses."""
    return (
        isinstance(error, InputError)
        or _out_of_memory(error)
        or (isinstance(error, OSError) and error.errno in REFUSALS | NAMES)
    )


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(ALLOCATION.search(str(error))))


def _line(error: Exception) -> str:
    if isinstance(error, InputError):
        return spell_options(str(error))
    if _out_of_memory(error):
        return "there is not enough memory for this; take smaller images, batches or blocks"
    if isinstance(error, OSError) and error.errno in NAMES:
        return f"{str(error.filename)[:100]}: {error.strerror}"
    if _users(error) and isinstance(error, OSError):
        what = "written" if error.errno in FULL else "read"  # what is written refuses in its own words
        return f"{error.filename or 'a file'}: cannot be {what}: {error.strerror}"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first} (our fault, not yours; --debug shows the traceback)"
