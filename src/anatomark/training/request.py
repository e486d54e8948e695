"""What was asked of a run (``request.yaml``), beside what was settled (``config.yaml``): whether a run may go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from anatomark.errors import InputError
from anatomark.io.atomic import write_text
from anatomark.io.claim import is_passing
from anatomark.model.config import AUTO, RunConfig, read_config

REQUEST = "request.yaml"
MACHINE = ("workers", "cache_mb", "threads", "device")  # settings that change no result
FREE = {*MACHINE, "cache", "minutes", "stage_steps", "validate_every", "reasons", "taught_by"}  # of a resumed run


def write_request(run: Path, asked: RunConfig) -> None:
    """Write what the user set, and nothing else. Raises InputError where the disk refuses."""
    plain = asked.model_dump(mode="json", exclude_unset=True)
    write_text(run / REQUEST, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))


def begun(run: Path) -> Path | None:
    """The config of a training that was begun in ``run``, be it of its first fold; None where none was."""
    return next((f for p in (".", "folds/1") if (f := run / p / "config.yaml").exists()), None)


def resumed(run: Path, asked: RunConfig, resume: bool) -> RunConfig:
    """The request to train with: ``asked`` itself where nothing was begun, else the one that began the run (of runs of
    earlier versions, which lack it, the config). Raises InputError where ``run`` holds something that would be mixed
    up."""
    config = begun(run)
    if config is None:
        inside = [*run.iterdir()] if run.is_dir() else [run] if run.exists() else []
        names = {p.name for p in inside if not is_passing(p.name)}
        if names and not {REQUEST} <= names <= {REQUEST, "cache", "folds", "trials"}:
            raise InputError(f"{run}: exists already and is no run folder; choose another `out`")
        return asked
    if not resume:
        raise InputError(f"{run}: already holds a run; add `resume` to go on with it, or choose another `out`")
    stored = next((f for f in (run / REQUEST, run / "config.yaml") if f.exists()), None)
    if stored is None:
        raise InputError(
            f"{run}: has no {REQUEST}, so an earlier version began its folds; finish the run with that version, or "
            "choose another `out`"
        )
    before = read_config(stored)
    first, now = (dict(_leaves(c.model_dump(mode="json", exclude_unset=True))) for c in (before, asked))
    settled = dict(_leaves(read_config(config).model_dump(mode="json")))
    for key, value in now.items():
        there = first.get(key, settled.get(key))
        unsaid = key not in first and (value is None or (key == ("method", "name") and value == AUTO))
        if value != there and not unsaid and key[0] not in FREE:
            raise InputError(
                f"{stored}: `resume` goes on with the settings there ({'.'.join(key)}: {_short(there)}), but "
                f"{_short(value)} was asked for; drop the option or choose another `out`"
            )
    return with_machine(before, asked)


def with_machine(config: RunConfig, asked: RunConfig) -> RunConfig:
    """``config`` with those settings of ``asked`` that change no result."""
    return config.model_copy(update={k: getattr(asked, k) for k in MACHINE})


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
