"""Definitions of scan planes and measurements: YAML files of the user's, or the ready ones of the package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, listed, nearest
from anatomark.io.confidence import plain
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


def unconfirmed(stands_for: Mapping[str, str], landmarks: Landmarks) -> dict[str, str]:
    """Labels that a definition takes for something which their descriptions do not confirm, and these; so that a label
    as common as 1 is not measured as something else in silence."""
    texts = dict(zip(landmarks.names, map(plain, landmarks.descriptions), strict=True))
    return {n: texts[n] for n, m in stands_for.items() if n in texts and texts[n].casefold() != m.casefold()}


def taken_for(stands_for: Mapping[str, str], found: Mapping[str, str]) -> str:
    """A note on what :func:`unconfirmed` found; empty where that is nothing."""
    called = [f"{label} {text!r}" for label, text in found.items() if text]
    said = f"files call {listed(called, 3)}" if called else "no description in the files says so"
    parts = [f"{label} for {stands_for[label]}" for label in found]
    return f"note: takes landmark {listed(parts, 4)}; {said}" if parts else ""
