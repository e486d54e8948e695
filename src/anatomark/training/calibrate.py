"""Calibration of a trained model on cases that it did not learn from: radii, threshold of absence, review flag."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.division import Division, Source, read_division
from anatomark.cases.manifest import read_manifest
from anatomark.errors import InputError
from anatomark.io.atomic import write_json, write_text
from anatomark.model.confidence.presence_trials import CASES, Trials, case_trials, described_presence, frozen_threshold
from anatomark.model.confidence.review import described_review, learn_review, write_reference
from anatomark.model.residuals import Residuals
from anatomark.model.run_folder import WEIGHTS, Run, load_run
from anatomark.progress import Reporter
from anatomark.training.finish import calibration
from anatomark.training.folds import summary

PARTS = ("config.yaml", "plan.json", WEIGHTS, "card.md", "LICENSE.txt", "log.csv")
HEADING = "## Calibrated"
ENOUGH = 10  # independent cases below which a warning stands
NOTHING = "no independent case: no radii (give rows the split val that the model did not learn from)"


@dataclass(frozen=True)
class Calibrated:
    """What a calibration learned: the run folder ``out``, ``facts`` of its ``calibration.json``, ``said`` in lines."""

    out: Path
    facts: dict[str, Any]
    said: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Plain data."""
        return {"model": str(self.out), "calibration": self.facts}

    def lines(self) -> list[str]:
        """For the console."""
        return [*self.said, f"model: {self.out}"]


def calibrate(
    model: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    out_of_fold: Residuals | None = None,
    report: Reporter | None = None,
) -> Calibrated:
    """Copy a run folder (or a zoo model) to ``out`` with a calibration learned anew; the weights stay as they are.

    ``manifest``: what the training images look like is learned from its split ``train``, errors from its split ``val``;
    without val rows from the cases that training with the model's own settings holds out. ``out_of_fold``: predictions
    of models that did not see their cases, instead. Without any independent case only the review flag is learned.
    Raises InputError: no such model, ``out`` exists, landmarks that the model does not know.
    """
    out, report = Path(out), report or Reporter(quiet=True)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another --out")
    run = load_run(model)
    division = _division(run, manifest)
    found = out_of_fold or (_predicted(run, division, report) if division.independent else None)
    presence = frozen_threshold(found.trials if found is not None else None)
    how = "out-of-fold" if out_of_fold is not None else division.how
    facts = {**calibration(found, how, run.plan.names), "presence": presence}
    trust = learn_review(run.plan, division.train, division.val, found, presence, report)
    facts["trust"] = None if trust is None else trust.usual.to_json()
    errors = NOTHING if found is None else f"{len(found.cases)} cases, {how}: {summary(found)}"
    said = [errors, described_presence(presence), described_review(trust)]
    if found is not None and len(found.cases) < ENOUGH:
        said.append(f"{len(found.cases)} independent cases say little: radii and limits are rough; better {ENOUGH}")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    try:
        partial.mkdir()
        for name in PARTS:
            if (run.folder / name).exists():
                shutil.copyfile(run.folder / name, partial / name)
        if (partial / "card.md").exists():
            old = (partial / "card.md").read_text(encoding="utf-8").split(f"\n{HEADING}")[0].rstrip()
            lines = "\n".join(f"- {line}" for line in said)
            write_text(partial / "card.md", f"{old}\n\n{HEADING}\n\n{lines}\n")
        if trust is not None:
            write_reference(partial, trust)
        write_json(partial / "calibration.json", facts)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Calibrated(out, facts, tuple(said))


def _division(run: Run, manifest: str | os.PathLike[str]) -> Division:
    """The cases, with the model's landmarks in its order."""
    cases = read_manifest(manifest)
    if not cases.has_split("train"):
        raise InputError(
            f"{manifest}: has no case of split train; call some so, they show what images usually look like"
        )
    first = cases.split("train")[0].read_landmarks()
    if not set(run.plan.names) <= set(first.names):
        of_model, of_cases = (", ".join(map(repr, n[:3])) for n in (run.plan.names, first.names))
        raise InputError(
            f"{manifest}: its landmarks ({of_cases} ...) are not those of the model {run.folder} ({of_model} ...)"
        )
    config = run.config.model_copy(update={"landmarks": list(run.plan.names), "observers": "named"})
    division = read_division(manifest, config)
    if division.how == "augmented copies":
        division = replace(division, how="none")
    return division


def _predicted(run: Run, division: Division, report: Reporter) -> Residuals:
    """Predictions in the independent cases, and in one crop of some of them."""
    method, predictions, trials = run.method(), [], Trials()
    sources: tuple[Source, ...] = division.val
    crops = set(np.linspace(0, len(sources) - 1, min(len(sources), CASES)).round().astype(int).tolist())
    with report.bar("predict", len(sources)) as bar:
        for i, s in enumerate(sources):
            image = s.image()
            predictions.append(method.locate(image))
            locate = method.locate if i in crops else None
            trials += case_trials(locate, s.id, image, s.landmarks, predictions[-1], run.config.seed)
            bar.update(i + 1, s.id)
    return Residuals(tuple(s.id for s in sources), tuple(predictions), tuple(s.landmarks for s in sources), trials)
