"""Evaluation: a model, or a folder of predictions, against a manifest's truth; tables and the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anatomark
from anatomark.cases.case import Case
from anatomark.cases.manifest import Manifest, read_manifest
from anatomark.core.landmarks import Landmarks, Status, common_names
from anatomark.errors import InputError, listed, nearest
from anatomark.evaluation.metrics import THRESHOLDS_MM, between_observers, compare, mean_shape_baselines
from anatomark.evaluation.predictions import (
    Predictions,
    Predictor,
    predict_cases,
    prediction_folder,
    read_predictions,
    write_predictions,
)
from anatomark.evaluation.result import EvaluationResult
from anatomark.io.atomic import write_json, write_text
from anatomark.io.sheets import write_csv
from anatomark.io.tables import MEAN, mean_of
from anatomark.model.predict import load
from anatomark.model.run_folder import existing, remove_empty
from anatomark.progress import Reporter
from anatomark.tools.definitions import read_definition
from anatomark.tools.planes.errors import plane_rows, plane_summary
from anatomark.tools.planes.schema import PlaneSet

SHOWN_3D, SHOWN_2D = 3, 6  # landmarks in a case's picture
AS_GIVEN = "landmark files"
PLANES = "planes.csv"
Where = str | os.PathLike[str]


@dataclass(frozen=True)
class _Asked:
    """What is to be measured, as :func:`evaluate` says."""

    split: str | None
    truth: str | None
    thresholds: Sequence[float]
    planes: Where | None


def evaluate(
    model: Where | Predictor,
    cases: Where,
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
    """Measure ``model`` on a split of the manifest ``cases`` and write everything into the folder ``out``.

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
    there = existing(out)
    try:
        _check(out, thresholds, overwrite)
        used = load(model, **loading) if folder is None and isinstance(model, str | os.PathLike) else model
        return _evaluated(folder or used, cases, out, _Asked(split, truth, thresholds, planes), report)
    except BaseException:
        remove_empty(out, there)
        raise


def _evaluated(model: Any, manifest_path: Where, out: Path, asked: _Asked, report: Reporter) -> EvaluationResult:
    manifest = read_manifest(manifest_path)
    split = asked.split or ("test" if manifest.has_split("test") else "val")
    cases = manifest.split(split)
    true = {case.id: read_truth(case, asked.truth) for case in cases}
    planes = _planes(asked.planes, true)
    folder = model if isinstance(model, Path) else None
    made = read_predictions(folder, cases) if folder is not None else predict_cases(model, cases, report)
    name = folder.resolve().name if folder is not None else str(getattr(model, "name", type(model).__name__))
    predicted = common_names(p for p in made.landmarks.values() if p is not None)
    expected = predicted if folder is not None else tuple(getattr(model, "names", ())) or predicted
    names, notes = _scored(expected, true, manifest)
    missing = [case for case, prediction in made.of.items() if prediction is None]
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        notes.append(
            f"No prediction for {len(missing)} of {len(true)} cases, all their landmarks are failures: {some}."
        )
    result = _measured(manifest, cases, true, made, names, asked.truth)
    result = replace(result, model=name, split=split, thresholds=tuple(asked.thresholds), notes=notes)
    (out / PLANES).unlink(missing_ok=True)  # of an evaluation before
    if planes is not None:
        rows = plane_rows(planes, true, made.landmarks)
        result = replace(result, tables={"scan planes": plane_summary(rows)})
        write_csv(out / PLANES, rows, digits=6)
    if folder is None:
        write_predictions(out / "predictions", str(getattr(model, "hash", "")), name, cases, made)
    _write(result, out, cases, true, made)
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
    marked = case.observers()
    if observer in marked:
        return marked[observer]
    if observer == MEAN and len(marked) > 1:
        return mean_of(marked)
    named = [o for o in marked if o]
    there = f"it has {', '.join(named)}" if named else "its landmark file names no observers"
    raise InputError(f"case {case.id!r}: has no observer {observer!r}{nearest(observer, named)}; {there}")


