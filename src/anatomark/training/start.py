"""How a training begins: what the method knows of its data, the images on disk, the first weights."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anatomark.cases.division import Division
from anatomark.cases.look.sizes import odd_sizes
from anatomark.cases.store import CaseStore, image_key
from anatomark.core.intensity import guess_modality, intensity_rule
from anatomark.errors import InputError, nearest
from anatomark.io.claim import TEMPORARY, remove_temporary
from anatomark.methods.base import Stage, Study
from anatomark.methods.kit.precision import set_precision
from anatomark.model.compose import Composed, Composition, Plan
from anatomark.model.config import AUTO, M, RunConfig, checked, completed, merged
from anatomark.model.device import find_device
from anatomark.model.memory import keep_freed_memory
from anatomark.model.run_folder import CHECKPOINT, Run, read_plan
from anatomark.progress import Reporter
from anatomark.training.examples import worker_count
from anatomark.training.state import State, write_setup
from anatomark.training.validate import IMAGE, Validation, augmented_copy

FINE_TUNING = 0.2  # learning rate with `init`, as a share of the usual one
COPIES = 4  # augmented copies to validate on
INTENSITY_CASES = 8  # images that the modality and the intensity rule are taken from


def settled_by_init(source: Run | None, config: RunConfig) -> RunConfig:
    """The config with what follows from ``init``. Raises InputError where the two disagree."""
    only = source is not None and config.refine.only
    update: dict[str, Any] = {}
    if config.learning_rate_factor is None:
        update["learning_rate_factor"] = FINE_TUNING if source is not None and not only else 1.0
    if source is not None and config.license == RunConfig().license and source.licence:
        update["license"] = source.licence  # what a model was made from binds it too
    if source is not None and not only and config.method.name == AUTO:
        theirs = completed(source.config)
        refine = theirs.refine.model_copy(update={"only": False})
        where = f"`init` {source.folder}"
        update.update(method=theirs.method, align=_over(theirs.align, config.align, where))
        update["refine"] = _over(refine, config.refine, where)
    if source is not None and only:  # the method is the one there, with its landmarks
        asked, there, usual = (c.method for c in (config, completed(source.config), RunConfig()))
        if (asked.name, asked.preset) not in ((there.name, there.preset), (usual.name, usual.preset)):
            raise InputError(f"refine.only: `init` {source.folder} is of method {there.name}, not {asked.name}")
        update.update(method=there, landmarks=config.landmarks or list(source.plan.names), align=source.config.align)
    return config.model_copy(update=update)


def _over(base: M, given: M, where: str) -> M:
    """``base`` with those settings of ``given`` that the user set. Raises InputError where they do not agree."""
    return checked(type(base), merged(base.model_dump(), given.model_dump(exclude_unset=True)), where)


def start(division: Division, run: Path, config: RunConfig, init: Run | None, report: Reporter) -> State:
    """Prepare the model, cache the images, write ``config.yaml`` and ``plan.json``. Raises InputError."""
    started = time.monotonic()
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    set_precision(config.precision)
    device = find_device(config.device)
    parts = Composition.of(config)
    if not (run / "plan.json").exists():
        cases = [*division.train, *division.val]
        for line in odd_sizes([c.id for c in cases], [c.grid(c.landmarks.ndim) for c in cases]):
            report.say(f"note: {line}")
    plan = _plan(parts, division, run, config, init)
    if plan.align is not None:
        config = config.model_copy(update={"align": config.align.model_copy(update={"enabled": True})})
    torch.manual_seed(config.seed)
    composed = parts.build(plan)
    names = [s.name for s in composed.stages()]
    if unknown := next((n for n in config.stage_steps if n not in names), None):
        said = f"{config.method.name} has no such stage{nearest(unknown, names)}; it has {', '.join(names)}"
        raise InputError(f"`stage_steps.{unknown}`: {said}")
    if init is not None and not (run / CHECKPOINT).exists():
        report.say(initialise(composed, init))
    cache = Path(config.cache) if config.cache else run / "cache"
    store, validation = _stores(composed, division, config, cache, report)
    rate = config.learning_rate_factor or 1.0
    stages = [
        replace(s, steps=config.stage_steps.get(s.name, s.steps), lr=s.lr * rate)
        for s in _dealt(composed.stages(), config.steps)
    ]
    state = State(
        run, config, composed.to(device), device, stages, store, validation, report,
        taught=division.taught is not None, started=started,
    )  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    remove_temporary(run.glob(f"{TEMPORARY}*"))
    write_setup(state)
    return state


def _plan(parts: Composition, division: Division, run: Path, config: RunConfig, init: Run | None) -> Plan:
    if (run / "plan.json").exists():
        return read_plan(run, config)
    if config.refine.only:
        if init is None:
            raise InputError("refine.only: give the model to refine as `init`")
        if tuple(init.plan.names) != division.names:
            shown = ", ".join(init.plan.names[:5])
            raise InputError(f"refine.only: the landmarks must be those of `init` {init.folder}, in order: {shown} ...")
    old = None if init is None else init.plan
    plan = parts.prepare(study_of(division, config), old)
    assert plan.images is not None
    images = plan.images.with_contents(division.train, division.val, None if old is None else old.images)
    if (by := division.taught) is not None:
        images = images.knowing(by.learned, by.chosen)
    return replace(plan, images=images)


def study_of(division: Division, config: RunConfig) -> Study:
    """What a method's ``prepare`` sees. Reads up to 8 training images for modality and intensity rule.

    Raises InputError where images and landmarks do not fit.
    """
    every = max(1, len(division.train) // INTENSITY_CASES)
    images = [c.image() for c in division.train[::every][:INTENSITY_CASES]]
    modality = config.modality or guess_modality(images)
    return Study(division.train, division.names, modality, intensity_rule(modality, images))


def _dealt(stages: list[Stage], total: int | None) -> list[Stage]:
    """The stages with ``total`` steps in all, in proportion to their own."""
    if total is None or not stages:
        return stages
    ends = np.cumsum([s.steps for s in stages])
    cuts = np.diff([0, *np.round(ends / ends[-1] * total).astype(int)])
    return [replace(s, steps=max(1, int(n))) for s, n in zip(stages, cuts, strict=True)]


def _stores(
    composed: Composed, division: Division, config: RunConfig, folder: Path, report: Reporter
) -> tuple[CaseStore, Validation]:
    """Working images of the training cases and images of the validation cases, on disk."""
    plan = composed.plan
    align = None if plan.align is None else plan.align.model_dump(mode="json")
    train = CaseStore(folder, config.cache_mb / max(1, worker_count(config)))
    source = "validation" if division.independent else "augmented copies"
    val = Validation(folder, config.cache_mb / 4, source=source)
    copies = COPIES if division.how == "augmented copies" else 0
    annotated = division.train if division.taught is None else division.taught.annotated
    with report.bar("reading images", len(division.train) + len(division.val) + copies) as bar:
        for case in division.train:
            key = image_key(case, "working images", cache_facts(config, plan))
            train.add(case, key, lambda c=case: composed.working_images(c.image()))  # type: ignore[misc]
            bar.update(len(train))
        for case in division.val:
            key = image_key(case, "validation image", align)
            val.add(case, key, lambda c=case: _as_read(composed, c.image()))  # type: ignore[misc]
            bar.update(len(train) + len(val))
        for number in range(copies):
            case = annotated[number % len(annotated)]
            rng = np.random.default_rng([config.seed, 21, number])
            image, landmarks = augmented_copy(case.image(), case.landmarks, rng)
            copied = replace(case, id=f"{case.id} copy {number + 1}", given=landmarks)
            key = image_key(case, "augmented copy", config.seed, number, align)
            val.add(copied, key, lambda i=image: _as_read(composed, i))  # type: ignore[misc]
            bar.update(len(train) + len(val))
    return train, val


def _as_read(composed: Composed, image: Any) -> Any:
    """An image to keep, with its alignment, which need then not be found again."""
    return {IMAGE: image}, composed.alignment(image)


def cache_facts(config: RunConfig, plan: Plan) -> list[Any]:
    """What working images depend on, plain. The refiner's levels, sized as the training goes on, are no part of it,
    nor which the others are."""
    plain = plan.to_json()
    for digests in ("learned", "chosen"):
        plain.get("images", {}).pop(digests, None)
    if plan.refine is not None:
        plain["facts"]["refine"].pop("levels")
    return [config.method.model_dump(mode="json"), config.refine.only, plain]


def initialise(composed: Composed, source: Run) -> str:
    """Load what fits of another run into a model; one line says what was kept. Raises InputError where nothing fits."""
    fits = composed.start_from(source.weights, source.plan)
    own, names = composed.state_dict(), composed.plan.names
    if not fits:
        there = f"it is of method {source.config.method.name}, preset {source.config.method.preset}"
        raise InputError(
            f"`init` {source.folder}: none of its {len(source.weights)} tensors fits this method and its settings; "
            f"{there}"
        )
    composed.load_state_dict({**own, **fits})
    shared = [n for n in names if n in source.plan.names]
    if not shared:
        raise InputError(
            f"`init` {source.folder}: knows none of the landmarks {', '.join(names[:5])}; it knows "
            f"{', '.join(source.plan.names[:5])} ..."
        )
    kept = sum(own[k].numel() for k in fits) / max(1, sum(v.numel() for v in own.values()))
    return (
        f"started from {source.folder}: {len(fits)} of {len(own)} tensors kept ({kept:.0%} of the weights), "
        f"{len(shared)} of {len(names)} landmarks known to it"
    )
