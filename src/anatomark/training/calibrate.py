"""Calibration of a trained model on cases that it did not learn from: radii, threshold of absence, review flag."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anatomark.cases.division import Division, read_division, spread
from anatomark.cases.look.distrust import without_certain_errors
from anatomark.cases.manifest import read_manifest
from anatomark.errors import InputError
from anatomark.io.atomic import read_json, write_json, write_text
from anatomark.io.claim import TAIL, TEMPORARY, Claim, claimed
from anatomark.model.compose import Plan
from anatomark.model.confidence.presence_trials import CASES, described_presence, frozen_threshold
from anatomark.model.confidence.radius import LEVEL, calibrated, described_radii
from anatomark.model.confidence.review import Review, described_review, learn_review, write_reference
from anatomark.model.residuals import Residuals, residuals_in
from anatomark.model.run_files import write_list
from anatomark.model.run_folder import WEIGHTS, Run, load_run
from anatomark.progress import Reporter

CALIBRATION = "calibration.json"
PARTS = ("config.yaml", "plan.json", WEIGHTS, "card.md", "LICENSE.txt", "log.csv")
HEADING = "## Calibrated"
ENOUGH = 10  # independent cases below which a warning stands
NOTHING = "no independent case: no radii (give rows the split val that the model did not learn from)"


@dataclass(frozen=True)
class Calibrated:
    """What a calibration learned: the run folder ``out``, ``facts`` of its ``calibration.json``, ``learned`` in
    lines."""

    out: Path
    facts: dict[str, Any]
    learned: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        return {"model": str(self.out), "calibration": self.facts}

    def lines(self) -> list[str]:
        return [*self.learned, f"model: {self.out}"]


def calibrate(
    model: str | os.PathLike[str],
    cases: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    out_of_fold: Residuals | None = None,
    report: Reporter | None = None,
) -> Calibrated:
    """Copy a run folder (or a zoo model) to ``out`` with a calibration learned anew; the weights stay as they are.

    ``cases``, a manifest: what the training images look like is learned from its split ``train``, errors from its
    split ``val``; without val rows from the cases that training with the model's own settings holds out.
    ``out_of_fold``: predictions of models that did not see their cases, instead. Without any independent case only the
    review flag is learned. Raises InputError: no such model, ``out`` exists, landmarks that the model does not know.
    """
    out, report = Path(out), report or Reporter(quiet=True)
    with claimed(out, beside=True) as claim:
        if claim.unfinished(out / CALIBRATION):  # killed when it was done
            return Calibrated(out, read_json(out / CALIBRATION), ("is finished already",))
        if os.path.lexists(out):
            raise InputError(f"{out}: exists already; choose another `out`")
        return _calibrated(load_run(model), cases, out, claim, out_of_fold, report)


def _calibrated(
    run: Run,
    cases: str | os.PathLike[str],
    out: Path,
    claim: Claim,
    out_of_fold: Residuals | None,
    report: Reporter,
) -> Calibrated:
    division = _division(run, cases)
    residuals = out_of_fold
    if residuals is None and division.independent:
        cropped, seed = spread(len(division.val), CASES), run.config.seed
        residuals = residuals_in(run.build(), division.val, cropped=cropped, seed=seed, report=report)
    how = "out-of-fold" if out_of_fold is not None else division.how
    learned = learn_confidence(run.plan, division, residuals, how, report)
    learned.facts["unproven"] = run.calibration.get("unproven") or ""  # the weights are what they were
    lines = [NOTHING if residuals is None else f"{len(residuals.cases)} cases, {how}: {residuals.summary()}"]
    lines += learned.lines
    if residuals is not None and len(residuals.cases) < ENOUGH:
        count = len(residuals.cases)
        lines.append(f"{count} independent cases say little: radii and limits are rough; better {ENOUGH}")
    partial = out.with_name(f"{TEMPORARY}{out.name[-TAIL:]}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    try:
        partial.mkdir()
        for name in PARTS:
            if (run.folder / name).exists():
                shutil.copyfile(run.folder / name, partial / name)
        if (partial / "card.md").exists():
            old = (partial / "card.md").read_text(encoding="utf-8").split(f"\n{HEADING}")[0].rstrip()
            listed = "\n".join(f"- {line}" for line in lines)
            write_text(partial / "card.md", f"{old}\n\n{HEADING}\n\n{listed}\n")
        if learned.review is not None:
            write_reference(partial, learned.review)
        write_json(partial / CALIBRATION, learned.facts)
        claim.note(out / CALIBRATION, partial / CALIBRATION)
        write_list(partial)
        partial.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Calibrated(out, learned.facts, tuple(lines))


@dataclass(frozen=True)
class Learned:
    """How far to trust a model: what ``calibration.json`` holds, the review flag, and a line each on the threshold of
    absence, the radii and the flag."""

    facts: dict[str, Any]
    review: Review | None
    lines: tuple[str, ...]


def learn_confidence(
    plan: Plan, division: Division, independent: Residuals | None, how: str, report: Reporter
) -> Learned:
    """Radii and threshold of absence from predictions in ``independent`` cases (without any, everything is null), the
    review flag from these and the training cases; ``how`` they are independent."""
    radius: dict[str, Any] = {"pooled": None, "landmarks": {}}
    count = 0 if independent is None else len(independent.cases)
    if independent is not None and count:
        radius = calibrated(independent.errors, independent.predictions, plan.names)
    presence = frozen_threshold(None if independent is None else independent.trials)
    review = learn_review(plan, division.train, division.val, independent, presence, report)
    facts = {
        **{"version": 1, "level": LEVEL, "source": how, "cases": count, "pooled": None, "landmarks": {}},
        **radius,
        "presence": presence,
        "trust": None if review is None else review.usual.to_json(),
    }
    return Learned(facts, review, (described_presence(presence), described_radii(facts), described_review(review)))


def _division(run: Run, manifest_path: str | os.PathLike[str]) -> Division:
    """The cases, with the model's landmarks in its order."""
    manifest = read_manifest(manifest_path, unlabelled=True)
    if not manifest.has_split("train"):
        raise InputError(
            f"{manifest_path}: has no case of split train; call some so, they show what images usually look like"
        )
    first = manifest.labelled()[0].landmarks
    if not set(run.plan.names) <= set(first.names):
        of_model, of_cases = (", ".join(map(repr, n[:3])) for n in (run.plan.names, first.names))
        raise InputError(
            f"{manifest_path}: its landmarks ({of_cases} ...) are not those of the model {run.folder} ({of_model} ...)"
        )
    c = run.config
    division = read_division(
        manifest_path, names=run.plan.names, val_fraction=c.val_fraction, seed=c.seed, unlabelled=True
    )
    division = without_certain_errors(division) if c.distrust else division
    return replace(division, how="none") if division.how == "augmented copies" else division
