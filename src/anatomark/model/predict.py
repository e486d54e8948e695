"""``anatomark predict``: from images on disk to landmark files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from anatomark.cases.case import Case, of_dimension
from anatomark.cases.find import find_images_as_cases
from anatomark.cases.store import fingerprint_of
from anatomark.errors import InputError, nearest
from anatomark.io.atomic import read_json
from anatomark.model.ensemble import Ensemble, member_paths
from anatomark.model.model import Model, Spacing
from anatomark.model.prediction import FORMATS, endings, write_prediction
from anatomark.model.run_cases import Outcome, run_cases
from anatomark.model.run_folder import load_run
from anatomark.model.views import Augmented
from anatomark.progress import Reporter

AnyModel = Model | Ensemble | Augmented


def load(path: str | os.PathLike[str], device: str | None = None, threads: int | None = None, tta: int = 1) -> AnyModel:
    """A trained model from a run folder or by its zoo name, or several with the same landmarks as one: ``A+B+C``, or a
    folder of run folders such as ``RUN/folds``.

    ``device``: ``auto`` (default: the GPU where there is one), ``cpu``, ``cuda``, ``cuda:0`` or ``mps``; ``threads``:
    of torch on the CPU; ``tta``: views of each image whose answers are averaged. Raises InputError where a folder is
    missing, incomplete or damaged, and where several models find different landmarks.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if tta < 1:
        raise InputError(f"`tta` {tta}: give the number of views, 1 or more")
    members = [Model(load_run(part), device) for part in member_paths(path)]
    model = members[0] if len(members) == 1 else Ensemble(members)
    return model if tta == 1 else Augmented(model, tta)


def described_cost(model: AnyModel) -> str:
    """One line on what a prediction costs beside one of a single model; empty for a single model."""
    if model.cost == 1:
        return ""
    inner, parts = model, []
    if isinstance(inner, Augmented):
        parts.append(f"{inner.views} views of each image")
        inner = inner.model
    if isinstance(inner, Ensemble):
        parts.insert(0, f"{len(inner.members)} models")
    return f"{', '.join(parts)}: {model.cost} predictions for each image, their seconds add up"


@dataclass(frozen=True)
class Predicted:
    """What :func:`predict` did with one image: ``state`` is ``written``, ``skipped`` (finished before) or ``failed``
    (``reason``). ``seconds`` with those of the alignment, ``align_seconds``, which is None where nothing is aligned."""

    stem: str
    image: Path
    state: str
    seconds: float = 0.0
    align_seconds: float | None = None
    files: tuple[Path, ...] = ()
    reason: str = ""
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def predict(
    model: AnyModel | str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    spacing: Spacing = None,
    pictures: bool = False,
    format: str = "mrk.json",
    overwrite: bool = False,
    report: Reporter | None = None,
) -> list[Predicted]:
    """Find the landmarks in images, folders of images, or the cases of manifests (``.csv``), and write them into
    ``out``.

    ``model``: one that :func:`load` gave, or what it takes. Per image: ``<stem>.<format>``, ``<stem>.json``, in 2D
    ``<stem>.csv``, with ``pictures`` ``<stem>.png``. Finished ones of the same model and image are skipped. One that
    cannot be read or predicted is reported, the others go on. Raises InputError before any work: two images with one
    stem, no image, results of another model in ``out`` (without ``overwrite``).
    """
    out, report = Path(out), report or Reporter(quiet=True)
    if format not in FORMATS:
        raise InputError(f"`format` {format!r} is unknown{nearest(format, FORMATS)}; it is {', '.join(FORMATS)}")
    used = load(model) if isinstance(model, str | os.PathLike) else model
    cases = find_images_as_cases(images, spacing=spacing)
    which = endings(used.ndim, format, pictures)
    keys = {
        c.id: fingerprint_of(c.path, _plain(c.spacing)) if c.path and os.path.exists(c.path) else "missing"
        for c in cases
    }
    done = _finished(cases, keys, out, used, which, overwrite)
    _check_writable(out)
    rows = {c.id: Predicted(c.id, _path(c), "skipped") for c in cases}
    for outcome in run_cases(lambda _, image: used.predict(image), [c for c in cases if c.id not in done], report):
        rows[outcome.case.id] = row = _written(outcome, used, keys[outcome.case.id], out, which)
        if row.state == "failed":
            report.say(f"failed: {row.reason}")
    return list(rows.values())


def _written(outcome: Outcome, model: AnyModel, key: str, out: Path, which: Sequence[str]) -> Predicted:
    case, prediction = outcome.case, outcome.prediction
    reason = outcome.reason
    if prediction is not None and outcome.image is not None:
        path = str(_path(case).resolve())
        source = {"model": model.hash, "model_name": model.name, "image": path, "image_key": key}
        try:
            image = of_dimension(outcome.image, model.ndim)
            files = write_prediction(replace(prediction, source=source), out, case.id, which, image)
            seconds = prediction.seconds or 0.0
            return Predicted(
                case.id, _path(case), "written", seconds, prediction.align_seconds, tuple(files),
                flags=prediction.flags, notes=prediction.notes,
            )  # fmt: skip
        except InputError as error:
            reason = str(error)
    return Predicted(case.id, _path(case), "failed", reason=reason)


def _finished(
    cases: Sequence[Case], keys: dict[str, str], out: Path, model: AnyModel, which: Sequence[str], overwrite: bool
) -> set[str]:
    """Cases that need no work. Raises InputError where a result of something else would be overwritten."""
    done, strange = set(), []
    for case in () if overwrite else cases:
        files = [out / f"{case.id}.{ending}" for ending in which]
        there = [f for f in files if f.exists()]
        if not there:
            continue
        record = files[-1]
        try:
            facts = read_json(record) if record.exists() else None
        except InputError:
            facts = None
        if isinstance(facts, dict) and (facts.get("model"), facts.get("image_key")) == (model.hash, keys[case.id]):
            if len(there) == len(files):
                done.add(case.id)
        else:
            strange.append(there[0])
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise InputError(
            f"{strange[0]}{more}: is a result of another model or image; add `overwrite` or choose another `out`"
        )
    return done


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".tmp-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written into: {error.strerror or error}") from error


def _path(case: Case) -> Path:
    assert case.path is not None
    return case.path


def _plain(spacing: tuple[float, ...] | None) -> list[float] | None:
    return None if spacing is None else list(spacing)
