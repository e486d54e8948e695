"""anatomark: anatomical landmarks in 2D and 3D medical images. The public names load what they need on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anatomark.core.grid import Grid
    from anatomark.core.image import Image
    from anatomark.core.landmarks import Landmarks
    from anatomark.errors import InputError
    from anatomark.io.images import read_image
    from anatomark.io.landmarks import read_landmarks, write_landmarks
    from anatomark.model.predict import load

__version__ = "0.1.0"

__all__ = [
    "Grid",
    "Image",
    "InputError",
    "Landmarks",
    "__version__",
    "load",
    "read_image",
    "read_landmarks",
    "write_landmarks",
]

_HOMES = {
    "Grid": "anatomark.core.grid",
    "Image": "anatomark.core.image",
    "InputError": "anatomark.errors",
    "Landmarks": "anatomark.core.landmarks",
    "load": "anatomark.model.predict",
    "read_image": "anatomark.io.images",
    "read_landmarks": "anatomark.io.landmarks",
    "write_landmarks": "anatomark.io.landmarks",
}


def __getattr__(name: str) -> Any:
    """A public name, imported from its module on first use; AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(f"module 'anatomark' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
