"""Evaluation: a model, or a folder of predictions, against a manifest's truth; tables and the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anatomark
from anatomark.cases.case import Case
from anatomark.cases.find import sources_of
from anatomark.cases.look.distrust import remark
from anatomark.cases.manifest import Manifest
from anatomark.cases.manifests import Manifests, read_manifests
from anatomark.core.landmarks import Landmarks, Status, common_names
from anatomark.errors import InputError, listed, nearest
from anatomark.evaluation.metrics import (
    THRESHOLDS_MM,
    Errors,
    between_observers,
    check_thresholds,
    compare,
    mean_shape_baselines,
)
from anatomark.evaluation.predictions import (
    FORMATS,
    Predictions,
    Predictor,
    predict_cases,
    prediction_folder,
    read_predictions,
    write_predictions,
)
from anatomark.evaluation.result import EvaluationResult
from anatomark.evaluation.seen import seen_notes
from anatomark.io.atomic import Where, write_json, write_text
from anatomark.io.claim import Claim, claimed
from anatomark.io.sheets import write_csv
from anatomark.io.tables import MEAN, mean_of
from anatomark.model.predict import load
from anatomark.progress import Reporter
from anatomark.tools.definitions import read_definition
from anatomark.tools.outputs import check_files
from anatomark.tools.planes.errors import plane_rows, plane_summary
from anatomark.tools.planes.schema import PlaneSet

AS_GIVEN = "landmark files"
TABLES, REPORT, SUMMARY = ("errors.csv", "per_landmark.csv", "per_case.csv"), "report.html", "summary.json"
PLANES, PREDICTIONS = "planes.csv", "predictions"


def evaluate(
    model: Where | Predictor,
    cases: Manifests,
    out: Where,
    *,
    split: str | None = None,
    truth: str | None = None,
    thresholds: Sequence[float] = THRESHOLDS_MM,
    planes: Where | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
    **loading: Any,
) -> EvaluationResult:
    """Measure ``model`` on a split of the manifest ``cases`` and write everything into the folder ``out``. Several
    manifests are merged (:func:`~anatomark.cases.manifests.read_manifests`).

    ``model``: a run folder, the name of a zoo model, several of them or a folder of them (loaded with ``device``,
    ``threads``, ``tta`` as ``load`` takes them), an object with ``predict(image)``, or a folder of predictions named
    ``<case or image stem>`` (.json, .mrk.json, .fcsv, .csv). ``split``: by default test, else val. ``truth``: which
    observer (``mean``: of all), by default what the manifest names. ``thresholds`` in mm, for the SDR. ``planes``: a
    definition of scan planes, whose angle and offset errors are measured too.

    Writes errors.csv, per_landmark.csv, per_case.csv, summary.json, report.html, with ``planes`` planes.csv and, for a
    model, predictions/. Raises InputError where ``out`` holds an evaluation already (without ``overwrite``), for an
    unknown observer or an empty split, and where predictions and truth share no case or no label.
    """
    out, report = Path(out), report or Reporter(quiet=True)
    folder = prediction_folder(model)
    loading = {k: v for k, v in loading.items() if v is not None and (k, v) != ("tta", 1)}
    if folder is not None and loading:
        raise InputError(f"{model}: is a folder of predictions; `device`, `threads` and `tta` are for a model")
    try:
        check_thresholds(thresholds)
    except ValueError as error:
        raise InputError(f"`thresholds` {list(thresholds)}: {error}") from None
    with claimed(out) as claim:
        _check(out, claim, overwrite)
        used = load(model, **loading) if folder is None and isinstance(model, str | os.PathLike) else model
        check = partial(check_files, work="evaluate", claim=claim, overwrite=overwrite)
        manifest = read_manifests(cases, check_images=False, unlabelled=True)
        return _evaluated(folder or used, manifest, out, check, split, truth, thresholds, planes, report)


def _evaluated(
    model: Any,
    manifest: Manifest,
    out: Path,
    check: Callable[[list[Path], Iterable[Path]], None],
    split: str | None,
    truth: str | None,
    thresholds: Sequence[float],
    definition: Where | None,
    report: Reporter,
) -> EvaluationResult:
    """What :func:`evaluate` does once ``model`` is loaded; a Path is a folder of predictions."""
    split = split or ("test" if manifest.has_split("test") else "val")
    cases = manifest.labelled() if split == "train" else manifest.split(split)
    true = {case.id: read_truth(case, truth) for case in cases}
    planes, variant = _planes(definition, true), truth or _variant(cases) + " and later manifests" * bool(manifest.more)
    from_files = isinstance(model, Path)
    written = [out / name for name in (*TABLES, REPORT, SUMMARY, PLANES)]
    written += [] if from_files else [out / PREDICTIONS / f"{c.id}.{e}" for c in cases for e in FORMATS]
    check(written, sources_of(cases, [*manifest.paths, *([model] if from_files else ())]))
    predictions = read_predictions(model, cases) if from_files else predict_cases(model, cases, report)
    name = model.resolve().name if from_files else str(getattr(model, "name", type(model).__name__))
    predicted = predictions.names
    expected = predicted if from_files else tuple(getattr(model, "names", ())) or predicted
    names, unscored = _scored(expected, true, manifest)
    seen = seen_notes(model, [case for case in cases if case.id not in predictions.reasons])
    notes = [*seen, *unscored, *manifest.notes]
    if split == "train" and manifest.blank:
        notes.append(f"Not scored, because they have no landmarks: {listed([c.id for c in manifest.blank])}.")
    if missing := predictions.missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        notes.append(
            f"No prediction for {len(missing)} of {len(true)} cases, all their landmarks are failures: {some}."
        )
    if doubt := remark(cases, manifest.annotated):
        notes.append(f"{doubt} They count all the same.")
    rows = [] if planes is None else plane_rows(planes, true, predictions.landmarks)
    result = EvaluationResult(
        model=name,
        manifest=" + ".join(path.name for path in manifest.paths),
        split=split,
        truth=variant,
        errors=compare(true, predictions.landmarks, names),
        thresholds=tuple(thresholds),
        descriptions={n: d for t in true.values() for n, d in zip(t.names, t.descriptions, strict=True) if d},
        predictions=predictions,
        notes=notes,
        tables={} if planes is None else {"scan planes": plane_summary(rows)},
        **_beside(manifest, cases, true, predictions, names, variant),
    )
    (out / PLANES).unlink(missing_ok=True)  # of an evaluation before
    if planes is not None:
        write_csv(out / PLANES, rows, digits=6)
    if not from_files:
        write_predictions(out / PREDICTIONS, str(getattr(model, "hash", "")), name, cases, predictions)
    _write(result, out, cases, true)
    return result


def _planes(definition: Where | None, true: Mapping[str, Landmarks]) -> PlaneSet | None:
    if definition is None:
        return None
    planes = read_definition(definition, PlaneSet, "planes")
    if flat := next((case for case, one in true.items() if one.ndim == 2), None):
        raise InputError(f"case {flat!r}: its landmarks are 2D; scan planes lie in 3D volumes")
    planes.check_labels(common_names(true.values()), str(definition))
    return planes


def read_truth(case: Case, observer: str | None = None) -> Landmarks:
    """The case's landmarks, of ``observer`` where given (``mean``: of all). Raises InputError for an unknown one."""
    if observer is None:
        return case.landmarks
    observers = case.observers()
    if observer in observers:
        return observers[observer]
    if observer == MEAN and len(observers) > 1:
        return mean_of(observers)
    named = [o for o in observers if o]
    there = f"it has {', '.join(named)}" if named else "its landmark file names no observers"
    raise InputError(f"case {case.id!r}: has no observer {observer!r}{nearest(observer, named)}; {there}")


