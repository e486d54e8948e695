"""``anatomark predict``: from images on disk to landmark files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case, of_dimension
from anatomark.cases.find import find_images_as_cases, read_landmarks_of, sources_of
from anatomark.cases.store import image_key
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, check_range, nearest
from anatomark.io.atomic import read_json
from anatomark.io.claim import Claim, check_sources, claimed
from anatomark.model.device import set_threads
from anatomark.model.ensemble import Ensemble, member_paths
from anatomark.model.model import Model, Spacing
from anatomark.model.prediction import FORMATS, endings, write_prediction
from anatomark.model.run_cases import Outcome, run_cases
from anatomark.model.run_folder import WEIGHTS, load_run
from anatomark.model.views import MOST_VIEWS, Augmented
from anatomark.progress import Reporter

AnyModel = Model | Ensemble | Augmented
STRANGE = "is a result of another model or image; add `overwrite` or choose another `out`"
SAME_MM = 0.05  # two runs of one model differ less, whatever the device and its threads


def load(path: str | os.PathLike[str], device: str | None = None, threads: int | None = None, tta: int = 1) -> AnyModel:
    """A trained model from a run folder or by its zoo name, or several with the same landmarks as one: ``A+B+C``, or a
    folder of run folders such as ``RUN/folds``.

    ``device``: ``auto`` (default: the GPU where there is one), ``cpu``, ``cuda``, ``cuda:0`` or ``mps``; ``threads``:
    of torch on the CPU; ``tta``: views of each image whose answers are averaged. Raises InputError where a folder is
    missing, incomplete or damaged, and where several models find different landmarks.
    """
    check_range("tta", tta, 1, MOST_VIEWS)
    if threads is not None:
        set_threads(threads)
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


def told_of(model: AnyModel) -> list[str]:
    """What is to be said of a model before it predicts, a line each: what it costs, its licence."""
    cost = described_cost(model)
    return [
        *([cost] if cost else []),
        *([f"licence of the model {model.name}: {model.licence}"] if model.licence else []),
    ]


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
    form: str | None = None,
    pictures: bool = False,
    format: str = "mrk.json",
    overwrite: bool = False,
    by: Callable[[Sequence[Task], Claim, Reporter], Iterator[Predicted] | None] | None = None,
    report: Reporter | None = None,
) -> list[Predicted]:
    """Find the landmarks in images, folders of images, or the cases of manifests (``.csv``), and write them into
    ``out``.

    ``model``: one that :func:`load` gave, or what it takes. Per image: ``<stem>.<format>``, ``<stem>.json``, in 2D
    ``<stem>.csv``, with ``pictures`` ``<stem>.png``. Finished ones of the same model and image are skipped; of those
    that a killed run left unfinished, and of those that lack a file asked for now, the rest is done. One that cannot be
    read or predicted is reported, the others go on. ``by``: what does the tasks instead of this process, unless it
    gives None (:class:`anatomark.model.worker.Spread`). Raises InputError before any work: two images with one stem, no
    image, another run that writes there; without ``overwrite``, results of another model in ``out``, or files that
    nothing says are ours.
    """
    out, report = Path(out), report or Reporter(quiet=True)
    if format not in FORMATS:
        raise InputError(f"`format` {format!r} is unknown{nearest(format, FORMATS)}; it is {', '.join(FORMATS)}")
    with claimed(out) as claim:
        used = load(model) if isinstance(model, str | os.PathLike) else model
        cases = find_images_as_cases(images, spacing=spacing, form=form)
        which = endings(used.ndim, format, pictures)
        keys = {c.id: key_of(c) for c in cases}
        kept = [*sources_of(cases, [p for p in map(Path, images) if p.is_file()]), *run_files(out)]
        check_sources([out, *(out / f"{c.id}.{e}" for c in cases for e in which)], kept, "predict")
        left = {c.id: Left(which) if overwrite else left_to_do(c, keys[c.id], out, used, which, claim) for c in cases}
        check_strange(list(left.values()))
        rows = {c.id: Predicted(c.id, path_of(c), "skipped", flags=left[c.id].flags) for c in cases}
        tasks = [Task(c, keys[c.id], left[c.id]) for c in cases if left[c.id].endings]
        elsewhere = by(tasks, claim, report) if by is not None else None
        for row in elsewhere or _here(used, tasks, out, report):
            rows[row.stem] = row
            if row.state == "failed" and len(cases) > 1:  # of a single one the caller says it
                report.say(f"failed: {row.reason}")
    return list(rows.values())


def _here(model: AnyModel, tasks: Sequence[Task], out: Path, report: Reporter) -> Iterator[Predicted]:
    outcomes = run_cases(lambda _, image: model.predict(image), [task.case for task in tasks], report)
    for outcome, task in zip(outcomes, tasks, strict=True):
        yield write_outcome(outcome, model, task.key, out, task.left)


def write_outcome(outcome: Outcome, model: AnyModel, key: str, out: Path, left: Left) -> Predicted:
    """Write what became of a case, whose image has this ``key``; a refusal of the disk is a failure with its reason."""
    case, prediction = outcome.case, outcome.prediction
    reason = outcome.reason
    if prediction is not None and outcome.image is not None:
        path = str(path_of(case).resolve())
        source = {"model": model.hash, "model_name": model.name, "image": path, "image_key": key}
        try:
            image = of_dimension(outcome.image, model.ndim)
            kept = [k for file in left.doubtful if (k := _moved_away(prediction.landmarks, case, file))]
            files = write_prediction(replace(prediction, source=source), out, case.id, left.endings, image)
            seconds = prediction.seconds or 0.0
            return Predicted(
                case.id, path_of(case), "written", seconds, prediction.align_seconds, tuple(files),
                flags=prediction.flags, notes=(*prediction.notes, *kept),
            )  # fmt: skip
        except InputError as error:
            reason = str(error)
    return Predicted(case.id, path_of(case), "failed", reason=reason)


@dataclass(frozen=True)
class Left:
    """What of a case is left to do: the files of these ``endings``, none where it is finished, with its ``flags`` then.
    ``doubtful``: landmark
    files that a killed run of an earlier version may have left, kept under another name where their points are others;
    ``strange``: a file that is not to be replaced."""

    endings: Sequence[str]
    doubtful: Sequence[Path] = ()
    strange: Path | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A case that is ``left`` to do, and the ``key`` of its image. It pickles."""

    case: Case
    key: str
    left: Left


