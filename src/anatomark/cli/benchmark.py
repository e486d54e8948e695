"""``anatomark benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatomark.cli.options import Engine, Jobs, Json, Out, RayAddress, engine_of, reporter, show, stopped
from anatomark.errors import InputError


def benchmark(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.yaml", help="Data sets, methods, seeds, budget.")],
    out: Out,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This data set or method alone; may be repeated.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time of each cell, instead of the suite's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    tables: Annotated[bool, typer.Option("--tables", help="Only write the tables of what is finished.")] = False,
    jobs: Jobs = None,
    engine: Engine = None,
    ray_address: RayAddress = None,
    as_json: Json = False,
) -> None:
    """Train and compare methods on your data.

    Writes one table, plots and paired tests. Goes on where it was stopped.
    """
    from anatomark.benchmark.run import benchmark as work

    try:
        done = work(
            suite, out, only=only or [], minutes=minutes, dry_run=dry_run, tables_only=tables,
            engine=engine_of(engine, ray_address, jobs), report=reporter(as_json),
        )  # fmt: skip
    except KeyboardInterrupt:
        stopped("the same command goes on from the last checkpoint")
    show(done, as_json)
    if done.failed:
        name, reason = next(iter(done.failed.items()))
        raise InputError(f"{len(done.failed)} of {len(done.states)} cells failed; the first: {name}: {reason}")
