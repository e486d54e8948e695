"""The one loop over cases: read, locate, collect. Prediction, evaluation, validation, folds and calibration use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from anatomark.cases.case import Case
from anatomark.core.image import Image
from anatomark.errors import InputError, reason_of
from anatomark.model.prediction import Prediction
from anatomark.progress import Reporter


@dataclass(frozen=True)
class Outcome:
    """What became of one case: its image and prediction, or the ``reason`` why there is none."""

    case: Case
    image: Image | None = None
    prediction: Prediction | None = None
    reason: str = ""


def run_cases(
    find: Callable[[Case, Image], Prediction], cases: Sequence[Case], report: Reporter | None = None, title: str = ""
) -> Iterator[Outcome]:
    """The one loop: read a case's image, ``find`` its landmarks (timed), go on with the next. A case that cannot be
    read or located is an outcome with its reason, of several cases also where that is our fault."""
    report = report or Reporter(quiet=True)
    with report.bar(title or "predict", len(cases)) as bar:
        for i, case in enumerate(cases):
            try:
                image = case.image()
                start = time.perf_counter()
                prediction = find(case, image)
                seconds = time.perf_counter() - start
                outcome = Outcome(case, image, replace(prediction, seconds=seconds, notes=image.notes))
            except Exception as error:
                if len(cases) == 1 and not isinstance(error, InputError):
                    raise
                outcome = Outcome(case, reason=reason_of(error))
            yield outcome
            bar.update(i + 1, case.id)
