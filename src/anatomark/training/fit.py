"""Training: plain functions over one state, stage after stage, resumable to the bit."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning_fabric
import numpy as np
import torch

from anatomark.cases.division import Division, Source, combined_truth, read_division, source_path, study_of
from anatomark.cases.store import CaseStore, augmented_copy, fingerprint_of
from anatomark.errors import InputError
from anatomark.io.atomic import remove_temporary
from anatomark.methods.base import Method, Plan, Stage, Study
from anatomark.methods.kit.precision import use_bf16
from anatomark.model.compose import (
    ALIGN,
    Composed,
    ComposedConfig,
    adapted_plan,
    assembled,
    cache_facts,
    part_of,
    with_frame,
    with_refiner,
)
from anatomark.model.confidence.presence_trials import CASES, Trials, case_trials, described_presence, frozen_threshold
from anatomark.model.config import AUTO, M, RunConfig, checked, completed, merged, read_config
from anatomark.model.residuals import Residuals
from anatomark.model.run_folder import CHECKPOINT, Run, existing, load_run, read_plan, remove_empty
from anatomark.progress import Reporter
from anatomark.training.auto import aligned_in_any_pose, settled
from anatomark.training.finish import finish
from anatomark.training.folds import cross_validate
from anatomark.training.loop import train_stage
from anatomark.training.memory import keep_freed_memory
from anatomark.training.state import State, restore, save, write_setup
from anatomark.training.steps import worker_count
from anatomark.training.validate import Validation

MACHINE = ("workers", "cache_mb", "threads", "device")  # settings that change no result
FINE_TUNING = 0.2  # learning rate with --init, as a share of the usual one
COPIES = 4  # augmented copies to validate on


@dataclass(frozen=True)
class Fitted:
    """A finished run. ``validation`` is None where nothing was validated; ``seconds`` over all sittings."""

    run: Path
    validation: Residuals | None
    independent: bool
    seconds: float


def fit(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: RunConfig | None = None,
    *,
    resume: bool = False,
    init: str | os.PathLike[str] | None = None,
    folds: int = 0,
    report: Reporter | None = None,
) -> Fitted:
    """Train a model on the manifest's training cases and write the run folder ``out``.

    ``resume`` goes on where a killed run stood; ``init`` starts from another run's weights; ``folds`` first trains that
    many models on parts of the training cases and writes out-of-fold errors. The method ``auto`` (the default) is that
    of ``init``, else chosen by ``engine/auto.py``. Raises InputError before anything is written, and where the disk
    refuses.
    """
    run, report = Path(out), report or Reporter()
    config = _checked_start(run, completed(config or RunConfig()), resume)
    if (run / "weights.safetensors").exists():
        report.say(f"{run} is finished already")
        return Fitted(run, None, False, 0.0)
    source = load_run(init) if init is not None else None
    config = _started_from(source, config)
    division = read_division(manifest, config)
    if config.method.name == AUTO:
        config = settled(config, division, folds + 1 if folds else 1)
    elif source is None:
        config = aligned_in_any_pose(config, division)
    for line in config.reasons:
        report.say(line)
    residuals = None
    if folds:
        residuals, config = cross_validate(fit_division, division, run, config, folds, init=source, report=report)
    return fit_division(division, run, config, init=source, out_of_fold=residuals, report=report)


def _started_from(source: Run | None, config: RunConfig) -> RunConfig:
    """The config with what follows from ``--init``. Raises InputError where the two disagree."""
    only = source is not None and config.refine.only
    update: dict[str, Any] = {}
    if config.learning_rate_factor is None:
        update["learning_rate_factor"] = FINE_TUNING if source is not None and not only else 1.0
    if source is not None and config.license == RunConfig().license and source.licence:
        update["license"] = source.licence  # what a model was made from binds it too
    if source is not None and not only and config.method.name == AUTO:
        theirs = completed(source.config)
        refine = theirs.refine.model_copy(update={"only": False})
        where = f"--init {source.folder}"
        update.update(method=theirs.method, align=_over(theirs.align, config.align, where))
        update["refine"] = _over(refine, config.refine, where)
    if source is not None and only:  # the method is the one there, with its landmarks
        asked, there, usual = (c.method for c in (config, completed(source.config), RunConfig()))
        if (asked.name, asked.preset) not in ((there.name, there.preset), (usual.name, usual.preset)):
            raise InputError(f"refine.only: --init {source.folder} is of method {there.name}, not {asked.name}")
        update.update(method=there, landmarks=config.landmarks or list(source.plan.names), align=source.config.align)
    return config.model_copy(update=update)


def _over(base: M, given: M, where: str) -> M:
    """``base`` with those settings of ``given`` that the user set. Raises InputError where they do not agree."""
    return checked(type(base), merged(base.model_dump(), given.model_dump(exclude_unset=True)), where)


def _checked_start(run: Path, config: RunConfig, resume: bool) -> RunConfig:
    """The config to train with. Raises InputError where ``run`` holds something that would be mixed up."""
    stored = next((p for p in (run / "config.yaml", run / "folds" / "1" / "config.yaml") if p.exists()), None)
    if stored is None:
        if run.exists() and (not run.is_dir() or any(p.name not in ("cache", "folds") for p in run.iterdir())):
            raise InputError(f"{run}: exists already and is no run folder; choose another --out")
        return config
    if not resume:
        raise InputError(f"{run}: already holds a run; add --resume to go on with it, or choose another --out")
    kept = read_config(stored)
    auto = config.method.name == AUTO
    asked = config.model_dump()
    ours = kept.model_dump()
    if config.align.enabled is None:  # the training cases decided it there
        asked["align"]["enabled"] = ours["align"]["enabled"]
    budget = {"stage_steps", "validate_every", "minutes"}
    free = {*budget, "cache", *MACHINE}
    usual = completed(RunConfig.model_validate({"method": config.method.model_dump()})).model_dump()
    usual["method"] = RunConfig().method.model_dump()
    if auto:  # what was chosen there is not known here: only what the user set is compared
        set_ = config.model_dump(exclude_unset=True, exclude={"method", *free})
        asked = {**asked, **merged({k: v for k, v in ours.items() if k not in free}, set_)}
    for key in asked.keys() - free:
        if asked[key] != ours[key] and asked[key] != usual[key]:
            raise InputError(
                f"{stored}: --resume goes on with the settings there ({key}: {_short(ours[key])}), but "
                f"{_short(asked[key])} was asked for; drop the option or choose another --out"
            )
    if stored.parent != run:  # only folds were begun; they know their own settings
        if auto and not config.minutes and not config.steps:  # a usual time was chosen then
            free -= budget
        return kept.model_copy(update={k: asked[k] for k in free})
    return kept.model_copy(update={k: asked[k] for k in MACHINE})


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def fit_division(
    division: Division,
    run: Path,
    config: RunConfig,
    *,
    init: Run | None = None,
    out_of_fold: Residuals | None = None,
    report: Reporter | None = None,
) -> Fitted:
    """:func:`fit` for cases that are read and divided already. Raises InputError."""
    report = report or Reporter()
    report.say(division.describe())
    if config.observers == "combined":
        division = combined_truth(division)
    there = existing(run)
    try:
        state = _start(division, run, config, init, report)
    except BaseException:
        if not (run / "config.yaml").exists():
            shutil.rmtree(run / "cache", ignore_errors=True)
            remove_empty(run, there)
        raise
    if (run / CHECKPOINT).exists():
        restore(state)
    elif init is not None:
        save(state)  # a run killed before its first checkpoint must not go on without the weights it began with
    if (run / CHECKPOINT).exists() and state.at == state.step == 0 and not state.evidence:
        _judge_initial(state)
        save(state)
    state.saved = time.monotonic()
    state.before = out_of_fold.before if out_of_fold is not None else {}
    while state.at < len(state.stages):
        train_stage(state)
    residuals = _final_residuals(state)
    if division.independent and out_of_fold is None and residuals is not None:
        residuals = replace(residuals, trials=_trials(state, residuals))
    finish(run, state.config, state.method, division, residuals, out_of_fold, state.seconds, report)
    _remove_cache(state)
    (run / CHECKPOINT).unlink(missing_ok=True)
    return Fitted(run, residuals, division.independent, state.seconds)


def _judge_initial(state: State) -> None:
    """What the given weights are worth before training: evidence for the first stage."""
    if len(state.validation):
        found = state.validation.run(state.method, state.config.validation_cases)
        state.report.say(f"before training: validation {found.selection_mm():.3f} mm")
        state.evidence = found.evidence("init", state.validation.independent)


def _final_residuals(state: State) -> Residuals | None:
    """The errors of all validation cases: those that chose the weights where these were all, else measured."""
    if not len(state.validation):
        return None
    if set(state.evidence.get("predictions", ())) == set(state.validation.store.ids):
        found, truth = state.evidence["predictions"], state.evidence["truth"]
        return Residuals(tuple(found), tuple(found.values()), tuple(truth[c] for c in found))
    return state.validation.run(state.method, len(state.validation))


def _trials(state: State, residuals: Residuals) -> Trials:
    """What the finished method says of presence in the validation images and in crops of some of them."""
    store, chosen, total = state.validation.store, state.validation.chosen(CASES), Trials()
    state.method.eval()
    with torch.no_grad(), state.report.bar("crops", len(chosen)) as bar:
        for case, found, truth in zip(residuals.cases, residuals.predictions, residuals.truths, strict=True):
            i = store.ids.index(case)
            locate = state.method.locate if i in chosen else None
            total += case_trials(locate, case, store.images(i)["image"], truth, found, state.config.seed)
            bar.update(total.crops + total.failed, case)
    state.report.say(described_presence(frozen_threshold(total)))
    return total


def _remove_cache(state: State) -> None:
    if state.config.cache is None:
        shutil.rmtree(state.run / "cache", ignore_errors=True)


# ---------------------------------------------------------------------- start


def _start(division: Division, run: Path, config: RunConfig, init: Run | None, report: Reporter) -> State:
    """Prepare the method, cache the images, write ``config.yaml`` and ``plan.json``."""
    started = time.monotonic()
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    use_bf16({"auto": None, "fp32": False, "bf16": True}[config.precision])
    fabric = _fabric(config.device)
    cls, settings = assembled(config)
    plan = _plan(cls, settings, division, run, config, init)
    if plan.facts.get(ALIGN):
        config = config.model_copy(update={"align": config.align.model_copy(update={"enabled": True})})
    torch.manual_seed(config.seed)
    method = cls(settings, plan)
    if init is not None and not (run / CHECKPOINT).exists():
        report.say(initialise(method, init))
    cache = Path(config.cache) if config.cache else run / "cache"
    store, validation = _caches(method, division, config, cache, report)
    rate = config.learning_rate_factor or 1.0
    stages = [
        replace(s, steps=config.stage_steps.get(s.name, s.steps), lr=s.lr * rate)
        for s in _dealt(method.stages(), config.steps)
    ]
    wrapped = fabric.setup_module(method)
    wrapped.mark_forward_method("loss")
    state = State(run, config, method, fabric, wrapped, stages, store, validation, report, started=started)
    run.mkdir(parents=True, exist_ok=True)
    remove_temporary(run)
    write_setup(state)
    return state


def _plan(cls: type[Method], settings: Any, division: Division, run: Path, config: RunConfig, init: Any) -> Plan:
    if (run / "plan.json").exists():
        return read_plan(run)
    study = study_of(division, config)
    if config.refine.only:
        return _refined_plan(study, init)
    old = None if init is None else init.plan
    plan = (
        Composed.prepare(settings, study, old) if isinstance(settings, ComposedConfig) else cls.prepare(settings, study)
    )
    if not plan.descriptions:
        plan.descriptions = list(division.train[0].landmarks.descriptions)
    return plan if init is None else adapted_plan(cls, settings, plan, init.plan)


def _refined_plan(study: Study, init: Run | None) -> Plan:
    """The plan of the model that is to be refined and not changed otherwise. Raises InputError."""
    if init is None:
        raise InputError("refine.only: give the model to refine as --init")
    if tuple(init.plan.names) != study.names:
        known = ", ".join(init.plan.names[:5])
        raise InputError(f"refine.only: the landmarks must be those of --init {init.folder}, in order: {known} ...")
    return with_refiner(init.plan.model_copy(deep=True), study, init.plan)


def _fabric(device: str) -> Any:
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise InputError(f"device {device!r} is unknown; use auto, cpu, cuda, cuda:0 or mps")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"device {device!r}: this machine or this build of torch has no {kind}; use --device cpu")
    devices: Any = [int(index)] if index and kind == "cuda" else 1
    return lightning_fabric.Fabric(accelerator=kind, devices=devices, precision="32-true")


def _dealt(stages: list[Stage], total: int | None) -> list[Stage]:
    """The stages with ``total`` steps in all, in proportion to their own."""
    if total is None or not stages:
        return stages
    ends = np.cumsum([s.steps for s in stages])
    cuts = np.diff([0, *np.round(ends / ends[-1] * total).astype(int)])
    return [replace(s, steps=max(1, int(n))) for s, n in zip(stages, cuts, strict=True)]


def _caches(
    method: Method, division: Division, config: RunConfig, folder: Path, report: Reporter
) -> tuple[CaseStore, Validation]:
    """Working images of the training cases and images of the validation cases, on disk."""
    made = cache_facts(config, method.plan)
    train = CaseStore(folder, config.cache_mb / max(1, worker_count(config)))
    held = CaseStore(folder, config.cache_mb / 4)
    copies = [(i % len(division.train), i) for i in range(COPIES)] if division.how == "augmented copies" else []
    with report.bar("reading images", len(division.train) + len(division.val) + len(copies)) as bar:
        for source in division.train:
            key = fingerprint_of(source_path(source), made)
            train.add(source.id, key, source.landmarks, lambda s=source: method.working_images(s.image()))  # type: ignore[misc]
            bar.update(len(train))
        for source in division.val:
            key = fingerprint_of(source_path(source), "image", method.plan.facts.get(ALIGN))
            held.add(source.id, key, source.landmarks, _raw(source, method))
            bar.update(len(train) + len(held))
        for case, copy_number in copies:
            _add_copy(held, division.train[case], copy_number, config.seed, method)
            bar.update(len(train) + len(held))
    return train, Validation(held, division.independent)


def _raw(source: Source, method: Method) -> Any:
    return lambda: with_frame(method, source.image())


def _add_copy(store: CaseStore, source: Source, number: int, seed: int, method: Method) -> None:
    image, landmarks = augmented_copy(source.image(), source.landmarks, np.random.default_rng([seed, 21, number]))
    key = fingerprint_of(source_path(source), "copy", seed, number, method.plan.facts.get(ALIGN))
    store.add(f"{source.id} copy {number + 1}", key, landmarks, lambda: with_frame(method, image))


def initialise(method: Method, source: Run) -> str:
    """Load what fits of another run (``checkpoint.Run``) into a method; one line says what was kept.

    A method may offer ``adapt_state(state, old_plan) -> state`` to match per-landmark tensors by name, and
    ``adapt_plan(plan, old_plan) -> plan`` so that lengths and frames mean the same to the old weights.
    """
    adapt = getattr(method, "adapt_state", None)
    state = source.weights if isinstance(method, Composed) else part_of("method", source.weights, source.plan)
    if adapt is not None:
        state = adapt(dict(state), source.plan)
    own = method.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fits:
        there = f"it is of method {source.config.method.name}, preset {source.config.method.preset}"
        raise InputError(
            f"--init {source.folder}: none of its {len(state)} tensors fits this method and its settings; {there}"
        )
    method.load_state_dict({**own, **fits})
    known = [n for n in method.plan.names if n in source.plan.names]
    if not known:
        raise InputError(
            f"--init {source.folder}: knows none of the landmarks {', '.join(method.plan.names[:5])}; it knows "
            f"{', '.join(source.plan.names[:5])} ..."
        )
    kept = sum(own[k].numel() for k in fits) / max(1, sum(v.numel() for v in own.values()))
    return (
        f"started from {source.folder}: {len(fits)} of {len(own)} tensors kept ({kept:.0%} of the weights), "
        f"{len(known)} of {len(method.plan.names)} landmarks known to it"
    )
