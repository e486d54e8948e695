"""Images with landmarks drawn in: slices through the worst points of a case, and overlays of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import listed
from anatomark.io.atomic import Where, write_bytes
from anatomark.pictures.style import (
    HALO,
    INK,
    LEGIBLE,
    PAPER,
    PREDICTION,
    TRUTH,
    WARNING,
    caption,
    cut,
    draw_labels,
    edge_letters,
    plain_text,
    png,
    scale_bar,
    title,
)  # fmt: skip
from anatomark.pictures.window import Window


@dataclass(frozen=True)
class _Section:
    """How a canonical array (z, y, x) or (y, x) is laid on the screen; ``edges``: left, right, top, bottom letter."""

    title: str
    fixed: int | None
    row: int
    column: int
    up: bool  # rows run from bottom to top
    edges: str


AXIAL = _Section("axial", 0, 1, 2, False, "RLAP")
CORONAL = _Section("coronal", 1, 0, 2, True, "RLSI")
SAGITTAL = _Section("sagittal", 2, 0, 1, True, "APSI")
FLAT = _Section("", None, 0, 1, False, "")
Words = tuple[str, str, str]  # what a ring is, what a cross is, and what is said where there is no cross
JUDGED: Words = ("truth", "prediction", "not found")
ANNOTATED: Words = ("annotated", "expected", "")


class _View:
    """An image in canonical orientation with a grey window; a panel of it is drawn in mm, so its aspect is true."""

    def __init__(self, image: Image):
        self.image = image.canonical()
        self.grid = self.image.grid
        self.window = Window.of(image)
        self.colour = image.ndim == 2 and image.array.shape[0] == 3

    @property
    def extent(self) -> float:
        """Longest side in mm."""
        return float(self.grid.extent_mm.max())

    def side(self, section: _Section) -> float:
        """Width in mm of the panel that shows a whole slice: 3D slices are framed as squares."""
        across, down = (float(self.grid.extent_mm[axis]) for axis in (section.column, section.row))
        return across if section.fixed is None else max(across, down)

    def locate(self, section: _Section, points: Array) -> Array:
        """(..., 2) screen position (right, down or up) in mm of world points (..., D)."""
        scaled = self.grid.to_index(points) * self.grid.spacing
        return np.asarray(scaled[..., [section.column, section.row]])

    def draw(self, ax: Axes, section: _Section, centre: Array, half: float | None = None) -> None:
        """The slice through the world point ``centre``; with ``half`` only this many mm around it."""
        shape, spacing = self.grid.shape, self.grid.spacing
        pixels: NDArray[Any] = self.image.array
        if section.fixed is not None:
            at = int(np.clip(np.rint(self.grid.to_index(centre)[section.fixed]), 0, shape[section.fixed] - 1))
            pixels = pixels.take(at, axis=section.fixed + 1)
        middle = self.locate(section, centre)
        lows, highs = [], []
        for axis, where in ((section.column, middle[0]), (section.row, middle[1])):
            size = shape[axis] if half is None else half / spacing[axis]
            at = where / spacing[axis]
            first, last = (0, shape[axis]) if half is None else (int(at - size) - 1, int(at + size) + 3)
            lows.append(int(np.clip(first, 0, shape[axis] - 1)))
            highs.append(int(np.clip(last, 1, shape[axis])))
        pixels = self.window.shades(pixels[:, lows[1] : highs[1], lows[0] : highs[0]])
        sx, sy = spacing[section.column], spacing[section.row]
        edges = [(lows[0] - 0.5) * sx, (highs[0] - 0.5) * sx, (highs[1] - 0.5) * sy, (lows[1] - 0.5) * sy]
        ax.imshow(
            pixels.transpose(1, 2, 0) if self.colour else pixels[0],
            cmap="gray",
            vmin=0,
            vmax=1,
            extent=(edges[0], edges[1], edges[2], edges[3]),
            interpolation="auto" if half is None else "bilinear",
        )
        left, right, bottom, top = edges
        if half is None and section.fixed is not None:  # slices stand in rows, so they are framed as squares
            middle = np.array([(left + right) / 2, (bottom + top) / 2])
            half = max(abs(right - left), abs(bottom - top)) / 2
        if half is not None:
            left, right, bottom, top = middle[0] - half, middle[0] + half, middle[1] + half, middle[1] - half
        ax.set(xlim=(left, right), ylim=(top, bottom) if section.up else (bottom, top), xticks=[], yticks=[])
        ax.set_facecolor("black")
        for side in ax.spines.values():
            side.set_visible(False)


@plain_text
def case_picture(
    image: Image, predicted: Landmarks | None, truth: Landmarks, names: Sequence[str], case: str = "",
    words: Words = JUDGED, dpi: int = 150,
) -> bytes:  # fmt: skip
    """PNG of one ``case`` for a report: the landmarks ``names`` (worst first) with truth and prediction marked, which
    the ``words`` name.

    3D: a row per landmark, an overview and the three orthogonal slices through its true position. 2D: the whole image
    with every landmark, and a zoom on each of ``names``.
    """
    view = _View(image)
    truth = truth.select([n for n, defined in zip(truth.names, truth.defined, strict=True) if defined])
    nothing = Landmarks(truth.names, np.full_like(truth.points, np.nan))
    predicted = nothing if predicted is None else predicted.select(truth.names)
    names = [n for n in names if n in truth.names]
    draw = _rows_3d if image.ndim == 3 else _zooms_2d
    return png(draw(view, predicted, truth, names, cut(case), words), dpi)


@plain_text
def overlay(
    image: Image, predicted: Landmarks, truth: Landmarks | None, path: Where, flags: Sequence[str] = (), case: str = ""
) -> None:
    """Write a PNG of predicted landmarks, labelled, with 90 % circles where known; ``truth`` beside them if given;
    above them the name of the ``case`` and ``flags``, why it should be reviewed.

    2D: the whole image. 3D: a contact sheet, axial, coronal and sagittal slices through each landmark. Raises
    InputError where the file cannot be written.
    """
    draw = _sheet_3d if image.ndim == 3 else _whole_2d
    write_bytes(path, png(draw(_View(image), predicted, truth, review_text(flags), cut(case)), dpi=110))


def absent_text(predicted: Landmarks, most: int = 8) -> str:
    """``absent: 3, 7 and 2 more``; empty where no landmark is absent."""
    names = [n for n, absent in zip(predicted.names, predicted.absent, strict=True) if absent]
    return f"absent: {listed(names, most)}" if names else ""


def review_text(flags: Sequence[str], most: int = 3) -> str:
    """``REVIEW: why; why``; empty where the case is not flagged."""
    more = f"; {len(flags) - most} more" if len(flags) > most else ""
    return f"REVIEW: {'; '.join(flags[:most])}{more}" if flags else ""


def _mark(ax: Axes, spot: Array, colour: str, size: float) -> None:
    # truth is a ring, so that what lies under it stays visible; a prediction is a cross
    style: dict[str, Any] = {"marker": "o", "mfc": "none"} if colour == TRUTH else {"marker": "x"}
    for width, ink in ((size / 2.6, HALO), (size / 6, colour)):
        ax.plot(*spot, linestyle="none", ms=size, mec=ink, mew=width, clip_on=True, **style)


def _pair(
    ax: Axes, view: _View, section: _Section, predicted: Landmarks, truth: Landmarks | None, name: str, *, size: float
) -> None:
    """Truth, prediction, the line between them and the 90 % circle of one landmark on one panel."""
    at = predicted.names.index(name)
    true = view.locate(section, truth[name]) if truth is not None and name in truth.names else np.full(2, np.nan)
    spot = view.locate(section, predicted.points[at])
    if np.isfinite(true).all() and np.isfinite(spot).all():
        ax.plot([true[0], spot[0]], [true[1], spot[1]], color=PREDICTION, lw=0.8, alpha=0.9)
    radius = np.nan if predicted.radius90 is None else float(predicted.radius90[at])
    if np.isfinite(spot).all() and np.isfinite(radius):
        ax.add_patch(Circle((float(spot[0]), float(spot[1])), radius, fill=False, ec=PREDICTION, lw=0.7, alpha=0.7))
    for position, colour in ((true, TRUTH), (spot, PREDICTION)):
        if np.isfinite(position).all():
            _mark(ax, position, colour, size)


def _key(figure: Figure, x: float, y: float, words: Words) -> None:
    box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 3}
    for text, colour, align in ((f"○ {words[0]} ", TRUTH, "right"), (f" × {words[1]}", PREDICTION, "left")):
        figure.text(x, y, text, color=colour, fontsize=10, ha=align, va="center", weight="bold", bbox=box)


def _with_error(predicted: Landmarks, truth: Landmarks, name: str, words: Words) -> str:
    step = predicted.points[predicted.names.index(name)] - truth[name]
    said = f"{np.linalg.norm(step):.2f} mm" if np.isfinite(step).all() else words[2]
    return f"{caption(name, truth.descriptions[truth.names.index(name)])}   {said}"


def _half(view: _View, predicted: Landmarks, truth: Landmarks, name: str) -> float:
    error = float(np.linalg.norm(predicted.points[predicted.names.index(name)] - truth[name]))
    wanted = max(0.07 * view.extent, 1.6 * error if np.isfinite(error) else 0)
    return min(wanted, 0.5 * view.extent)


def _rows_3d(view: _View, predicted: Landmarks, truth: Landmarks, names: Sequence[str], case: str = "",
             words: Words = JUDGED) -> Figure:  # fmt: skip
    rows, side, head, gap = len(names), 2.6, 0.42, 0.07
    width, row = 4 * side + 3 * gap, side + head
    height = head + rows * row + 0.1
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    figure.text(0.1 / width, 1 - 0.5 * head / height, case, color=INK, fontsize=11, weight="bold", va="center")
    for r, name in enumerate(names):
        half, bottom = _half(view, predicted, truth, name), height - head - (r + 1) * row
        text = _with_error(predicted, truth, name, words)
        figure.text(0.1 / width, (bottom + side + 0.13) / height, text, color=INK, fontsize=11, weight="bold")
        for c, section in enumerate((SAGITTAL, AXIAL, CORONAL, SAGITTAL)):
            ax = figure.add_axes(
                (c * (side + gap) / width, bottom / height, side / width, side / height), facecolor="black"
            )
            view.draw(ax, section, truth[name], half if c else None)
            if c:
                _pair(ax, view, section, predicted, truth, name, size=10)
                scale_bar(ax, 2 * half)
            else:
                scale_bar(ax, view.side(section))
                corner = view.locate(section, truth[name]) - half
                box = (float(corner[0]), float(corner[1]))
                ax.add_patch(Rectangle(box, 2 * half, 2 * half, fill=False, ec=TRUTH, lw=1))
            ax.text(0.97, 0.97, section.title, transform=ax.transAxes, ha="right", va="top", color=INK, fontsize=8)
            edge_letters(ax, section.edges)
    _key(figure, 0.86, 1 - 0.5 * head / height, words)
    return figure


def _zooms_2d(view: _View, predicted: Landmarks, truth: Landmarks, names: Sequence[str], case: str = "",
              words: Words = JUDGED) -> Figure:  # fmt: skip
    size = view.grid.extent_mm
    tall = 6.3
    wide = float(np.clip(tall * size[1] / size[0], 3.0, 8.0))
    columns = -(-len(names) // 2)
    side, head, gap = (tall - 2 * 0.35) / 2, 0.35, 0.1
    width = wide + columns * (side + gap)
    figure = Figure(figsize=(width, tall), facecolor=PAPER)
    ax = figure.add_axes((0, 0, wide / width, 1))
    view.draw(ax, FLAT, view.grid.centre)
    for name in truth.names:
        _pair(ax, view, FLAT, predicted, truth, name, size=5)
    scale_bar(ax, float(size[1]), 0.3, right=True)
    title(ax, case)
    for i, name in enumerate(names):
        left, bottom = wide + gap + (i % columns) * (side + gap), tall - (i // columns + 1) * (side + head)
        zoom = figure.add_axes((left / width, bottom / tall, side / width, side / tall))
        half = _half(view, predicted, truth, name)
        view.draw(zoom, FLAT, truth[name], half)
        _pair(zoom, view, FLAT, predicted, truth, name, size=11)
        scale_bar(zoom, 2 * half)
        text = _with_error(predicted, truth, name, words)
        figure.text(left / width, (bottom + side + 0.1) / tall, text, color=INK, fontsize=9.5, weight="bold")
    _key(figure, (0.3 + 0.12 * len(words[0])) / width, 0.25 / tall, words)
    return figure


def _whole_2d(view: _View, predicted: Landmarks, truth: Landmarks | None, review: str = "", case: str = "") -> Figure:
    size = view.grid.extent_mm
    figure = Figure(figsize=(float(np.clip(9 * size[1] / size[0], 3.0, 14.0)), 9), facecolor=PAPER)
    ax = figure.add_axes((0, 0, 1, 1))
    view.draw(ax, FLAT, view.grid.centre)
    for name in predicted.names:
        _pair(ax, view, FLAT, predicted, truth, name, size=7)
    captions, spots = map(caption, predicted.names, predicted.descriptions), view.locate(FLAT, predicted.points)
    points = [(text, float(x), float(y)) for text, (x, y) in zip(captions, spots, strict=True) if np.isfinite(x + y)]
    draw_labels(ax, points, 8, (0.0, float(size[1])))
    scale_bar(ax, float(size[1]), 0.3, right=True)
    title(ax, case)
    if text := absent_text(predicted):
        figure.text(0.01, 0.01, text, color=INK, fontsize=8, va="bottom", path_effects=LEGIBLE, wrap=True, snap=False)
    if review:
        top = 0.96 if case else 0.99
        figure.text(0.02, top, review, color=WARNING, fontsize=9, va="top", path_effects=LEGIBLE, wrap=True, snap=False)
    return figure


def _sheet_3d(view: _View, predicted: Landmarks, truth: Landmarks | None, review: str = "", case: str = "") -> Figure:
    names = [n for n, defined in zip(predicted.names, predicted.defined, strict=True) if defined]
    blocks = max(1, round(np.sqrt(len(names) / 2.2)))  # about square: a block is three times as wide as high
    rows, side, head, gap = max(1, -(-len(names) // blocks)), 1.7, 0.26, 0.2
    block = 3 * side + gap
    notes = [(text, c) for text, c in ((absent_text(predicted), INK), (review, WARNING)) if text]
    above = 0.36 if case else 0.0
    width, height = blocks * block - gap, above + rows * (side + head) + head * len(notes)
    figure, half = Figure(figsize=(width, height), facecolor=PAPER), 0.25 * view.extent
    figure.text(0.05 / width, 1 - 0.5 * above / height, case, color=INK, fontsize=11, weight="bold", va="center")
    for i, name in enumerate(names):
        at = predicted.names.index(name)
        left, bottom = (i // rows) * block, height - above - (i % rows + 1) * (side + head)
        text = caption(name, predicted.descriptions[at])
        if predicted.score is not None and np.isfinite(predicted.score[at]):
            text += f"   p={predicted.score[at]:.2f}"
        if predicted.radius90 is not None and np.isfinite(predicted.radius90[at]):
            text += f"   r90={predicted.radius90[at]:.1f} mm"
        x, y = (left + 0.05) / width, (bottom + side + 0.07) / height
        figure.text(x, y, text, color=INK, fontsize=8.5, weight="bold")
        for c, section in enumerate((AXIAL, CORONAL, SAGITTAL)):
            ax = figure.add_axes(((left + c * side) / width, bottom / height, side / width * 0.985, side / height))
            view.draw(ax, section, predicted[name], half)
            _pair(ax, view, section, predicted, truth, name, size=7)
            edge_letters(ax, section.edges, 7)
            if c == 0:
                scale_bar(ax, 2 * half)
            if i % rows == 0:
                ax.text(0.97, 0.97, section.title, transform=ax.transAxes, ha="right", va="top", color=INK, fontsize=7)
    if not names:
        figure.text(0.5, 0.5, "no landmark found", color=INK, ha="center", va="center")
    for k, (text, colour) in enumerate(notes):
        figure.text(0.05 / width, (0.07 + head * k) / height, text, color=colour, fontsize=8.5)
    return figure


@plain_text
def checkerboard(fixed: Image, moved: Image, tiles: int = 10, case: str = "") -> bytes:
    """PNG of two images on one grid in alternating squares, through the middle (3D: axial, coronal, sagittal), so that
    outlines run on from square to square where they agree. ``tiles`` along the longest side; ``case``: a title."""
    one, two = _View(fixed), _View(moved)
    step = one.extent / tiles
    grid = one.grid
    index = [np.floor(np.arange(n) * s / step).astype(int) for n, s in zip(grid.shape, grid.spacing, strict=True)]
    odd = sum(np.ix_(*index), np.zeros((1,) * grid.ndim, dtype=int)) % 2 == 1
    shades = []
    for view in (one, two):
        shades.append(view.window.shades(view.image.array.mean(0, dtype=np.float32)))
    board = _View(Image(np.where(odd, shades[1], shades[0])[None], grid))
    board.window = Window(0.0, 1.0)
    sections = (AXIAL, CORONAL, SAGITTAL) if fixed.ndim == 3 else (FLAT,)
    size = grid.extent_mm
    high = 4.0 if fixed.ndim == 3 else float(np.clip(6 * size[0] / size[1], 3.0, 9.0))
    figure = Figure(figsize=(12 if fixed.ndim == 3 else 6, high), facecolor=PAPER)
    for c, section in enumerate(sections):
        ax = figure.add_axes((c / len(sections), 0, 0.99 / len(sections), 1), facecolor="black")
        board.draw(ax, section, grid.centre)
        edge_letters(ax, section.edges)
        scale_bar(ax, board.side(section))
        if c == 0:
            title(ax, cut(case))
    return png(figure, dpi=85)
