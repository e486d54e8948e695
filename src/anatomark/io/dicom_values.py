"""What a DICOM header says of the grey values beyond what its reader (GDCM) makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.errors import InputError

SCALED_BY_GROUPS = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.130")
Scale = tuple[float, float]


def check_values(file: Path, header: Any) -> list[str]:
    """Remarks on the values. Raises InputError where GDCM would end with an error of its own."""
    if str(header.get("PhotometricInterpretation")) == "MONOCHROME1" and header.get("PixelRepresentation") == 1:
        raise InputError(f"{file}: its MONOCHROME1 values are signed, which is not read; save it as MONOCHROME2")
    if header.get("ModalityLUTSequence"):
        return ["its table of values, ModalityLUTSequence (0028,3000), is not applied"]
    return []


def frame_scales(file: Path, header: Any) -> list[Scale]:
    """Slope and intercept of each frame, where the frames' own differ; else nothing, for GDCM applies the first one's.
    Raises InputError for a class of which it applies none."""
    scales = []
    for frame in header.get("PerFrameFunctionalGroupsSequence") or []:
        items = frame.get("PixelValueTransformationSequence")
        if not items:
            return []
        scales.append((float(items[0].RescaleSlope), float(items[0].RescaleIntercept)))
    if len(set(scales)) < 2:
        return []
    if str(header.get("SOPClassUID")) not in SCALED_BY_GROUPS or min(abs(slope) for slope, _ in scales) == 0:
        raise InputError(f"{file}: its frames' values are scaled in different ways, which is not read for its class")
    return scales


def rescaled(values: NDArray[Any], scales: list[Scale]) -> NDArray[np.float32]:
    """``values`` (frames, rows, columns), to which the first frame's scale was applied, by each frame's own."""
    (first, start), out = scales[0], np.empty(values.shape, np.float32)
    for k, (slope, intercept) in enumerate(scales):
        out[k] = (values[k].astype(np.float64) - start) / first * slope + intercept
    return out
