"""An ensemble of one method: the same training from several seeds, in a folder that is a model of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anatomark.cases.manifests import Manifests
from anatomark.engine.base import Engine
from anatomark.engine.jobs import Job, Side, done
from anatomark.errors import InputError, check_range
from anatomark.io.claim import claimed, is_passing
from anatomark.model.config import AUTO, MOST_SEED, RunConfig, make_config, read_config
from anatomark.progress import Reporter
from anatomark.training.fit import Fitted, fit

MOST_MEMBERS = 100


@dataclass(frozen=True)
class Members:
    """A finished ensemble: the folder ``run``, which is a model, and its members in the order of their seeds."""

    run: Path
    members: tuple[Fitted, ...]


def fit_members(
    cases: Manifests,
    out: str | os.PathLike[str],
    config: RunConfig | str | os.PathLike[str] | None = None,
    *,
    members: int,
    init: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    report: Reporter | None = None,
    **settings: Any,
) -> Members:
    """As :func:`~anatomark.training.fit.fit`, ``members`` times, with the seeds ``seed``, ``seed`` + 1, ... into
    ``out/1``, ``out/2``, ...; the folder ``out`` is the model that averages them.

    ``minutes`` are those of all together. The first member settles what is left to ``auto`` and to the time; the others
    have its method, settings and steps, and are trained side by side by an ``engine``. Each holds out cases of its own
    where the manifest has no val split. Raises InputError.
    """
    run, report = Path(out), report or Reporter()
    check_range("members", members, 2, MOST_MEMBERS)
    asked = make_config(config, settings.pop("set", ()), **settings)
    check_range("seed", asked.seed + members - 1, 0, MOST_SEED)
    with claimed(run) as claim:
        _check(run, resume)
        side = None if engine is None else Side(engine, run, claim.lock, asked.threads or 1)

        def job(k: int) -> Job[Fitted]:
            own = asked.model_copy(update={"seed": asked.seed + k})
            work = partial(_member, cases, run / str(k + 1), own, init, teacher, resume)
            return Job(f"member {k + 1} of {members}, seed {own.seed}", work, run / f"{k + 1}.log")

        made: dict[int, Fitted] = {}
        if asked.minutes is not None:
            asked = asked.model_copy(update={"minutes": asked.minutes / members})
        if asked.method.name == AUTO or asked.minutes is not None:
            made |= done([job(0)], side, report)
            asked = read_config(run / "1" / "config.yaml").model_copy(update={"seed": asked.seed, "cache": asked.cache})
        first = len(made)
        made |= ((first + k, one) for k, one in done([job(k) for k in range(first, members)], side, report))
    return Members(run, tuple(made[k] for k in range(members)))


def _member(
    cases: Manifests,
    run: Path,
    config: RunConfig,
    init: str | os.PathLike[str] | None,
    teacher: str | os.PathLike[str] | None,
    resume: bool,
    report: Reporter,
) -> Fitted:
    """Train a member, or go on with it."""
    return fit(cases, run, config, init=init, teacher=teacher, resume=resume, report=report)


def _check(run: Path, resume: bool) -> None:
    """Raises InputError where ``run`` holds something else, or members that are not to be gone on with."""
    names = {p.name for p in run.iterdir() if not is_passing(p.name)}
    if strange := sorted(n for n in names if not n.removesuffix(".log").isdigit()):
        raise InputError(f"{run}: holds {strange[0]}, which is of no ensemble; choose another `out`")
    if any(n.isdigit() for n in names) and not resume:
        raise InputError(f"{run}: already holds members; add `resume` to go on with them, or choose another `out`")
