"""The methods, by name and preset. A new method is one file and one line here, or an entry point."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from anatomark.errors import InputError, nearest
from anatomark.methods.base import Method

TABLE: dict[str, dict[str, str]] = {
    "pin": {
        "recommended": "anatomark.methods.pin.recommended:CascadePIN",
        "paper": "anatomark.methods.pin.paper:PublishedPIN",
        "paper-single": "anatomark.methods.pin.paper:PublishedPIN",
    },
    "global_to_local": {
        "recommended": "anatomark.methods.global_to_local.recommended:GlobalToLocal",
        "paper": "anatomark.methods.global_to_local.paper:PublishedGlobalToLocal",
        "paper-cephalogram": "anatomark.methods.global_to_local.paper:PublishedGlobalToLocal",
        "paper-ccta": "anatomark.methods.global_to_local.paper:PublishedGlobalToLocal",
        "paper-olfactory-mr": "anatomark.methods.global_to_local.paper:PublishedGlobalToLocal",
    },
    "t2dl": {
        "recommended": "anatomark.methods.t2dl.recommended:T2DL",
        "paper": "anatomark.methods.t2dl.paper:PublishedT2DL",
    },
    "dqn": {
        "recommended": "anatomark.methods.dqn.method:DQN",
        "paper": "anatomark.methods.dqn.method:DQN",
    },
    "heatmap": {
        "recommended": "anatomark.methods.heatmap.method:Heatmap",
        "scn": "anatomark.methods.heatmap.method:Heatmap",
    },
}
ENTRY_POINTS = "anatomark.methods"  # outsiders: name = "module:Class"; presets from the class


def names() -> list[str]:
    """Every method's name."""
    return [*TABLE, *(e.name for e in entry_points(group=ENTRY_POINTS))]


def presets(name: str) -> list[str]:
    """The presets of a method; InputError for an unknown method."""
    if name in TABLE:
        return list(TABLE[name])
    return list(find(name, "recommended").presets)


def find(name: str, preset: str = "recommended") -> type[Method]:
    """The class behind a method and preset. Its ``presets[preset]`` are the settings to start from."""
    if name in TABLE:
        if preset not in TABLE[name]:
            known = ", ".join(TABLE[name])
            raise InputError(
                f"method {name!r} has no preset {preset!r}{nearest(preset, list(TABLE[name]))}; it has: {known}"
            )
        module, _, cls = TABLE[name][preset].partition(":")
        found: type[Method] = getattr(import_module(module), cls)
        return found
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            loaded: type[Method] = entry.load()
            return loaded
    raise InputError(f"unknown method {name!r}{nearest(name, names())}; known: {', '.join(names())}")
