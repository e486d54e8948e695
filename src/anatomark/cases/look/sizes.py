"""How large images are in mm, and which of them differ from the others as only a wrong spacing makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anatomark.core.grid import Grid
from anatomark.errors import InputError

FACTOR = 8.0  # less than the 10 between mm and cm, more than a whole body is longer than a head
HOPELESS = 100.0  # so much larger or smaller than the others no image is


def longest_mm(grid: Grid) -> float:
    """The image's longest side in mm."""
    return float(grid.extent_mm.max())


def described_size(grid: Grid) -> str:
    """``19 m x 24 m``, along x, y[, z] of an image that lies upright."""
    return " x ".join(described_length(side) for side in grid.canonical().extent_mm[::-1])


def described_length(mm: float) -> str:
    """A length with its unit, in two digits."""
    for factor, unit in ((1e-3, "m"), (1.0, "mm"), (1e3, "um")):
        if mm * factor >= 1 or unit == "um":
            return f"{float(f'{mm * factor:.2g}'):g} {unit}"
    raise AssertionError


def odd_sizes(ids: Sequence[str], grids: Sequence[Grid]) -> list[str]:
    """A line for each of the images that is ``FACTOR`` times larger or smaller than their median. Raises InputError
    where one is ``HOPELESS`` times so: such images cannot be worked with."""
    sides = np.array([longest_mm(grid) for grid in grids])
    middle = float(np.median(sides))
    lines = []
    for id, grid, side in zip(ids, grids, sides, strict=True):
        if middle / FACTOR <= side <= middle * FACTOR:
            continue
        line = f"case {id!r} is {described_size(grid)}, others {described_length(middle)} long: is its spacing right?"
        if not middle / HOPELESS <= side <= middle * HOPELESS:
            raise InputError(line)
        lines.append(line)
    return lines
