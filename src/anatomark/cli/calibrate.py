"""``anatomark calibrate``."""

from __future__ import annotations

from typing import Annotated

import typer

from anatomark.cli.options import Cases, Json, Out, Threads, reporter, show


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or zoo name; it is not changed.")],
    cases: Cases,
    out: Out,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Learn a model's radii and review flag anew.

    And its threshold of absence; from cases that it was not trained on (val). The weights stay.
    """
    from anatomark.model.memory import keep_freed_memory
    from anatomark.training.calibrate import calibrate as learn

    keep_freed_memory()
    if threads is not None:
        from anatomark.model.device import set_threads

        set_threads(threads)
    show(learn(model, cases, out, report=reporter(as_json)), as_json)
