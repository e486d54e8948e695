"""What a file's header states about the places of its voxels, from which field, and the grid that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.errors import InputError
from anatomark.io.files import LARGEST
from anatomark.io.frames import Spacing, spacing_for

ASK = "give mm per pixel in the manifest's column spacing, or with `spacing` where the command takes it"
AGREEMENT = 0.01  # relative difference of two spacings that are still the same


@dataclass
class Geometry:
    """Index order is the file's own: x (column), y (row)[, z (slice)], so ``axes[:, 0]`` is the step between columns.

    ``size``: (D,). ``axes``: (D, D) mm of world x, y[, z] (LPS; 2D: right, down); the column of an axis whose spacing
    is not stated has length 1. ``origin``: (D,) mm of the first voxel. ``stated``: (D,) whether the spacing is.
    ``sources``: the header's fields for ``spacing``, ``origin`` and ``direction``. ``notes``: lines for the user.
    ``others``: other spacings that the header states. ``missing``: what an error says of a spacing that is not stated.
    """

    size: tuple[int, ...]
    axes: Array
    origin: Array
    stated: tuple[bool, ...]
    sources: dict[str, str]
    notes: list[str] = field(default_factory=list)
    others: list[tuple[float, ...]] = field(default_factory=list)
    missing: str = ""

    def grid(self, path: Path, given: Spacing = None) -> Grid:
        """The grid, array order (z, y, x) or (row, column), with ``given`` mm along x, y[, z] where the header states
        no spacing. Raises InputError where neither does, and where they differ by more than 1 %."""
        axes = self.axes
        if given is not None:
            axes = self._with(given, path)
        else:
            needed = [n for n, stated in enumerate(self.stated) if not stated and not self._single(n)]
            if needed:
                along = "" if not any(self.stated) else " along " + ", ".join("xyz"[n] for n in needed)
                raise InputError(
                    f"{path}: has no spacing that can be believed{along}{_in_brackets(self.missing)}; {ASK}"
                )
        try:
            return Grid.from_axes(self.size[::-1], axes[:, ::-1], self.origin)
        except ValueError as error:
            raise InputError(f"{path}: has an unusable geometry: {error}") from None

    def facts(self) -> dict[str, Any]:
        """Of what was believed, for ``Image.meta["geometry"]``."""
        return {**self.sources, "notes": list(self.notes)}

    def _single(self, n: int) -> bool:
        """The thickness of a single slice is nobody's business."""
        return n == 2 and self.size[2] == 1

    def _with(self, given: Spacing, path: Path) -> Array:
        d = len(self.size)
        assert given is not None
        flat = 2 if d == 3 and self._single(2) and np.size(given) < 3 else d
        values = np.array(spacing_for(given, flat, str(path)))
        own = np.linalg.norm(self.axes, axis=0)
        fits = [np.array(o)[: len(values)] for o in ([tuple(own), *self.others])]
        stated = np.array(self.stated[: len(values)])
        chosen = next((n for n, o in enumerate(fits) if (abs(values / o - 1) <= AGREEMENT)[stated].all()), None)
        if chosen is None:
            file, said = (";".join(f"{v:g}" for v in s) for s in (fits[0], values))
            unstated = "".join("xyz"[n] for n, s in enumerate(stated) if not s)
            but = f" (and none along {', '.join(unstated)})" if unstated else ""
            raise InputError(
                f"{path}: the file says spacing {file} mm{but}, but {said} was given; leave the spacing out"
            )
        scale = np.ones(d)
        scale[: len(values)] = np.where(stated & (chosen == 0), 1.0, values / own[: len(values)])
        if chosen or not stated.all():
            self.sources = {**self.sources, "spacing": "as given"}
        return np.asarray(self.axes * scale)


@dataclass
class Opened:
    """An image file whose header was read. ``pixels`` reads the voxels: (*shape) or (*shape, C), any dtype."""

    geometry: Geometry
    pixels: Callable[[], NDArray[Any]]
    modality: str | None = None
    picture: bool = False


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def checked_size(path: Path, size: Sequence[int]) -> tuple[int, ...]:
    """2 or 3 sizes of axes. Raises InputError where one is below 1, there are more (but for trailing ones of 1), or
    the whole is out of all bounds."""
    if len(size) < 2 or min(size) < 1:
        raise InputError(f"{path}: its header claims a size of {' x '.join(map(str, size))} voxels; it is damaged")
    if len(size) > 3 and max(size[3:]) > 1:
        text = " x ".join(map(str, size))
        raise InputError(f"{path}: has {len(size)} dimensions ({text}); give one 2D image or 3D volume")
    if np.prod([float(n) for n in size]) > LARGEST:
        raise InputError(f"{path}: its header claims {' x '.join(map(str, size))} voxels; it is damaged, or no image")
    return tuple(int(n) for n in size[:3])


def length_unit(path: Path, unit: str) -> float:
    """mm of a unit of length by its name. Raises InputError for one that is not known."""
    units = {
        **dict.fromkeys(("", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "???", "?"), 1.0),
        **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre"), 1e-3),
        **dict.fromkeys(("cm", "centimeter", "centimeters"), 10.0),
        **dict.fromkeys(("m", "meter", "meters", "metre"), 1e3),
        **dict.fromkeys(("nm", "nanometer", "nanometers"), 1e-6),
        **dict.fromkeys(("in", "inch", "inches"), 25.4),
    }
    try:
        return units[unit.strip().strip('"').strip().lower()]
    except KeyError:
        raise InputError(f"{path}: its unit of length {unit!r} is not known; save it in mm") from None
