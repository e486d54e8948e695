"""``anatomark doctor``."""

from __future__ import annotations

from anatomark.cli.options import Json, show
from anatomark.errors import InputError


def doctor(as_json: Json = False) -> None:
    """Look at this machine, and say what is missing.

    Versions, cores, memory, GPU, browser, optional parts; below what is missing, what to do.
    """
    from anatomark.doctor import examine

    found = examine()
    show(found, as_json)
    if broken := found.broken:
        raise InputError(f"anatomark cannot be used: {broken[0].found}; do: {broken[0].remedy}")
