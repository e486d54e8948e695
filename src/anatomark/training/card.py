"""The model card: what a model is, what it learned from, how good it is, and what it is not for."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import anatomark
from anatomark.cases.division import Division
from anatomark.errors import counted
from anatomark.model.compose import Composed
from anatomark.model.config import RunConfig
from anatomark.model.residuals import Residuals
from anatomark.progress import clock

COMBINED = "mean of all observers, freed from their offsets to the one named; validation: the one named"


def card(
    config: RunConfig,
    composed: Composed,
    division: Division,
    residuals: Residuals | None,
    out_of_fold: Residuals | None,
    learned: Sequence[str],
    seconds: float,
) -> str:
    """``card.md``: what the model is, what it learned from, how good it is, and what it is not for. ``learned``: lines
    on how far to trust it."""
    choice, plan = config.method, composed.plan.method
    versions = f"anatomark {anatomark.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    count = sum(p.numel() for p in composed.parameters())
    labels = zip(plan.names, plan.descriptions or [""] * len(plan.names), strict=True)
    landmarks = ", ".join(f"{name} {text}".strip().replace("|", "/") for name, text in labels)
    lines = [
        f"# Model card: {choice.name} ({choice.preset})",
        "",
        "For research, not a medical device.",
        "",
        "| | |",
        "|---|---|",
        f"| method | {choice.name}, preset {choice.preset}, {count / 1e6:.2f} M parameters |",
        f"| landmarks | {len(plan.names)} in {plan.ndim}D: {landmarks} |",
        f"| modality | {plan.modality} |",
        f"| data | {division.describe()} |",
        *([f"| truth in training | {COMBINED} |"] if config.observers == "combined" else []),
        *([f"| distilled | {division.taught.said} |"] if division.taught else []),
        *([f"| left out as certainly wrong | {_left_out(division)} |"] if division.left_out_points else []),
        f"| training cases | {', '.join(c.id for c in division.train)} |",
        f"| steps | {', '.join(f'{k} {v}' for k, v in config.stage_steps.items())}, seed {config.seed} |",
        f"| time | {clock(seconds)} |",
        f"| licence of the data and the weights | {config.license} |",
        f"| versions | {versions} |",
        "",
        *(["## Why these settings", "", *(f"- {line}" for line in config.reasons), ""] if config.reasons else []),
        "## Errors",
        "",
    ]
    lines += _errors(division, residuals, out_of_fold, plan.names)
    absence, *others = (f"{line[0].upper()}{line[1:]}." for line in learned)
    for line in (absence, *composed.notes(), *others):
        lines += ["", line]
    return "\n".join(lines) + "\n"


def _left_out(division: Division) -> str:
    points = division.left_out_points.items()
    return "; ".join(f"{case}: {', '.join(names)}" for case, names in points).replace("|", "/")


def _errors(
    division: Division, residuals: Residuals | None, out_of_fold: Residuals | None, names: list[str]
) -> list[str]:
    lines: list[str] = []
    if out_of_fold is not None:
        lines += ["Out-of-fold: each case by a model that did not learn from it.", "", *_table(out_of_fold, names), ""]
    if not division.independent:
        lines += ["**No independent validation**: no case was spared for it.", ""]
    if residuals is not None and residuals.cases:
        copies = division.how == "augmented copies"
        source = "augmented copies of the training cases, optimistic" if copies else division.how
        chosen = "the weights were chosen by these errors, so they are slightly optimistic"
        lines += [
            f"Validation on {counted(len(residuals.cases), 'case')} ({source}); {chosen}.",
            "",
            *_table(residuals, names),
        ]
    return lines


def _table(residuals: Residuals, names: list[str]) -> list[str]:
    rows = ["| landmark | n | mean mm | median mm | 95th percentile mm | missed |", "|---|---|---|---|---|---|"]
    annotated = np.stack([t.defined for t in residuals.truths])
    columns: list[tuple[str, Any]] = [("all", slice(None)), *((n.replace("|", "/"), k) for k, n in enumerate(names))]
    for name, k in columns:
        values = residuals.errors[:, k]
        e = values[np.isfinite(values)]
        figures = (np.mean(e), np.median(e), np.percentile(e, 95)) if len(e) else (np.nan,) * 3
        shown = " | ".join(f"{v:.2f}" for v in figures)
        rows.append(f"| {name} | {len(e)} | {shown} | {annotated[:, k].sum() - len(e)} |")
    return rows
