"""``anatomark fit``: from a manifest to a run folder, resumable to the bit."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from anatomark.cases.division import Division, combined_truth, read_division, spread
from anatomark.cases.look.distrust import left_out_lines, without_certain_errors
from anatomark.cases.manifests import Manifests
from anatomark.core.image import Image
from anatomark.engine.base import Engine
from anatomark.engine.jobs import Side
from anatomark.errors import InputError
from anatomark.io.claim import claimed, remove_empty
from anatomark.methods.base import Evidence
from anatomark.model.confidence.presence_trials import CASES, described_presence, frozen_threshold
from anatomark.model.config import AUTO, RunConfig, completed, make_config, read_config
from anatomark.model.model import Model, Spacing
from anatomark.model.prediction import Prediction
from anatomark.model.residuals import Residuals, residuals_in
from anatomark.model.run_folder import CHECKPOINT, WEIGHTS, Run, load_run
from anatomark.progress import Reporter
from anatomark.training.auto import aligned_in_any_pose, settled
from anatomark.training.finish import finish
from anatomark.training.folds import cross_validate
from anatomark.training.loop import train_stage
from anatomark.training.request import REQUEST, begun, resumed, with_machine, write_request
from anatomark.training.start import initialise, settled_by_init, start
from anatomark.training.state import State, log, restore, save
from anatomark.training.teach import Teacher, taught

ALIKE = 1.02  # of another error: no worse than it
LEFT_OUT_SHOWN = 20  # cases with points that are left out, in the log; the card names all


@dataclass(frozen=True)
class Fitted:
    """A finished run. ``validation`` is None where nothing was validated; ``independent``: whether no weight was fitted
    to the cases it is of; ``seconds`` over all sittings."""

    run: Path
    validation: Residuals | None
    independent: bool
    seconds: float

    @cached_property
    def model(self) -> Model:
        """The trained model, loaded from the run folder."""
        return Model(load_run(self.run))

    def predict(self, image: Image | str | os.PathLike[str], spacing: Spacing = None) -> Prediction:
        return self.model.predict(image, spacing)


def fit(
    cases: Manifests,
    out: str | os.PathLike[str],
    config: RunConfig | str | os.PathLike[str] | None = None,
    *,
    init: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
    folds: int = 0,
    resume: bool = False,
    engine: Engine | None = None,
    report: Reporter | None = None,
    **settings: Any,
) -> Fitted:
    """Train a model on the training cases of the manifest ``cases`` (of several they are merged, the later counts:
    :func:`~anatomark.cases.manifests.read_manifests`) and write the run folder ``out``.

    ``config``: settings, or a file of them; ``settings``: some of them by name, such as ``method="pin"``,
    ``preset="paper"``, ``minutes=60``, ``seed=1``, ``set=["method.alpha=0.5"]``. ``init`` starts from another run's
    weights; ``teacher``: a model, or several as ``A+B``, whose answers are learned from too, in training cases without
    landmarks as well (:func:`~anatomark.training.teach.taught`); ``folds`` first trains that many models on parts of
    the training cases and writes out-of-fold errors, side by side by an ``engine``; ``resume`` goes on where a killed
    run stood. The method ``auto`` (the default) is that of ``init``, else chosen by ``auto.py``. Raises InputError
    before anything is written, and where the disk refuses.
    """
    run, report = Path(out), report or Reporter()
    asked = make_config(config, settings.pop("set", ()), **settings)
    with claimed(run) as claim:
        side = None if engine is None else Side(engine, run, claim.lock, asked.threads or 1)
        return _fit(cases, run, asked, init, teacher, folds, resume, side, report)


def _fit(
    cases: Manifests,
    run: Path,
    asked: RunConfig,
    init: str | os.PathLike[str] | None,
    teacher: str | os.PathLike[str] | None,
    folds: int,
    resume: bool,
    side: Side | None,
    report: Reporter,
) -> Fitted:
    if teacher is not None and folds:
        raise InputError("`teacher` and `folds`: give one of them; a teacher mostly knows what folds hold out")
    clock = time.monotonic()
    guide = None if teacher is None else Teacher.of(teacher, run, asked)
    if guide is not None or asked.taught_by is not None:  # of the run that lent its config
        asked = asked.model_copy(update={"taught_by": None if guide is None else guide.model.hash})
    request = resumed(run, asked, resume)
    if (run / WEIGHTS).exists():
        report.say(f"{run} is finished already")
        _tidy(run, read_config(run / "config.yaml"))  # of a run killed when it was
        return Fitted(run, None, False, 0.0)
    source = load_run(init) if init is not None else None
    if source is not None and source.plan.settle is not None and source.plan.settle.offset_mm is not None:
        report.say(f"{init} adds an observer's habits to what it finds; the training begins without them")
    written = run / "config.yaml"
    there = written.exists()
    used = with_machine(read_config(written), asked) if there else settled_by_init(source, completed(request))
    if used.taught_by != asked.taught_by:
        other = "another" if asked.taught_by else "a"
        began = f"with {other} teacher" if used.taught_by else "without a teacher"
        raise InputError(f"{run}: began {began}; `resume` goes on as it began, or choose another `out`")
    division = read_division(
        cases, names=used.landmarks, val_fraction=used.val_fraction, seed=used.seed, unlabelled=guide is not None
    )
    if guide is not None:
        guide.check(division, report)
        if not there and asked.license == RunConfig().license:
            used = used.model_copy(update={"license": _licences(used.license, guide.model.licence)})
    if used.distrust:
        division = without_certain_errors(division, report)
    with _folder(run):
        if request is asked:
            write_request(run, asked)
        if not there and used.method.name == AUTO:
            used = settled(used, division, folds + 1 if folds else 1, run=run, began=clock, report=report)
        elif not there and source is None:
            used = aligned_in_any_pose(used, division)
        for line in used.reasons:
            report.say(line)
        residuals = None
        if folds:
            residuals, used = cross_validate(
                fit_division, division, run, used, folds, init=source, side=side, report=report
            )
        return fit_division(division, run, used, init=source, teacher=guide, out_of_fold=residuals, report=report)


@contextmanager
def _folder(run: Path) -> Iterator[None]:
    """A run folder, of which nothing stays where nothing was begun in it."""
    try:
        yield
    except BaseException:
        if begun(run) is None:
            for cache in (run / "cache", run / "trials", run / "folds" / "cache"):
                shutil.rmtree(cache, ignore_errors=True)
            with suppress(OSError):  # where the folder cannot be made, nothing of ours is in it
                (run / REQUEST).unlink(missing_ok=True)
            remove_empty(run / "folds" / "1", run)
        raise


def fit_division(
    division: Division,
    run: Path,
    config: RunConfig,
    *,
    init: Run | None = None,
    teacher: Teacher | None = None,
    out_of_fold: Residuals | None = None,
    report: Reporter | None = None,
) -> Fitted:
    """:func:`fit` for cases that are read and divided already. Raises InputError."""
    report = report or Reporter()
    report.say(division.describe())
    for note in division.notes:
        report.say(f"note: {note}")
    for line in left_out_lines(division, LEFT_OUT_SHOWN):
        report.say(line)
    if config.observers == "combined":
        division = combined_truth(division)
    began = time.monotonic()
    if teacher is not None:
        cache = Path(config.cache) if config.cache else run / "cache"
        division = taught(division, teacher, config.teacher_weight, config.teacher_spread, cache, report)
    state = start(division, run, config, init, report)
    state.started = began
    if (run / CHECKPOINT).exists():
        restore(state)
    elif init is not None:
        save(state)  # a run killed before its first checkpoint must not go on without the weights it began with
    if (run / CHECKPOINT).exists() and state.at == state.step == 0 and not state.evidence.predictions:
        _judge_initial(state)
        save(state)
    state.saved = time.monotonic()
    state.before = out_of_fold.before if out_of_fold is not None else {}
    while state.at < len(state.stages):
        train_stage(state)
    if init is not None:
        _keep_the_better(state, init)
    residuals = _final_residuals(state, crops=division.independent and out_of_fold is None)
    residuals = finish(state, division, residuals, out_of_fold)
    _tidy(run, config)
    return Fitted(run, residuals, division.independent, state.seconds)


def _licences(first: str, second: str) -> str:
    """What both ask for: a model is bound by all that it was made from."""
    said = [text for text in dict.fromkeys((first, second)) if text and text != RunConfig().license]
    return "; ".join(said) or RunConfig().license


def _tidy(run: Path, config: RunConfig) -> None:
    """Remove what a finished run needs no more."""
    for cache in (run / "cache", run / "folds" / "cache") if config.cache is None else ():
        shutil.rmtree(cache, ignore_errors=True)
    for checkpoint in (run / CHECKPOINT, *run.glob(f"folds/*/{CHECKPOINT}")):
        checkpoint.unlink(missing_ok=True)


def _judge_initial(state: State) -> None:
    """What the given weights are worth before training: evidence for the first stage."""
    if len(state.validation):
        residuals = state.validation.run(state.method, state.config.validation_cases)
        state.initial_mm = residuals.selection_mm()
        state.report.say(f"before training: validation {state.initial_mm:.3f} mm")
        state.evidence = residuals.evidence(state.validation.source)
        log(state, {}, state.initial_mm)


def _keep_the_better(state: State, init: Run) -> None:
    """Go back to the weights that training began with, where all were given and err less on the held-out cases; and to
    the mean shapes beside them, where the landmarks are the same."""
    before, after = state.initial_mm, state.reached_mm
    if before is None or before <= 0 or not after > before:
        return
    if set(state.method.start_from(init.weights, init.plan)) != set(state.method.state_dict()):
        return  # part of it was new, a refiner or a landmark: there is nothing whole to go back to
    initialise(state.method, init)
    old, new = init.plan, state.method.plan
    same = old.names == new.names and old.align == new.align  # alignments that are kept hold for both
    if same and (old.refine is None) == (new.refine is None):
        whole = state.method.parts.build(replace(old, settle=None, images=new.images)).to(state.device)
        initialise(whole, init)
        again = state.validation.run(whole, state.config.validation_cases).selection_mm()
        if again <= min(ALIKE * before, after):  # with the mean shapes of the new cases it may be clearly better
            state.method, before = whole, again
    state.evidence = Evidence()  # that of the weights given up
    state.report.say(
        f"TRAINING DID NOT HELP: validation {after:.3f} mm after it, {before:.3f} mm before; the weights are as they "
        f"began. More or other cases, or more time, may help"
    )


def _final_residuals(state: State, crops: bool) -> Residuals | None:
    """The errors of all validation cases: those that chose the weights where these were all, else measured; with
    ``crops`` also what the finished model says of presence in them and in crops of some of them."""
    cases, made = state.validation, state.evidence.predictions
    if not len(cases):
        return None
    if set(made) != {c.id for c in cases.cases}:
        made = {}
    cropped = spread(len(cases), CASES) if crops else None
    if made and not crops:
        return Residuals(tuple(made), tuple(made.values()), tuple(state.evidence.truth[c] for c in made))
    residuals = residuals_in(
        state.method, cases, cropped=cropped, seed=state.config.seed, made=made, report=state.report, title="validation"
    )
    if crops:
        state.report.say(described_presence(frozen_threshold(residuals.trials)))
    return residuals
