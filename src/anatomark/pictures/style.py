"""What pictures with landmarks share: colours, legible type, letters at the edges, scale bars, names beside points."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from anatomark.pictures.labels import place_labels

TRUTH, PREDICTION = "#56b4e9", "#e69f00"  # of Okabe and Ito: told apart with any colour vision
INK, PAPER, WARNING = "#e8eaed", "#101418", "#f87171"
HALO = "#101418"
LEGIBLE = [withStroke(linewidth=1.8, foreground=HALO, alpha=0.7)]  # light text over a bright image
MOST_SIGNS = 60  # of a case's name in a title
plain_text = rc_context({"text.parse_math": False})  # decorates what draws names: a $ in one is a $, no formula


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as a PNG file."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return memory.getvalue()


def caption(name: str, description: str = "") -> str:
    """A landmark's label with its description, ``1 AC``; the description alone adds nothing where both are one."""
    return f"{name} {description}" if description and description != name else name


def cut(name: str) -> str:
    """A case's name, shortened in its middle where it is very long: the ends tell cases apart."""
    half = MOST_SIGNS // 2
    return name if len(name) <= MOST_SIGNS else f"{name[: half - 1]}…{name[-half:]}"


def title(ax: Axes, text: str, size: float = 10) -> None:
    """A name over the upper left corner."""
    ax.text(0.02, 0.98, text, transform=ax.transAxes, ha="left", va="top", color=INK, fontsize=size, weight="bold",
            path_effects=LEGIBLE, snap=False)  # fmt: skip


def edge_letters(ax: Axes, letters: Sequence[str], size: float = 8, inset: float = 0.03) -> None:
    """One letter at the left, right, top and bottom edge each."""
    far = 1 - inset
    places = (inset, 0.5, "left", "center"), (far, 0.5, "right", "center"), (0.5, far, "center", "top")
    for letter, (x, y, ha, va) in zip(letters, (*places, (0.5, inset, "center", "bottom")), strict=False):
        # snapped to pixels, the foot of an L with a halo vanishes, and left becomes inferior
        ax.text(x, y, letter, transform=ax.transAxes, ha=ha, va=va, color=INK, fontsize=size, path_effects=LEGIBLE,
                snap=False)  # fmt: skip


def scale_bar(ax: Axes, width_mm: float, most: float = 0.4, right: bool = False) -> None:
    """A bar of 1, 2 or 5 times a power of ten mm, at most a share of the width of the axes, at their left or right."""
    power = 10 ** np.floor(np.log10(width_mm * most))
    length = max(m * power for m in (1, 2, 5) if m * power <= width_mm * most)
    x, y = 0.96 - length / width_mm if right else 0.04, 0.05
    bar = [x, x + length / width_mm], [y, y]
    ax.plot(*bar, transform=ax.transAxes, color=INK, lw=2, solid_capstyle="butt", path_effects=LEGIBLE)
    text = f"{length:g} mm"
    ax.text(x, y + 0.025, text, transform=ax.transAxes, color=INK, fontsize=7, va="bottom", path_effects=LEGIBLE,
            snap=False)  # fmt: skip


def draw_labels(ax: Any, points: Sequence[tuple[str, float, float]], size: float, edges: tuple[float, float]) -> None:
    """The names of ``points`` (text, x, y) in type of ``size``, where they cover neither each other nor a point, as far
    as there is room between the left and right ``edges`` of the axes, mm."""
    point = (edges[1] - edges[0]) / (ax.figure.get_figwidth() * 72)  # mm of one point of type
    for label in place_labels(points, point, size, edges):
        if label.far:
            ax.plot([label.x, label.near], [label.y, label.level], color=INK, lw=0.5, alpha=0.7)
        ax.text(
            label.near, label.level, label.text, color=INK, fontsize=size, va="center",
            ha="left" if label.right else "right", path_effects=LEGIBLE, snap=False,
        )  # fmt: skip
