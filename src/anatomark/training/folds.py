"""K-fold cross-validation within the training cases: every case is predicted by a model that did not see it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.division import Division, divided
from anatomark.engine.jobs import Job, Side, done
from anatomark.errors import InputError
from anatomark.io.atomic import write_json
from anatomark.io.sheets import write_csv
from anatomark.model.confidence.presence_trials import CASES, described_presence, frozen_threshold
from anatomark.model.config import RunConfig, read_config
from anatomark.model.residuals import Residuals, residuals_in
from anatomark.model.run_folder import Run, load_run
from anatomark.progress import Reporter

LOG = "fit.log"  # of a training that is done side by side with others


def split_folds(count: int, folds: int, seed: int) -> list[list[int]]:
    """``folds`` lists of case numbers, seeded, of sizes that differ by at most one. Raises InputError."""
    if folds < 2:
        raise InputError(f"`folds` {folds}: give 2 or more")
    if folds > count:
        raise InputError(f"`folds` {folds}: there are only {count} training cases; give at most {count}")
    order = np.random.default_rng([seed, 22]).permutation(count)
    return [sorted(order[k::folds].tolist()) for k in range(folds)]


@dataclass(frozen=True)
class Fold:
    """A training on ``division`` in ``folder`` by ``train``, then the predictions of ``cases``, which it did not see,
    those in ``cropped`` (numbers) in crops too. It pickles."""

    train: Callable[..., Any]
    division: Division
    folder: Path
    config: RunConfig
    init: Run | None
    cases: Sequence[Case]
    cropped: range

    def __call__(self, report: Reporter) -> Residuals:
        if not (self.folder / "weights.safetensors").exists():
            config = _settled(self.folder, self.config)
            self.train(self.division, self.folder, config, init=self.init, report=report)
        composed = load_run(self.folder).build()
        return residuals_in(composed, self.cases, cropped=self.cropped, seed=self.config.seed, before=True)


def cross_validate(
    train: Callable[..., Any],
    division: Division,
    run: Path,
    config: RunConfig,
    folds: int,
    *,
    init: Run | None = None,
    side: Side | None = None,
    report: Reporter | None = None,
) -> tuple[Residuals, RunConfig]:
    """Train one model per fold in ``run/folds/<k>`` and predict its fold; pooled errors go to ``run/folds``.

    ``train`` is ``train.fit_division``. All training cases take part, those held out for validation too. A time budget
    is shared by the folds and the final model: the first fold's number of steps serves all, and the config with these
    steps is returned too. Finished folds are kept, so a killed run goes on. With ``side`` folds are trained side by
    side, but for the first where it decides on the steps. Raises InputError.
    """
    report = report or Reporter()
    fixed = division.how == "val split"
    cases = [*division.train, *(() if fixed else division.val)]
    parts = split_folds(len(cases), folds, config.seed)
    results: dict[int, Residuals] = {}
    cache = Path(config.cache) if config.cache else run / "folds" / "cache"
    if config.minutes is not None:
        config = config.model_copy(update={"minutes": config.minutes / (folds + 1)})

    def job(k: int) -> Job[Residuals]:
        part = parts[k]
        rest = [c for i, c in enumerate(cases) if i not in part]
        held = division.val if fixed else ()
        inner = divided(rest, held, division.names, val_fraction=config.val_fraction, seed=config.seed)
        folder = run / "folds" / str(k + 1)
        own = config.model_copy(update={"cache": str(cache)}, deep=True)
        fold = Fold(train, inner, folder, own, init, [cases[i] for i in part], range(-(-CASES // folds)))
        return Job(f"fold {k + 1} of {folds}: {', '.join(cases[i].id for i in part)}", fold, folder / LOG)

    if config.minutes is not None:
        results |= done([job(0)], side, report)
        steps = read_config(run / "folds" / "1" / "config.yaml")
        update = {"minutes": None, "stage_steps": steps.stage_steps, "validate_every": steps.validate_every}
        config = config.model_copy(update=update, deep=True)
    first = len(results)
    results |= ((first + k, made) for k, made in done([job(k) for k in range(first, folds)], side, report))
    if config.cache is None:
        shutil.rmtree(cache, ignore_errors=True)
    ordered = [(k + 1, results[k]) for k in range(folds)]
    pooled = Residuals.pooled([r for _, r in ordered])
    _write(run / "folds", pooled, ordered, division.names)
    report.say(f"out-of-fold: {pooled.summary()}; per landmark in {run / 'folds' / 'out_of_fold.csv'}")
    report.say(described_presence(frozen_threshold(pooled.trials)))
    return pooled, config


def _settled(folder: Path, config: RunConfig) -> RunConfig:
    """The settings of a fold that was begun already, else ``config``."""
    return read_config(folder / "config.yaml") if (folder / "config.yaml").exists() else config


def _rows(results: Sequence[tuple[int, Residuals]], names: Sequence[str]) -> Iterator[dict[str, object]]:
    for fold, residuals in results:
        for case, prediction, truth in zip(residuals.cases, residuals.predictions, residuals.truths, strict=True):
            errors = truth.select(names).errors_to(prediction)
            points = prediction.select(names).points
            for name, point, error, defined in zip(names, points, errors, truth.select(names).defined, strict=True):
                xyz = {a: f"{v:.4f}" if np.isfinite(v) else "" for a, v in zip("xyz", point, strict=False)}
                state = "unannotated" if not defined else "missed" if not np.isfinite(error) else "located"
                text = f"{error:.4f}" if np.isfinite(error) else ""
                yield {"fold": fold, "case": case, "label": name, **xyz, "error_mm": text, "outcome": state}


def _write(folder: Path, pooled: Residuals, results: Sequence[tuple[int, Residuals]], names: Sequence[str]) -> None:
    write_csv(folder / "out_of_fold.csv", _rows(results, names))
    e = pooled.errors[np.isfinite(pooled.errors)]
    figures = {"mean_mm": e.mean(), "sd_mm": e.std(ddof=1), "median_mm": np.median(e), "p95_mm": np.percentile(e, 95)}
    summary = {k: round(float(v), 5) for k, v in figures.items()} if len(e) > 1 else {}
    counts = {"located": len(e), "missed": pooled.missed, "folds": len(results)}
    write_json(folder / "out_of_fold.json", {**summary, **counts})