def _check(out: Path, claim: Claim, overwrite: bool) -> None:
    """Raises InputError where ``out`` holds an evaluation that a run has finished."""
    if (out / SUMMARY).exists() and not overwrite and not claim.unfinished(out / SUMMARY):
        raise InputError(f"{out}: holds an evaluation already; choose another folder or give `overwrite`")


def _scored(expected: Sequence[str], truth: Mapping[str, Landmarks], manifest: Manifest) -> tuple[list[str], list[str]]:
    """The labels that are scored, and lines on those that are not."""
    annotated = {
        n for t in truth.values() for n, s in zip(t.names, t.status, strict=True) if s is not Status.UNANNOTATED
    }
    there = [n for n in common_names(truth.values()) if n in annotated]
    names = [n for n in there if n in expected]
    if not names:
        raise InputError(
            f"{manifest.name}: no label in common: predicted are {listed(expected, 5, quote=True)}, the truth has "
            f"{listed(there, 5, quote=True)}"
        )
    left_out = {
        "no prediction names them": [n for n in there if n not in expected],
        "the truth lacks them": [n for n in expected if n not in annotated],
    }
    return names, [f"Not scored, because {why}: {listed(n, 12, quote=True)}." for why, n in left_out.items() if n]


def _beside(
    manifest: Manifest,
    cases: Sequence[Case],
    true: Mapping[str, Landmarks],
    predictions: Predictions,
    names: Sequence[str],
    truth: str,
) -> dict[str, dict[str, Errors]]:
    """What errors against one observer's ``truth`` are held against: ``baselines``, the ``observers`` among each other,
    and errors ``against`` the other observers and the mean of all."""
    observers = {case.id: {o: landmarks for o, landmarks in case.observers().items() if o} for case in cases}
    observers = {case: by_observer for case, by_observer in observers.items() if len(by_observer) > 1}
    people = list(dict.fromkeys(o for by_observer in observers.values() for o in by_observer))
    others = {o: {c: by[o] for c, by in observers.items() if o in by} for o in people if o != truth}
    if observers and truth != MEAN:
        others[MEAN] = {case: mean_of(by_observer) for case, by_observer in observers.items()}
    train = [case.landmarks for case in manifest.annotated]
    baselines = mean_shape_baselines(train, true)
    return {
        "baselines": {label: compare(true, landmarks, names) for label, landmarks in baselines.items()},
        "observers": between_observers(observers, names),
        "against": {o: compare(landmarks, predictions.landmarks, names) for o, landmarks in others.items()},
    }


def _variant(cases: Sequence[Case]) -> str:
    """The observer that the manifest's rows name after #, if they agree on one."""
    chosen = {c.observer or "" for c in cases}
    return chosen.pop() or AS_GIVEN if len(chosen) == 1 else "as the manifest names"


def _write(result: EvaluationResult, out: Path, cases: Sequence[Case], true: Mapping[str, Landmarks]) -> None:
    """Tables and report; ``summary.json`` last, so that its presence means a complete evaluation."""
    from anatomark.evaluation.report import render
    from anatomark.evaluation.viewer import look

    write_csv(out / TABLES[0], result.error_rows(), result.error_columns, digits=6)
    for name, rows in zip(TABLES[1:], (result.landmark_rows(), result.case_rows()), strict=True):
        write_csv(out / name, rows, digits=6)
    pictures, viewer = look(result, cases, true)
    write_text(out / REPORT, render(result, pictures, viewer, version=anatomark.__version__))
    write_json(out / SUMMARY, result.summary())
