"""Pictures of a benchmark: error against seconds per image, against training time, and memory; one figure per data
set, methods named beside their points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from anatomark.core.grid import Array
from anatomark.pictures.style import plain_text, png

# told apart with any colour vision (Tol's muted and bright sets), used in the order of the suite
COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA7733", "#66AADD", "#AA3377", "#555555", "#117733", "#DDAA33", "#882255")
MARKERS = "osD^vPX<>h"
GAP = 0.062  # between names, in heights of the axes


@dataclass(frozen=True)
class Dot:
    """One method on a data set, the mean over its seeds. ``error`` mm with its ``interval``; the rest None where not
    known: ``seconds`` per image, training ``minutes``, ``train_gb``, ``predict_gb``; ``course``: (minutes, validation
    error in mm) of one training."""

    name: str
    error: float
    interval: tuple[float, float] | None = None
    seconds: float | None = None
    minutes: float | None = None
    train_gb: float | None = None
    predict_gb: float | None = None
    course: Sequence[tuple[float, float]] = ()


@plain_text
def benchmark_picture(title: str, dots: Sequence[Dot], split: str = "test") -> bytes:
    """The figure of one data set as PNG; ``split`` is that of the cases measured."""
    return png(benchmark_figure(title, dots, split), dpi=130)


def benchmark_figure(title: str, dots: Sequence[Dot], split: str) -> Figure:
    """What :func:`benchmark_picture` writes."""
    height = 4.2 + 0.16 * max(0, len(dots) - 8)
    figure = Figure(figsize=(17, height), dpi=130, layout="constrained")
    speed, training, memory = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    styles = {d.name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, d in enumerate(dots)}
    _scatter(speed, [(d, d.seconds) for d in dots if d.seconds], styles)
    speed.set(xlabel="seconds per image", ylabel=f"mean error, mm ({split})")
    for d in dots:
        if course := [(minutes, mm) for minutes, mm in d.course if minutes > 0 and mm > 0]:
            training.plot(*zip(*course, strict=True), color=styles[d.name][0], lw=1, alpha=0.6, zorder=1)
    _scatter(training, [(d, d.minutes) for d in dots if d.minutes], styles)
    training.set(xlabel="training, minutes (line: error on validation cases)", ylabel="mean error, mm")
    _bars(memory, dots, styles)
    return figure


def _scatter(ax: Axes, points: Sequence[tuple[Dot, float]], styles: dict[str, tuple[str, str]]) -> None:
    for d, x in points:
        colour, marker = styles[d.name]
        if d.interval is not None:
            ax.plot([x, x], d.interval, color=colour, lw=1.2, alpha=0.7, zorder=2)
        ax.plot([x], [d.error], marker=marker, color=colour, ms=7, mec="white", mew=0.8, ls="none", zorder=4)
    if not points:
        ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", color="#777777")
        return
    for axis, scale in ((ax.xaxis, ax.set_xscale), (ax.yaxis, ax.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.12, y=0.12)
    ax.autoscale_view()
    if ax.get_ylim()[1] / ax.get_ylim()[0] < 2.5:  # too few round numbers would be shown
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
    ax.grid(which="major", color="#e5e5e5", lw=0.8)
    ax.set_axisbelow(True)
    _named(ax, [(d.name, x, d.error) for d, x in points], styles)


def _named(ax: Axes, points: Sequence[tuple[str, float, float]], styles: dict[str, tuple[str, str]]) -> None:
    """Names in a column at the right, in the order of the points' heights, each tied to its point by a thin line."""
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    low, high = (np.log(v) for v in ax.get_ylim())
    order = sorted(points, key=lambda p: p[2])
    rest = GAP * np.arange(len(order))  # what the names below need, and from the other end those above
    heights = np.array([(np.log(p[2]) - low) / (high - low) for p in order])
    heights = spaced(np.clip(heights, rest, np.maximum(rest, 1 - rest[::-1])), GAP)
    for (name, x, y), height in zip(order, heights, strict=True):
        ax.annotate(
            name, (x, y), xytext=(1.03, height), textcoords="axes fraction", va="center", fontsize=8,
            color=styles[name][0], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": styles[name][0], "lw": 0.6, "alpha": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip


def spaced(values: Array, gap: float) -> Array:
    """Rising ``values`` (N,) moved as little as it takes to lie ``gap`` apart: groups that touch share their middle."""
    groups: list[tuple[float, int]] = []  # middle, count
    for v in values:
        groups.append((float(v), 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (b, m), (a, n) = groups.pop(), groups.pop()
            groups.append(((a * n + b * m) / (n + m), n + m))
    return np.array([middle + gap * (k - (n - 1) / 2) for middle, n in groups for k in range(n)])


def _bars(ax: Axes, dots: Sequence[Dot], styles: dict[str, tuple[str, str]]) -> None:
    rows = [d for d in dots if d.train_gb or d.predict_gb][::-1]
    for i, d in enumerate(rows):
        for value, offset, alpha, word in ((d.train_gb, 0.2, 1.0, "training"), (d.predict_gb, -0.2, 0.45, "inference")):
            if value:
                ax.barh(i + offset, value, 0.38, color=styles[d.name][0], alpha=alpha)
                ax.text(value, i + offset, f" {value:.2g} {word}", va="center", fontsize=7, color="#444444")
    ax.set_yticks(range(len(rows)), [d.name for d in rows], fontsize=8)
    ax.set_xlabel("largest resident memory, GB")
    ax.margins(x=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if not rows:
        ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", color="#777777")
