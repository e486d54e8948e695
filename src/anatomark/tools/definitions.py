"""Definitions of scan planes and measurements: YAML files of the user's, or the ready ones of the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from anatomark.errors import InputError, nearest
from anatomark.model.config import checked, read_yaml

READY = Path(__file__).resolve().with_name("ready")
M = TypeVar("M", bound=BaseModel)


def ready(kind: str) -> dict[str, Path]:
    """The package's definitions of a ``kind`` (``planes``, ``measurements``) by name: those whose file has this key."""
    paths = {path.stem: path for path in sorted(READY.glob("*.yaml"))}
    return {name: path for name, path in paths.items() if kind in read_yaml(path)}


def read_definition(name: str | os.PathLike[str], model: type[M], kind: str) -> M:
    """A definition of ``kind`` from a YAML file, or a ready one by its name, checked by ``model``.

    Raises InputError: no such file or name, no YAML, an unknown key or an impossible value.
    """
    text = os.fspath(name)
    path = Path(text)
    if not path.is_file():
        available = ready(kind)
        if path.suffix or os.sep in text or text not in available:
            there = f"ready definitions of {kind}: {', '.join(available) or 'none'}"
            raise InputError(f"{text}: no such file, and no ready definition{nearest(text, list(available))}; {there}")
        path = available[text]
    if os.access(path, os.R_OK):
        with open(path, "rb") as file:
            if b"\0" in file.read(4096):  # an image, say
                raise InputError(f"{path}: is no UTF-8 text; DEFINITION is a YAML file, or the name of a ready one")
    return checked(model, read_yaml(path), str(path))
