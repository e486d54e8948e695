"""What a run leaves behind when its training is done: weights, plan, calibration, card."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anatomark
from anatomark.core.grid import Array
from anatomark.engine.cases import Division
from anatomark.engine.checkpoint import write_weights
from anatomark.engine.config import RunConfig, write_config
from anatomark.engine.presence import described_presence, frozen_threshold
from anatomark.engine.progress import clock
from anatomark.engine.validate import Residuals
from anatomark.io.atomic import write_json, write_text
from anatomark.methods.base import Method

LEVEL = 0.9  # share of errors that a radius is to cover
COMBINED = "mean of all observers, freed from their offsets to the one named; validation: the one named"
FEWEST = 9  # errors from which on a 90 % radius of its own is trusted: the 9th of 9 is the quantile


def finish(
    run: Path,
    config: RunConfig,
    method: Method,
    division: Division,
    residuals: Residuals | None,
    out_of_fold: Residuals | None,
    seconds: float,
) -> None:
    """Write the finished run's files; ``weights.safetensors`` last, because its presence means finished.

    Raises InputError where the disk refuses.
    """
    independent = _independent(division, residuals, out_of_fold)
    how = "out-of-fold" if out_of_fold is not None else division.how
    presence = frozen_threshold(independent.trials if independent is not None else None)
    known = calibration(independent, how, method.plan.names)
    write_json(run / "calibration.json", {**known, "presence": presence})
    write_json(run / "plan.json", method.plan.model_dump(mode="json"))
    settled = config.model_copy(update={"minutes": None})  # the steps of each stage say it all
    write_text(run / "card.md", card(settled, method, division, residuals, out_of_fold, seconds))
    write_config(run / "config.yaml", settled)
    write_weights(run, method, half=config.weights == "half")


def _independent(division: Division, residuals: Residuals | None, out_of_fold: Residuals | None) -> Residuals | None:
    """The cases that no weight was fitted to, if there are any."""
    return out_of_fold or (residuals if division.independent else None)


def calibration(residuals: Residuals | None, how: str, names: list[str]) -> dict[str, Any]:
    """What independent errors say of the radius within which a landmark lies with 90 % probability.

    ``radius90_mm``: the conformal 90 % quantile of the errors; ``scale90``: the same of error / sigma, where sigma is
    the root mean variance of the method's covariance. Per landmark and pooled; a value that too few errors support is
    null. Without independent errors everything is null.
    """
    out: dict[str, Any] = {"version": 1, "level": LEVEL, "source": how, "cases": 0, "pooled": None, "landmarks": {}}
    if residuals is None or not residuals.cases:
        return out
    errors = residuals.errors
    sigma = np.stack([sigma_of(p.select(names).covariance, len(names)) for p in residuals.predictions])
    out["cases"] = len(residuals.cases)
    out["pooled"] = _summary(errors.ravel(), sigma.ravel())
    out["landmarks"] = {n: _summary(errors[:, k], sigma[:, k]) for k, n in enumerate(names)}
    return out


def sigma_of(covariance: Array | None, count: int) -> Array:
    """(N,) root mean variance in mm of covariances (N, D, D); NaN where there are none."""
    if covariance is None:
        return np.full(count, np.nan)
    return np.asarray(np.sqrt(np.trace(covariance, axis1=1, axis2=2) / covariance.shape[1]))


def _summary(errors: Array, sigma: Array) -> dict[str, Any]:
    known = np.isfinite(errors)
    ratio = (errors / np.where(sigma > 0, sigma, np.nan))[known]
    e = errors[known]
    return {
        "n": int(known.sum()),
        "mean_mm": _number(e.mean() if len(e) else np.nan),
        "median_mm": _number(np.median(e) if len(e) else np.nan),
        "radius90_mm": _number(_conformal(e)),
        "scale90": _number(_conformal(ratio[np.isfinite(ratio)])),
    }


def _conformal(values: Array) -> float:
    """The smallest value that covers 90 % with finite-sample validity; NaN where too few are given."""
    rank = int(np.ceil((len(values) + 1) * LEVEL))
    return float(np.sort(values)[rank - 1]) if len(values) >= FEWEST and rank <= len(values) else float("nan")


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def card(
    config: RunConfig,
    method: Method,
    division: Division,
    residuals: Residuals | None,
    out_of_fold: Residuals | None,
    seconds: float,
) -> str:
    """``card.md``: what the model is, what it learned from, how good it is, and what it is not for."""
    choice, plan = config.method, method.plan
    versions = f"anatomark {anatomark.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    count = sum(p.numel() for p in method.parameters())
    lines = [
        f"# Model card: {choice.name} ({choice.preset})",
        "",
        "For research, not a medical device.",
        "",
        "| | |",
        "|---|---|",
        f"| method | {choice.name}, preset {choice.preset}, {count / 1e6:.2f} M parameters |",
        f"| landmarks | {len(plan.names)} in {plan.ndim}D: {', '.join(_shown(plan.names, plan.descriptions))} |",
        f"| modality | {plan.modality} |",
        f"| data | {division.describe()} |",
        *([f"| truth in training | {COMBINED} |"] if config.observers == "combined" else []),
        f"| training cases | {', '.join(s.id for s in division.train)} |",
        f"| steps | {', '.join(f'{k} {v}' for k, v in config.stage_steps.items())}, seed {config.seed} |",
        f"| time | {clock(seconds)} |",
        f"| licence of the data and the weights | {config.license} |",
        f"| versions | {versions} |",
        "",
        "## Errors",
        "",
    ]
    lines += _errors(division, residuals, out_of_fold, plan.names)
    independent = _independent(division, residuals, out_of_fold)
    absence = described_presence(frozen_threshold(independent.trials if independent is not None else None))
    lines += ["", f"{absence[0].upper()}{absence[1:]}."]
    for note in method.notes():
        lines += ["", note]
    return "\n".join(lines) + "\n"


def _shown(names: list[str], descriptions: list[str]) -> list[str]:
    texts = descriptions or [""] * len(names)
    return [f"{n} {t}".strip().replace("|", "/") for n, t in zip(names, texts, strict=True)]


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
        lines += [f"Validation on {len(residuals.cases)} cases ({source}); {chosen}.", "", *_table(residuals, names)]
    return lines


def _table(residuals: Residuals, names: list[str]) -> list[str]:
    errors = residuals.errors
    rows = ["| landmark | n | mean mm | median mm | 95th percentile mm | missed |", "|---|---|---|---|---|---|"]
    annotated = np.stack([t.defined for t in residuals.truths])
    columns = [("all", errors, annotated)]
    columns += [(n.replace("|", "/"), errors[:, k], annotated[:, k]) for k, n in enumerate(names)]
    for name, values, truth in columns:
        e = values[np.isfinite(values)]
        figures = (np.mean(e), np.median(e), np.percentile(e, 95)) if len(e) else (np.nan,) * 3
        shown = " | ".join(f"{v:.2f}" for v in figures)
        rows.append(f"| {name} | {len(e)} | {shown} | {truth.sum() - len(e)} |")
    return rows
