"""What was asked of a run (``request.yaml``), beside what was settled (``config.yaml``): whether a run may go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from anatomark.errors import InputError
from anatomark.io.atomic import write_text
from anatomark.model.config import RunConfig, checked, read_config, read_yaml

REQUEST = "request.yaml"
MACHINE = ("workers", "cache_mb", "threads", "device")  # settings that change no result
FREE = {*MACHINE, "cache", "minutes", "stage_steps", "validate_every", "reasons"}  # that a resumed run may be given


def write_request(run: Path, asked: RunConfig) -> None:
    """Write what the user set, and nothing else. Raises InputError where the disk refuses."""
    plain = asked.model_dump(mode="json", exclude_unset=True)
    write_text(run / REQUEST, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))


def resumed(run: Path, asked: RunConfig, resume: bool) -> RunConfig:
    """The request to train with: ``asked``, or the one that began the run. Raises InputError where ``run`` holds
    something that would be mixed up."""
    stored = next((f for f in (run / REQUEST, run / "config.yaml") if f.exists()), None)
    if stored is None:
        if run.exists() and (not run.is_dir() or any(p.name not in ("cache", "folds") for p in run.iterdir())):
            raise InputError(f"{run}: exists already and is no run folder; choose another `out`")
        return asked
    if not resume:
        raise InputError(f"{run}: already holds a run; add `resume` to go on with it, or choose another `out`")
    before = checked(RunConfig, read_yaml(stored), str(stored))
    settled = read_config(run / "config.yaml") if (run / "config.yaml").exists() else before
    first, then = (c.model_dump(mode="json", exclude_unset=True) for c in (before, asked))
    for key, value in _leaves({k: v for k, v in then.items() if k not in FREE}):
        there = _at(first, key, _at(settled.model_dump(mode="json"), key, None))
        if value != there:
            raise InputError(
                f"{stored}: `resume` goes on with the settings there ({'.'.join(key)}: {_short(there)}), but "
                f"{_short(value)} was asked for; drop the option or choose another `out`"
            )
    return with_machine(before, asked)


def with_machine(config: RunConfig, asked: RunConfig) -> RunConfig:
    """``config`` with those settings of ``asked`` that change no result."""
    return config.model_copy(update={k: getattr(asked, k) for k in MACHINE})


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _at(tree: Any, path: tuple[str, ...], otherwise: Any) -> Any:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return otherwise
        tree = tree[key]
    return tree


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