def _check(out: Path, thresholds: Sequence[float], overwrite: bool) -> None:
    """Everything that can be refused before any work."""
    if not thresholds or not all(0 < t < float("inf") for t in thresholds):
        raise InputError(f"thresholds {list(thresholds)}: give one or more positive distances in mm, such as 2 2.5 3 4")
    if (out / "summary.json").exists() and not overwrite:
        raise InputError(f"{out}: holds an evaluation already; choose another folder or give `overwrite`")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made a folder: {error.strerror or error}") from error


def _scored(expected: Sequence[str], truth: Mapping[str, Landmarks], manifest: Manifest) -> tuple[list[str], list[str]]:
    """The labels that are scored, and lines on those that are not."""
    annotated = {
        n for t in truth.values() for n, s in zip(t.names, t.status, strict=True) if s is not Status.UNANNOTATED
    }
    there = [n for n in common_names(truth.values()) if n in annotated]
    names, wanted = [n for n in there if n in set(expected)], set(there)
    if not names:
        raise InputError(
            f"{manifest.path}: no label in common: predicted are {listed(expected, 5, quote=True)}, the truth has "
            f"{listed(there, 5, quote=True)}"
        )
    notes = []
    if left := [n for n in there if n not in set(expected)]:
        notes.append(f"Not scored, because no prediction names them: {listed(left, 12, quote=True)}.")
    if left := [n for n in expected if n not in wanted]:
        notes.append(f"Not scored, because the truth lacks them: {listed(left, 12, quote=True)}.")
    return names, notes


def _measured(
    manifest: Manifest,
    cases: Sequence[Case],
    true: Mapping[str, Landmarks],
    made: Predictions,
    names: Sequence[str],
    truth: str | None,
) -> EvaluationResult:
    """Errors, and everything beside them, without the names of model and split."""
    marked = {case.id: {o: m for o, m in case.observers().items() if o} for case in cases}
    marked = {case: by_observer for case, by_observer in marked.items() if len(by_observer) > 1}
    variant = truth or _variant(cases)
    people = list(dict.fromkeys(o for by_observer in marked.values() for o in by_observer))
    others = {o: {c: m[o] for c, m in marked.items() if o in m} for o in people if o != variant}
    if marked and variant != MEAN:
        others[MEAN] = {case: mean_of(by_observer) for case, by_observer in marked.items()}
    train = [case.landmarks for case in manifest.cases if case.split == "train"]
    baselines = mean_shape_baselines(train, true) if train else {}
    described = {n: d for t in true.values() for n, d in zip(t.names, t.descriptions, strict=True) if d}
    return EvaluationResult(
        model="",
        manifest=manifest.path.name,
        split="",
        truth=variant,
        errors=compare(true, made.landmarks, names),
        descriptions=described,
        baselines={label: compare(true, points, names) for label, points in baselines.items()},
        observers=between_observers(marked, names),
        against={other: compare(points, made.landmarks, names) for other, points in others.items()},
        seconds=made.values("seconds"),
        align_seconds=made.values("align_seconds"),
        peak_gb=made.peak_gb,
        flags=made.flags,
        suspicion=made.values("suspicion"),
    )


def _variant(cases: Sequence[Case]) -> str:
    """The observer that the manifest's rows name after #, if they agree on one."""
    chosen = {c.observer or "" for c in cases}
    return chosen.pop() or AS_GIVEN if len(chosen) == 1 else "as the manifest names"


def _write(
    result: EvaluationResult, out: Path, cases: Sequence[Case], true: Mapping[str, Landmarks], made: Predictions
) -> None:
    """Tables and report; ``summary.json`` last, so that its presence means a complete evaluation."""
    from anatomark.evaluation.report import CasePicture, render
    from anatomark.pictures.overlay import case_picture

    tables = {"errors": result.error_rows(), "per_landmark": result.landmark_rows(), "per_case": result.case_rows()}
    for name, rows in tables.items():
        write_csv(out / f"{name}.csv", rows, digits=6)
    pictures = []
    for word, m in result.highlights():
        case = cases[m]
        try:
            image = case.image()
        except InputError:  # the case failed for this reason already, and the table says so
            continue
        shown = result.worst(m, SHOWN_3D if image.ndim == 3 else SHOWN_2D)
        pictures.append(CasePicture(word, m, case_picture(image, made.landmarks[case.id], true[case.id], shown), shown))
    write_text(out / "report.html", render(result, pictures, version=anatomark.__version__))
    write_json(out / "summary.json", result.summary())
