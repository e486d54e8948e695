"""What is evaluated: predictions of a model, made here, or those of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

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

V = TypeVar("V")
HELD = 1000  # predictions of a folder that are held in memory
NOTHING = Landmarks((), np.zeros((0, 3)))
FORMATS = ("mrk.json", "json")  # that the predictions of an evaluation are written in


class Predictor(Protocol):
    """What is evaluated: anything that finds landmarks in an image, world mm."""

    def predict(self, image: Image) -> Prediction | Landmarks: ...


@dataclass
class Predictions:
    """Predictions by case, None where there is none; ``reasons`` why, where that is known."""

    of: Mapping[str, Prediction | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    peak_gb: float | None = None

    @cached_property
    def landmarks(self) -> Mapping[str, Landmarks | None]:
        """By case, None where there is no prediction; of files, each read when it is asked for."""
        return ByCase(self.of, lambda case: None if (p := self.of[case]) is None else p.landmarks)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all landmarks that occur."""
        return self._facts[1]

    @property
    def missing(self) -> list[str]:
        """The cases without a prediction."""
        return [case for case in self.of if case not in self._facts[0]]

    @cached_property
    def _facts(self) -> tuple[dict[str, Prediction], tuple[str, ...]]:
        """The predictions without their landmarks, and the landmarks' names; each prediction is looked at once."""
        facts, names = {}, dict[str, None]()
        for case, prediction in self.of.items():
            if prediction is not None:
                facts[case] = replace(prediction, landmarks=NOTHING, left_out=None, source={})
                names.update(dict.fromkeys(prediction.landmarks.names))
        return facts, tuple(names)

    @property
    def flags(self) -> dict[str, list[str]]:
        """Why a case should be reviewed, or could not be predicted."""
        flagged = {c: list(p.flags) for c, p in self._facts[0].items() if p.flags}
        return {**flagged, **{c: [reason] for c, reason in self.reasons.items()}}

    def values(self, name: str) -> dict[str, float]:
        """``seconds``, ``align_seconds`` or ``suspicion`` of the cases that have it."""
        pairs = ((c, getattr(p, name)) for c, p in self._facts[0].items())
        return {c: float(value) for c, value in pairs if value is not None}


class ByCase(Mapping[str, V]):
    """What ``get`` gives for each of the ``cases``, anew each time."""

    def __init__(self, cases: Iterable[str], get: Callable[[str], V]):
        self.cases, self.get_one = dict.fromkeys(cases), get

    def __getitem__(self, case: str) -> V:
        if case not in self.cases:
            raise KeyError(case)
        return self.get_one(case)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)


def prediction_folder(model: Any) -> Path | None:
    """The folder, if that is what ``model`` names and no trained model lies in it."""
    if not isinstance(model, str | os.PathLike):
        return None
    path = Path(model)
    trained = any((path / part).exists() for part in ("config.yaml", "plan.json", WEIGHTS))
    return path if path.is_dir() and not trained and not is_ensemble(path) else None


def predict_cases(model: Predictor, cases: Sequence[Case], report: Reporter) -> Predictions:
    """Predict every case. One that cannot be read or predicted is a failure with its reason; InputError if all are."""
    made: dict[str, Prediction | None] = {}
    reasons: dict[str, str] = {}

    def find(case: Case, image: Image) -> Prediction:
        answer = model.predict(image)
        return answer if isinstance(answer, Prediction) else Prediction(answer)

    for outcome in run_cases(find, cases, report, "evaluate"):
        made[outcome.case.id] = outcome.prediction
        if outcome.prediction is None:
            reasons[outcome.case.id] = outcome.reason
    if len(reasons) == len(cases):
        raise InputError(f"no case could be predicted; the first one: {reasons[cases[0].id]}")
    return Predictions(made, reasons, peak_memory_gb())


def read_predictions(folder: Path, cases: Sequence[Case]) -> Predictions:
    """The predictions of ``cases`` in a folder, named by case or image. Raises InputError where there is none of any
    case. Of more than ``HELD`` cases each is read again when it is asked for: memory does not grow with them."""
    files = {case.id: landmark_file(folder, stems_of(case)) for case in cases}
    if not any(files.values()):
        first = cases[0].id
        raise InputError(f"{folder}: holds no trained model and no prediction of any case, such as {first}.mrk.json")
    by_name = {case.id: case for case in cases}

    def read(case: str) -> Prediction | None:
        return None if (file := files[case]) is None else read_prediction(by_name[case], file)

    stored = ByCase(files, read)
    return Predictions(dict(stored) if len(cases) <= HELD else stored)


def write_predictions(folder: Path, model: str, name: str, cases: Sequence[Case], made: Predictions) -> None:
    """Write what a model (its hash and name) predicted, as ``predict`` does."""
    for case in cases:
        prediction = made.of[case.id]
        if prediction is not None:
            source = {"case": case.id, "model": model, "model_name": name, "image": str(case.path)}
            write_prediction(replace(prediction, source=source), folder, case.id, FORMATS)
