"""``anatomark doctor``."""

from __future__ import annotations

from anatomark.cli.options import Json, show
from anatomark.errors import InputError


def doctor(as_json: Json = False) -> None:
    """Look at this machine: versions, cores, memory, GPU, browser, extras; what is missing, and how to mend it."""
    from anatomark.doctor import examine

    found = examine()
    show(found, as_json)
    if broken := found.broken:
        raise InputError(f"anatomark cannot be used: {broken[0].found}; do: {broken[0].remedy}")
