"""The span of grey values that pictures of an image show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.image import Image


@dataclass(frozen=True)
class Window:
    """Values from ``low`` (black) to ``high`` (white)."""

    low: float
    high: float

    @classmethod
    def of(cls, image: Image) -> Window:
        """The span that shows what is in ``image``."""
        values = image.subsample()
        values = values[np.isfinite(values)]
        # the background often fills most of a volume and would take the whole window
        inside = values[values > values.min()] if values.size and values.min() < values.max() else values
        low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
        if values.size and (image.ndim == 3 or low == high):
            low = min(low, values.min())
        return cls(float(low), float(high))

    def shades(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """``values`` as shades from 0 (black) to 1 (white), float32."""
        span = max(self.high - self.low, 1e-12)
        return np.asarray(np.clip((values.astype(np.float32) - self.low) / span, 0, 1), dtype=np.float32)