def left_to_do(case: Case, key: str, out: Path, model: AnyModel, which: Sequence[str], claim: Claim) -> Left:
    """What is left to do of a case in ``out``, whose image has this ``key``, of the files ``which`` were asked for."""
    files = {ending: out / f"{case.id}.{ending}" for ending in which}
    there = {ending: file for ending, file in files.items() if os.path.lexists(file)}
    if "json" in there:  # written last
        facts = facts_of(there["json"])
        ours = (facts.get("model"), facts.get("image_key")) == (model.hash, key)
        if not ours:
            return Left(which, strange=next(iter(there.values())))
        flags = facts.get("flags")
        return Left([e for e in which if e not in there], flags=tuple(flags) if isinstance(flags, list) else ())
    unknown = [file for file in there.values() if not claim.unfinished(file)]
    doubtful = [file for file in unknown if file.suffix != ".png"]
    if unknown and not (doubtful and all(_may_be_ours(case, file, model) for file in doubtful)):
        return Left(which, strange=unknown[0])
    return Left(which, doubtful)


def facts_of(record: Path) -> dict[str, Any]:
    """What the ``<stem>.json`` of a finished case says, such as its ``model`` and ``image_key``; empty where it cannot
    be read."""
    try:
        facts = read_json(record)
    except InputError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _may_be_ours(case: Case, file: Path, model: AnyModel) -> bool:
    try:
        landmarks = read_landmarks_of(case, file)
    except InputError:
        return False
    return landmarks.names == tuple(model.names) and landmarks.score is not None


def _moved_away(landmarks: Landmarks, case: Case, file: Path) -> str:
    """Keep a file under another name where its points are not those of ``landmarks``, and say so; else empty. A run
    that was killed on another machine may have left it, or somebody corrected it."""
    there = read_landmarks_of(case, file)
    if there.status == landmarks.status and np.allclose(there.points, landmarks.points, 0, SAME_MM, equal_nan=True):
        return ""
    stem, ending = file.name[: len(case.id)], file.name[len(case.id) :]
    names = (file.with_name(f"{stem}.earlier{'' if n == 1 else n}{ending}") for n in itertools.count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    file.rename(kept)
    return f"{file.name} held other points than this model finds, perhaps corrected by hand: it is kept as {kept.name}"


def check_strange(left: Sequence[Left]) -> None:
    """Raises InputError where a result of something else would be overwritten."""
    strange = [one.strange for one in left if one.strange is not None]
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise InputError(f"{strange[0]}{more}: {STRANGE}")


def run_files(folder: Path) -> list[Path]:
    """What a prediction could replace of a trained model, where it lies in ``folder``."""
    names = ("plan.json", "calibration.json") if (folder / WEIGHTS).exists() else ()
    return [folder / name for name in names]


def path_of(case: Case) -> Path:
    """Of a case's image."""
    assert case.path is not None
    return case.path


def key_of(case: Case) -> str:
    """What a case's image is recognised by."""
    return image_key(case) if os.path.exists(path_of(case)) else "missing"
