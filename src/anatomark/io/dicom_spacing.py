"""The pixel spacing of a DICOM image, by what its class and its fields say of it (PS3.3 10.7.1.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

PIXEL, IMAGER = "PixelSpacing (0028,0030)", "ImagerPixelSpacing (0018,1164)"
FIELDS = {
    "PixelSpacing": PIXEL,
    "ImagerPixelSpacing": IMAGER,
    "NominalScannedPixelSpacing": "NominalScannedPixelSpacing (0018,2010)",
}
CENTIMETRES = 3  # PhysicalUnitsXDirection of an ultrasound region


@dataclass
class PixelSpacing:
    """mm between columns and rows, or None; from which field; the other values that are stated."""

    values: tuple[float, float] | None
    source: str
    notes: list[str] = field(default_factory=list)
    others: list[tuple[float, float]] = field(default_factory=list)
    missing: str = ""


def pixel_spacing(header: Any) -> PixelSpacing:
    """PixelSpacing where it is stated, else what is measured at the detector, or the regions of an ultrasound image.

    In a projection PixelSpacing may be calibrated and then differs from ImagerPixelSpacing: it is used, both are said.
    """
    stated = {}
    shared = (list(header.get("SharedFunctionalGroupsSequence") or []) or [{}])[0].get("PixelMeasuresSequence")
    for name, source in FIELDS.items():
        value = _pair(header.get(name))
        if value is None and name == "PixelSpacing" and shared:
            value = _pair(shared[0].get(name))
        if value is not None:
            stated[source] = value
    if not stated:
        return _of_regions(header)
    source, values = next(iter(stated.items()))
    notes, others = [], []
    for other, found in list(stated.items())[1:]:
        if np.abs(np.array(found) / values - 1).max() > 0.01:
            others.append(found)
            said, own = (";".join(f"{v:g}" for v in pair) for pair in (found, values))
            notes.append(
                f"{source} says {own} mm, {other} {said}; the first is used, `spacing` {said} chooses the other"
            )
    if source == IMAGER:
        notes.append(f"{IMAGER} is measured at the detector: the patient is smaller by the magnification")
    kind = header.get("PixelSpacingCalibrationType")
    return PixelSpacing(values, f"{source}, {kind}" if kind and source == PIXEL else source, notes, others)


def _pair(value: Any) -> tuple[float, float] | None:
    """A field's row;column spacing as x, y, where it is two positive numbers."""
    try:
        rows, columns = (float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return (columns, rows) if 0 < rows < np.inf and 0 < columns < np.inf else None


def _of_regions(header: Any) -> PixelSpacing:
    spacings = []
    for region in header.get("SequenceOfUltrasoundRegions") or []:
        if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == CENTIMETRES:
            spacings.append(_pair([abs(float(region.get(f"PhysicalDelta{a}") or 0)) * 10 for a in "YX"]))
    sound = [s for s in spacings if s is not None]
    if not sound or len(sound) < len(spacings):
        return PixelSpacing(None, "not stated", missing="PixelSpacing (0028,0030) is missing")
    if np.abs(np.array(sound) / sound[0] - 1).max() > 0.01:
        return PixelSpacing(None, "not stated", missing="its ultrasound regions (0018,6011) have different spacings")
    return PixelSpacing(sound[0], "SequenceOfUltrasoundRegions (0018,6011)")
