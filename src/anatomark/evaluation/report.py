"""The report: one self-contained HTML file with figures, tables and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anatomark.core.grid import Array
from anatomark.evaluation.metrics import Errors, interval
from anatomark.evaluation.result import EvaluationResult
from anatomark.pictures.style import caption, plain_text, png

if TYPE_CHECKING:
    from anatomark.evaluation.viewer import Viewer

MODEL_COLOUR, PALE, GREY, DARK, WARM = "#0f766e", "#ccece7", "#94a3b8", "#334155", "#b45309"
# of Okabe and Ito, each with a stroke of its own
BESIDE = (("#d55e00", "--"), ("#0072b2", ":"), ("#cc79a7", "-."), ("#475569", (0, (5, 1, 1, 1))))
RELIABLE = 20  # radii in a group of the reliability plot, at least
MOST_BOXES = 60
TEMPLATE = Path(__file__).with_name("report.html.j2")  # it includes viewer.html.j2 and viewer.js.j2


@dataclass(frozen=True)
class CasePicture:
    """``png`` of one case: ``word`` (Best, Median, Worst), the index of the case, the landmarks shown."""

    word: str
    case: int
    png: bytes
    shown: Sequence[str]


@plain_text
def render(
    result: EvaluationResult, pictures: Sequence[CasePicture] = (), viewer: Viewer | None = None, *, version: str = ""
) -> str:
    """The report as HTML text. It refers to nothing outside itself."""
    loader = FileSystemLoader(TEMPLATE.parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    named = partial(_caption, result)
    environment.filters.update(mm=_mm, share=_share, seconds=_seconds, key=_key, embed=_embed, caption=named)
    landmarks, reliability = result.landmark_rows(), reliability_plot(result)
    by_case = len(result.errors.ranking()) > 1 and result.overall.located
    return environment.get_template(TEMPLATE.name).render(
        result=result,
        version=version,
        thresholds=[f"{t:g}" for t in result.thresholds],
        tiles=_tiles(result),
        three=result.errors.offset.shape[-1] == 3,
        curve=png(error_curve(result)),
        by_case=png(case_plot(result)) if by_case else b"",
        boxes=png(box_plot(result)),
        reliability=b"" if reliability is None else png(reliability),
        landmarks=landmarks,
        cases=result.case_rows(),
        has={
            key: any(row[key] is not None for row in landmarks)
            for key in ("radius90_mm", "score", "mean_position_mm", "observers_mm", "ci_low_mm")
        },
        top=max([row["mre_mm"] for row in landmarks if row["mre_mm"] is not None], default=1.0) or 1.0,
        pictures=pictures,
        viewer=viewer,
        most_boxes=MOST_BOXES,
    )


def error_curve(result: EvaluationResult) -> Figure:
    """Share of all annotated pairs located within a distance, for the model and what stands beside it."""
    wide = len(result.errors.ranking()) < 2  # with one case this plot stands alone in its row
    figure, ax = _plot(11.0 if wide else 5.4)
    reach = _reach(result)
    _step(ax, result.errors, reach, color=MODEL_COLOUR, lw=2.4, label=result.model, zorder=3)
    for (name, errors), (colour, style) in zip(result.beside.items(), BESIDE, strict=False):
        _step(ax, errors, reach, color=colour, ls=style, lw=1.3, label=name)
    for t in result.thresholds:
        if t < reach:
            ax.axvline(t, color=GREY, lw=0.6, alpha=0.6, zorder=0)
    ax.set(xlim=(0, reach), ylim=(0, 101), xlabel="radial error (mm)", ylabel="landmarks within this distance (%)")
    return _finished(figure, ax, 3 if wide else 2)


def case_plot(result: EvaluationResult) -> Figure:
    """Cases by rising mean error, with the span from each one's smallest to its largest error."""
    errors = result.errors
    order = [int(m) for m in np.argsort(errors.case_error) if np.isfinite(errors.case_error[m])]
    figure, ax = _plot()
    rank = np.arange(1, len(order) + 1)
    mean, low, high = errors.case_error[order], np.nanmin(errors.error[order], 1), np.nanmax(errors.error[order], 1)
    width = float(np.clip(160 / len(order), 0.8, 7))
    ax.vlines(rank, low, high, color=PALE, lw=width, label="smallest to largest error")
    ax.plot(rank, mean, "o", color=MODEL_COLOUR, ms=float(np.clip(200 / len(order), 2.2, 6)), label="case error (mean)")
    failed = np.array([errors.failures(m) > 0 for m in order])
    if failed.any():
        ax.plot(rank[failed], np.zeros(failed.sum()), "x", color="#b91c1c", ms=4, clip_on=False, label="not all found")
    ax.set(xlim=(0.3, len(order) + 0.7), ylim=(0, None), xlabel="case, by rising error", ylabel="radial error (mm)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, ax, 3)


def box_plot(result: EvaluationResult) -> Figure:
    """Radial errors by landmark, the largest median first; a tick is the median distance between observers, if known.

    Boxes are quartiles, whiskers reach 1.5 times their range; with fewer than 5 cases the errors stand as dots.
    """
    errors = result.errors.error
    located = [errors[np.isfinite(errors[:, n]), n] for n in range(errors.shape[1])]
    order = sorted((n for n, e in enumerate(located) if e.size), key=lambda n: -float(np.median(located[n])))
    order = order[:MOST_BOXES]
    shown = [located[n] for n in order]
    labels = [_short(_caption(result, result.errors.names[n])) for n in order]
    turned = max((len(text) for text in labels), default=0) > 4
    figure, ax = _plot(11.0, 4.6 if turned else 3.6)
    at = np.arange(1, len(order) + 1)
    if max((e.size for e in located), default=0) < 5:
        for x, e in zip(at, shown, strict=True):
            ax.plot(np.full(e.size, x), e, "o", color=MODEL_COLOUR, ms=5, alpha=0.8)
        ax.vlines(at, 0, [float(e.max()) for e in shown], color=PALE, lw=2, zorder=0)
    elif order:
        line = {"color": MODEL_COLOUR, "linewidth": 0.9}
        ax.boxplot(
            shown,
            widths=0.6,
            patch_artist=True,
            boxprops={"facecolor": PALE, "edgecolor": MODEL_COLOUR, "linewidth": 0.9},
            medianprops={"color": MODEL_COLOUR, "linewidth": 1.8},
            whiskerprops=line,
            capprops=line,
            flierprops={"marker": ".", "markersize": 4, "markeredgecolor": GREY, "markerfacecolor": GREY},
        )
    between = next(iter(result.observers.values()), None)
    if between is not None and order:
        medians = [np.nanmedian(e) if np.isfinite(e).any() else np.nan for e in between.error.T[order]]
        ax.plot(at, medians, "_", color=WARM, ms=13, mew=2, label="median distance between observers")
        ax.legend(loc="upper right", fontsize=8, frameon=False, labelcolor=DARK)
    ax.set_xticks(at, labels)
    if turned:
        for text in ax.get_xticklabels():
            text.set(rotation=50, ha="right", rotation_mode="anchor")
    ax.set(ylim=(0, None), xlim=(0.3, len(order) + 0.7), ylabel="radial error (mm)")
    _cut_outliers(ax, np.concatenate(shown) if shown else np.zeros(0))
    return _finished(figure, ax)


def reliability_plot(result: EvaluationResult) -> Figure | None:
    """Predicted 90 % radii against the radii that did hold 90 % of the landmarks, in groups of similar radius; None
    with fewer than 40 radii. On the diagonal the radii hold what they say."""
    errors = result.errors
    both = np.isfinite(errors.error) & np.isfinite(errors.radius90)
    radius, error = errors.radius90[both], errors.error[both]
    if len(radius) < 2 * RELIABLE:
        return None
    groups = np.array_split(np.argsort(radius, kind="stable"), min(8, len(radius) // RELIABLE))
    predicted = np.array([np.median(radius[g]) for g in groups])
    observed = np.array([np.quantile(error[g], 0.9, method="higher") for g in groups])
    rng = np.random.default_rng(0)
    draws = [np.quantile(error[g][rng.integers(0, len(g), (500, len(g)))], 0.9, axis=1) for g in groups]
    low, high = np.array([interval(d) for d in draws]).T
    figure, ax = _plot()
    reach = 1.1 * max(predicted.max(), observed.max())
    ax.plot([0, reach], [0, reach], color=GREY, lw=0.9, ls="--", label="holds what it says")
    ax.vlines(predicted, low, high, color=PALE, lw=5)
    ax.plot(predicted, observed, "o-", color=MODEL_COLOUR, ms=5, label="observed (bars: 95 % interval)")
    for x, y, g in zip(predicted, observed, groups, strict=True):
        inside = float((error[g] <= radius[g]).mean())
        ax.annotate(f"{inside:.0%}", (float(x), float(y)), (4, -11), textcoords="offset points", fontsize=7, color=DARK)
    ax.set(xlim=(0, reach), ylim=(0, reach))
    ax.set(xlabel="predicted 90 % radius (mm)", ylabel="radius that held 90 % (mm)")
    return _finished(figure, ax, 2)


def _plot(width: float = 5.4, height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    return figure, figure.subplots()


def _finished(figure: Figure, ax: Axes, columns: int = 0) -> Figure:
    """The figure in the report's style, with a legend of so many ``columns`` above, if any."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(colors=DARK, labelsize=8, length=3)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=DARK, fontsize=9)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color="#e2e8f0", lw=0.7)
    if columns:
        figure.legend(loc="outside upper center", ncols=columns, fontsize=7.5, frameon=False, labelcolor=DARK)
    return figure


def _cut_outliers(ax: Axes, pool: Array) -> None:
    """Where a few errors are far larger than all others, end the axis below them and say so."""
    if pool.size < 20 or pool.max() < 1.5 * (top := 1.3 * float(np.percentile(pool, 98))):
        return
    ax.set_ylim(0, top)
    text = f"above: {int((pool > top).sum())} errors, up to {pool.max():.1f} mm"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    ax.text(0.012, 0.97, text, transform=ax.transAxes, fontsize=8, color=DARK, va="top", bbox=box, zorder=5)


def _reach(result: EvaluationResult) -> float:
    """Where the curve's axis ends: nearly all of the model's errors, and the thresholds that lie near."""
    pool = result.errors.error[np.isfinite(result.errors.error)]
    if not pool.size:
        return float(max(result.thresholds))
    reach = 1.25 * float(np.percentile(pool, 98))
    near = [t for t in result.thresholds if t < 1.3 * reach]
    return max([reach, 1e-3, *(1.1 * t for t in near)])


def _step(ax: Axes, errors: Errors, reach: float, **style: Any) -> None:
    pool = np.sort(errors.error[np.isfinite(errors.error) & errors.annotated])
    share = 100 * np.arange(len(pool) + 1) / max(int(errors.annotated.sum()), 1)
    end = max(reach, pool[-1] if pool.size else 0.0)
    ax.step(np.r_[0.0, pool, end], np.r_[share, share[-1]], where="post", **style)


def _tiles(result: EvaluationResult) -> list[tuple[str, str, str]]:
    """(title, value, small print) of the header."""
    s, low_high = result.overall, result.overall.mre_ci95_mm
    ci = f"95 % CI {low_high[0]:.2f}–{low_high[1]:.2f}" if low_high else "one case: no CI"
    tiles = [
        ("Mean radial error", f"{_mm(s.mre_mm)} mm", ci),
        ("Median", f"{_mm(s.median_mm)} mm", f"SD {_mm(s.sd_mm)} mm"),
        ("95th percentile", f"{_mm(s.p95_mm)} mm", f"largest {_mm(s.max_mm)} mm"),
    ]
    for t, share in list(s.sdr.items())[:1]:
        low_high = s.sdr_ci95.get(t)
        ci = f"95 % CI {_share(low_high[0])}–{_share(low_high[1])}" if low_high else "failures are misses"
        tiles.append((f"Within {t} mm", f"{_share(share)} %", ci))
    tiles.append(("Failures", str(s.failures), f"of {s.pairs} points"))
    if s.absent:
        precise = f"precision {_share(s.absence_precision)} %"
        tiles.append((f"Found absent, of {s.absent}", f"{_share(s.absence_recall)} %", precise))
    if s.covered90 is not None:
        tiles.append(("In 90 % radius", f"{_share(s.covered90)} %", "should be 90 %"))
    if (seconds := result.median_of("seconds")) is not None:
        aligned, peak_gb = result.median_of("align_seconds"), result.predictions.peak_gb
        notes = [] if aligned is None else [f"{_seconds(aligned)} of it alignment"]
        notes += [] if peak_gb is None else [f"memory {peak_gb:.1f} GB"]
        tiles.append(("Time per case", _seconds(seconds), ", ".join(notes) or "median"))
    return tiles


def _caption(result: EvaluationResult, name: str) -> str:
    return caption(name, result.descriptions.get(name, ""))


def _embed(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _mm(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{1000 * value:.0f} ms" if value < 0.995 else f"{value:.1f} s"


def _key(value: Any) -> Any:
    """What a table sorts by; an unknown value sorts last."""
    return "" if value is None else value


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
