"""What is evaluated: predictions of a model, made here, or those of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from anatomark.cases.case import Case
from anatomark.cases.find import landmark_file, stems_of
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.evaluation.memory import peak_memory_gb
from anatomark.model.ensemble import is_ensemble
from anatomark.model.prediction import Prediction, read_prediction, write_prediction
from anatomark.model.run_cases import run_cases
from anatomark.model.run_folder import WEIGHTS
from anatomark.progress import Reporter

FORMATS = ("mrk.json", "json")  # that the predictions of an evaluation are written in


class Predictor(Protocol):
    """What is evaluated: anything that finds landmarks in an image, world mm."""

    def predict(self, image: Image) -> Prediction | Landmarks: ...


@dataclass
class Predictions:
    """Predictions by case, None where there is none; ``reasons`` why, where that is known."""

    of: dict[str, Prediction | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    peak_gb: float | None = None

    @property
    def landmarks(self) -> dict[str, Landmarks | None]:
        """By case, None where there is no prediction."""
        return {c: None if p is None else p.landmarks for c, p in self.of.items()}

    @property
    def flags(self) -> dict[str, list[str]]:
        """Why a case should be reviewed, or could not be predicted."""
        flagged = {c: list(p.flags) for c, p in self.of.items() if p is not None and p.flags}
        return {**flagged, **{c: [reason] for c, reason in self.reasons.items()}}

    def values(self, name: str) -> dict[str, float]:
        """``seconds``, ``align_seconds`` or ``suspicion`` of the cases that have it."""
        pairs = ((c, getattr(p, name)) for c, p in self.of.items() if p is not None)
        return {c: float(value) for c, value in pairs if value is not None}


def prediction_folder(model: Any) -> Path | None:
    """The folder, if that is what ``model`` names and no trained model lies in it."""
    if not isinstance(model, str | os.PathLike):
        return None
    path = Path(model)
    trained = any((path / part).exists() for part in ("config.yaml", "plan.json", WEIGHTS))
    return path if path.is_dir() and not trained and not is_ensemble(path) else None


def predict_cases(model: Predictor, cases: Sequence[Case], report: Reporter) -> Predictions:
    """Predict every case. One that cannot be read or predicted is a failure with its reason; InputError if all are."""
    made = Predictions()

    def find(case: Case, image: Image) -> Prediction:
        answer = model.predict(image)
        return answer if isinstance(answer, Prediction) else Prediction(answer)

    for outcome in run_cases(find, cases, report, "evaluate"):
        made.of[outcome.case.id] = outcome.prediction
        if outcome.prediction is None:
            made.reasons[outcome.case.id] = outcome.reason
    if len(made.reasons) == len(cases):
        raise InputError(f"no case could be predicted; the first one: {made.reasons[cases[0].id]}")
    made.peak_gb = peak_memory_gb()
    return made


def read_predictions(folder: Path, cases: Sequence[Case]) -> Predictions:
    """The predictions of ``cases`` in a folder, named by case or image. Raises InputError where there is none of any
    case."""
    made = Predictions()
    for case in cases:
        file = landmark_file(folder, stems_of(case))
        made.of[case.id] = None if file is None else read_prediction(case, file)
    if all(p is None for p in made.of.values()):
        first = cases[0].id
        raise InputError(f"{folder}: holds no trained model and no prediction of any case, such as {first}.mrk.json")
    return made


def write_predictions(folder: Path, model: str, name: str, cases: Sequence[Case], made: Predictions) -> None:
    """Write what a model (its hash and name) predicted, as ``predict`` does."""
    for case in cases:
        prediction = made.of[case.id]
        if prediction is not None:
            source = {"case": case.id, "model": model, "model_name": name, "image": str(case.path)}
            write_prediction(replace(prediction, source=source), folder, case.id, FORMATS)
