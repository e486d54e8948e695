"""An image: numbers on a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Grid


@dataclass(frozen=True, eq=False)
class Image:
    """``array`` (C, *grid.shape) of any real dtype, as the file has it, on ``grid``; ``meta`` holds facts that were
    read and matter later (``path``, ``modality``). Raises ValueError where array and grid disagree."""

    array: NDArray[Any]
    grid: Grid
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if tuple(self.array.shape[1:]) != self.grid.shape:
            raise ValueError(f"an array of shape {self.array.shape} does not fit a grid of shape {self.grid.shape}")

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    @property
    def notes(self) -> tuple[str, ...]:
        """What its reader has to say of its geometry; nothing for an image that was read from no file."""
        return tuple(self.meta.get("geometry", {}).get("notes", ()))

    def canonical(self) -> Image:
        """The same voxels with the array axes in (z, y, x) / (y, x) order along the positive world axes; a view."""
        order, signs = self.grid._canonical_axes()
        array = self.array.transpose(0, *(a + 1 for a in order))
        flips = tuple(slice(None, None, -1 if s < 0 else 1) for s in signs)
        return Image(array[(slice(None), *flips)], self.grid.canonical(), self.meta)

    def subsample(self, most: int = 200_000) -> NDArray[np.float32]:
        """At most about ``most`` values on a regular lattice, for robust statistics. 1-D float32."""
        step = max(1, int(np.ceil((np.prod(self.grid.shape) / most) ** (1 / self.ndim))))
        lattice = (slice(None), *(slice(step // 2 if n > step else 0, None, step) for n in self.grid.shape))
        return np.asarray(self.array[lattice], dtype=np.float32).ravel()


def rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """``values`` as whole numbers of the integer type ``dtype``, kept within its range."""
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(values), limits.min, limits.max).astype(dtype))
