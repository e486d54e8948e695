"""The methods, by name. A new method is one file and one line here, or an entry point of another package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points

from anatomark.errors import InputError, nearest
from anatomark.methods.base import Method, Task

# each method's classes, the recommended one first: they know their presets. ``auto`` asks in this order
TABLE: dict[str, tuple[str | type[Method], ...]] = {
    "t2dl": ("anatomark.methods.t2dl.recommended:T2DL", "anatomark.methods.t2dl.paper:PaperT2DL"),
    "global_to_local": (
        "anatomark.methods.global_to_local.recommended:GlobalToLocal",
        "anatomark.methods.global_to_local.paper:PaperGlobalToLocal",
    ),
    "pin": ("anatomark.methods.pin.recommended:PIN", "anatomark.methods.pin.paper:PaperPIN"),
    "heatmap": ("anatomark.methods.heatmap.method:Heatmap",),
    "dqn": ("anatomark.methods.dqn.method:DQN",),
}
_OURS = tuple(TABLE)
ENTRY_POINTS = "anatomark.methods"  # of other packages: name = "module:Class"


def add(name: str, *classes: str | type[Method]) -> None:
    """Make a method known in this process, by its classes or ``module:Class``, the recommended one first."""
    TABLE[name] = classes


def names() -> list[str]:
    """All methods: the package's own, then those of other packages."""
    return [*TABLE, *(e.name for e in entry_points(group=ENTRY_POINTS) if e.name not in TABLE)]


def presets(name: str) -> list[str]:
    """The presets of a method; InputError for an unknown method."""
    return [preset for cls in _classes(name) for preset in _presets(cls)]


def find(name: str, preset: str = "recommended") -> type[Method]:
    """The class behind a method and preset. Its ``presets[preset]`` are the settings to start from. Raises
    InputError."""
    for cls in _classes(name):
        if preset in _presets(cls):
            return cls
    there = presets(name)
    raise InputError(f"method {name!r} has no preset {preset!r}{nearest(preset, there)}; it has: {', '.join(there)}")


def suitable(task: Task) -> tuple[str, str]:
    """The method that ``auto`` takes, and why: the first that says so, other packages' before our own."""
    outside = [n for n in names() if n not in _OURS]
    for name in (*outside, *_OURS):
        reason = next(_classes(name)).suits(task)
        if reason is not None:
            return name, reason
    raise AssertionError("pin suits every task")


def _classes(name: str) -> Iterator[type[Method]]:
    """A method's classes, each imported when it is asked for."""
    if name in TABLE:
        yield from (_imported(entry) if isinstance(entry, str) else entry for entry in TABLE[name])
        return
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            try:
                yield point.load()
            except (ImportError, AttributeError) as error:
                raise InputError(f"method {name!r} of another package cannot be loaded: {error}") from None
            return
    raise InputError(f"unknown method {name!r}{nearest(name, names())}; known: {', '.join(names())}")


def _imported(path: str) -> type[Method]:
    module, _, cls = path.partition(":")
    method: type[Method] = getattr(import_module(module), cls)
    return method


def _presets(cls: type[Method]) -> list[str]:
    return list(cls.presets) or ["recommended"]
