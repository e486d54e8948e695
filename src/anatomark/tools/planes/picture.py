"""A scan plane as a picture: the slice, the landmarks in it and near it, a scale bar."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.pictures.style import (
    HALO,
    PAPER,
    PREDICTION,
    TRUTH,
    caption,
    cut,
    draw_labels,
    edge_letters,
    plain_text,
    png,
    scale_bar,
)  # fmt: skip
from anatomark.pictures.style import title as draw_title
from anatomark.tools.planes.geometry import Plane

NEAR_MM = 2.0  # landmarks this near are drawn too, in a slab its half thickness where that is more
TALL, TYPE = 6.0, 7.5  # inches, points
SIDES = "LPSRAI"  # of the world axes +x +y +z -x -y -z


@plain_text
def plane_picture(image: Image, plane: Plane, landmarks: Landmarks, title: str = "") -> bytes:
    """PNG of the slice ``image`` (C, 1, rows, columns) that :meth:`Plane.cut` made.

    Filled: the points that the plane was laid through. Hollow: other landmarks within NEAR_MM of it, or within half the
    slab. Letters at the edges name the side of the patient that lies there.
    """
    width, height = plane.size_mm
    figure = Figure(figsize=(float(np.clip(TALL * width / height, 2.0, 14.0)), TALL), facecolor=PAPER)
    ax = figure.add_axes((0, 0, 1, 1))
    values = image.array[:, 0].astype(np.float32)
    low, high = _window(values)
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    pixels = grey.transpose(1, 2, 0) if len(grey) == 3 else grey[0]
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=(-width / 2, width / 2, -height / 2, height / 2))
    ax.set_axis_off()
    ax.set(xlim=(-width / 2, width / 2), ylim=(-height / 2, height / 2))
    filled: dict[str, Any] = {"marker": "o", "mfc": PREDICTION, "mec": HALO, "mew": 0.8, "ms": 5.5}
    hollow: dict[str, Any] = {"marker": "o", "mfc": "none", "mec": TRUTH, "mew": 1.3, "ms": 5.5}
    described = dict(zip(landmarks.names, landmarks.descriptions, strict=True))
    shown = [(caption(name, described.get(name, "")), point, filled) for name, point in plane.points.items()]
    reach = max(NEAR_MM, plane.definition.slab_mm / 2)
    shown += [
        (caption(name, described[name]), point, hollow)
        for name, point in zip(landmarks.names, landmarks.points, strict=True)
        if name not in plane.points and np.isfinite(point).all() and abs(plane.distance(point)) <= reach
    ]
    spots = [(text, *plane.locate(point), style) for text, point, style in shown]
    spots = [s for s in spots if abs(s[1]) <= width / 2 and abs(s[2]) <= height / 2]
    for _, x, y, style in spots:
        ax.plot(x, y, linestyle="none", clip_on=True, **style)
    draw_labels(ax, [s[:3] for s in spots], TYPE, (-width / 2, width / 2))
    scale_bar(ax, width, 0.3, right=True)
    edge_letters(ax, [_letter(side) for side in (-plane.right, plane.right, plane.up, -plane.up)], 9, 0.01)
    draw_title(ax, cut(title))
    with rc_context({"text.hinting": "none"}):  # hinted text is measured shorter than it is drawn with a halo
        return png(figure, dpi=100)


def _window(values: NDArray[np.float32]) -> tuple[float, float]:
    """Darkest and brightest grey; the background would take the whole window."""
    finite = values[np.isfinite(values)]
    inside = finite[finite > finite.min()] if finite.size and finite.min() < finite.max() else finite
    return (float(finite.min()), float(np.percentile(inside, 99.7))) if inside.size else (0.0, 1.0)


def _letter(direction: Array) -> str:
    """The patient's side that a direction in LPS points at most."""
    axis = int(np.abs(direction).argmax())
    return SIDES[axis if direction[axis] > 0 else axis + 3]
