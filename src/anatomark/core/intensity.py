"""Intensity rules: how an image's values become comparable. They follow from the values; the modality is a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from anatomark.core.image import Image

UNKNOWN = "image"  # the modality of values that have no fixed scale: photograph, radiograph, MR, micro-CT ...
CT_WINDOW_HU = (-300.0, 1200.0)
PERCENTILES = {2: (1.0, 99.0), 3: (1.0, 99.5)}  # of images of this dimension
AIR_HU, PADDING_HU = (-1100.0, -500.0), -4096.0  # what air is in CT, lungs included; the least that stands outside


def guess_modality(images: Sequence[Image]) -> str:
    """``ct`` where most images hold Hounsfield units, else ``image``: the values do not say more."""
    return "ct" if np.mean([in_hounsfield(i) for i in images]) > 0.5 else UNKNOWN


def in_hounsfield(image: Image) -> bool:
    """Whether the values are Hounsfield units by their looks: air near -1000 makes up 2 % of the image or more, and
    nothing lies below what scanners write outside their field of view."""
    values = image.subsample()
    air = (values > AIR_HU[0]) & (values < AIR_HU[1])
    return bool(air.mean() >= 0.02 and values.min() >= PADDING_HU)


def intensity_rule(modality: str | None, images: Sequence[Image]) -> dict[str, Any]:
    """The rule that :func:`normalise` applies, for ``plan.json``: a fixed window where the values are Hounsfield units,
    else robust percentiles of each image, in 3D without an emptied (zero) background.

    It follows from the images. Only ``modality`` ``ct``, ``mr`` and ``xray``, which somebody gave, settle it for images
    that do not show it, as a CT of a part without air; any other name is a label.
    """
    kind = modality if modality in ("ct", "mr", "xray") else guess_modality(images)
    if kind == "ct":
        return {"kind": "window", "low": CT_WINDOW_HU[0], "high": CT_WINDOW_HU[1]}
    ndim = {"xray": 2, "mr": 3}.get(kind) or images[0].ndim
    low, high = PERCENTILES[ndim]
    return {"kind": "percentiles", "low": low, "high": high, "skip_zero": ndim == 3}


def check_rule(rule: Mapping[str, Any]) -> None:
    """Raises ValueError unless ``rule`` is one that :func:`intensity_rule` gives."""
    low, high = (v if isinstance(v := rule.get(k), float | int) else np.nan for k in ("low", "high"))
    if not -1e9 <= low < high <= 1e9:
        raise ValueError("intensity: low and high are no numbers, low below high")
    if rule.keys() == {"kind", "low", "high"} and rule["kind"] == "window":
        return
    if rule.keys() - {"skip_zero"} != {"kind", "low", "high"} or rule["kind"] != "percentiles":
        raise ValueError("intensity: is no window (low, high), and no percentiles (low, high, skip_zero)")
    if not 0 <= low < high <= 100 or not isinstance(rule.get("skip_zero", False), bool):
        raise ValueError("intensity: percentiles lie between 0 and 100, skip_zero is true or false")


def normalise(image: Image, rule: Mapping[str, Any]) -> Image:
    """One channel (1, *shape) float32, about 0 ... 1 between the rule's bounds, clipped to -0.5 ... 1.5.

    Colour becomes its mean.
    """
    array = image.array
    low, high = bounds(image, rule)
    scale = 1 / max(high - low, 1e-6)
    grey = array.mean(0, keepdims=True, dtype=np.float32) if array.shape[0] > 1 else array
    out = torch.from_numpy(np.array(grey, dtype=np.float32, order="C"))  # a copy; torch's passes use all threads
    out.sub_(low).mul_(scale).clamp_(-0.5, 1.5)
    return Image(out.numpy(), image.grid, image.meta)


def bounds(image: Image, rule: Mapping[str, Any]) -> tuple[float, float]:
    """The two values of this image that become 0 and 1."""
    if rule["kind"] == "window":
        return float(rule["low"]), float(rule["high"])
    values = image.subsample()
    if rule.get("skip_zero") and values.min() >= 0 and 0.05 < (values == 0).mean() < 1:
        values = values[values > 0]  # an emptied background says nothing of the scan's scale
        return 0.0, float(np.percentile(values, rule["high"]))
    low, high = np.percentile(values, [rule["low"], rule["high"]])
    return float(low), float(max(high, low + 1e-6))


def foreground_centre(image: Image) -> np.ndarray:
    """World mm (D,) of the centre of mass of what is brighter than Otsu's threshold; the middle where nothing is.

    ``image``: normalised, coarse is enough.
    """
    x = np.asarray(image.array[0], dtype=np.float32)
    mask = x > otsu(x)
    if not mask.any():
        return image.grid.centre
    index = np.array([np.average(np.arange(n), weights=mask.sum(_others(a, x.ndim))) for a, n in enumerate(x.shape)])
    return image.grid.to_world(index)


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold (1979) of an array, from a histogram of 128 bins."""
    counts, edges = np.histogram(values, bins=128)
    p = counts / counts.sum()
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(p)
    mean_below = np.cumsum(p * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean_below[-1] * below - mean_below) ** 2 / (below * (1 - below))
    return float(edges[1:][int(np.nanargmax(np.where(np.isfinite(between), between, -1)))])


def _others(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a != axis)
