"""What a run leaves behind when its training is done: weights, plan, calibration, card."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anatomark
from anatomark.cases.division import Division
from anatomark.io.atomic import write_json, write_text
from anatomark.methods.base import Method
from anatomark.model.confidence.presence_trials import described_presence, frozen_threshold
from anatomark.model.confidence.radius import LEVEL, calibrated
from anatomark.model.confidence.review import described_review, learn_review, write_reference
from anatomark.model.config import RunConfig, write_config
from anatomark.model.residuals import Residuals
from anatomark.model.run_folder import write_weights
from anatomark.progress import Reporter, clock

COMBINED = "mean of all observers, freed from their offsets to the one named; validation: the one named"


def finish(
    run: Path,
    config: RunConfig,
    method: Method,
    division: Division,
    residuals: Residuals | None,
    out_of_fold: Residuals | None,
    seconds: float,
    report: Reporter | None = None,
) -> None:
    """Write the finished run's files; ``weights.safetensors`` last, because its presence means finished.

    Raises InputError where the disk refuses.
    """
    independent = _independent(division, residuals, out_of_fold)
    how = "out-of-fold" if out_of_fold is not None else division.how
    presence = frozen_threshold(independent.trials if independent is not None else None)
    known = calibration(independent, how, method.plan.names)
    report = report or Reporter(quiet=True)
    trust = learn_review(method.plan, division.train, division.val, independent, presence, report)
    if trust is not None:
        write_reference(run, trust)
    usual = None if trust is None else trust.usual.to_json()
    write_json(run / "calibration.json", {**known, "presence": presence, "trust": usual})
    write_json(run / "plan.json", method.plan.model_dump(mode="json"))
    settled = config.model_copy(update={"minutes": None})  # the steps of each stage say it all
    said = card(settled, method, division, residuals, out_of_fold, seconds)
    line = described_review(trust)
    write_text(run / "card.md", f"{said}\n{line[0].upper()}{line[1:]}.\n")
    write_config(run / "config.yaml", settled)
    write_weights(run, method, half=config.weights == "half")


def _independent(division: Division, residuals: Residuals | None, out_of_fold: Residuals | None) -> Residuals | None:
    """The cases that no weight was fitted to, if there are any."""
    return out_of_fold or (residuals if division.independent else None)


def calibration(residuals: Residuals | None, how: str, names: list[str]) -> dict[str, Any]:
    """What independent errors say of the radius within which a landmark lies with 90 % probability.

    As :func:`anatomark.model.confidence.radius.calibrated` says; without independent errors everything is null.
    """
    out: dict[str, Any] = {"version": 1, "level": LEVEL, "source": how, "cases": 0, "pooled": None, "landmarks": {}}
    if residuals is None or not residuals.cases:
        return out
    out["cases"] = len(residuals.cases)
    out.update(calibrated(residuals.errors, residuals.predictions, names))
    return out


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
        *(["## Why these settings", "", *(f"- {line}" for line in config.reasons), ""] if config.reasons else []),
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
