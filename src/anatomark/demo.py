"""The whole loop on the bundled brain: learn from one template, find 32 landmarks in one real person."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import anatomark
from anatomark.errors import InputError, check_range
from anatomark.evaluation.evaluate import evaluate
from anatomark.evaluation.result import EvaluationResult
from anatomark.io.atomic import write_text
from anatomark.io.claim import claimed, is_passing
from anatomark.io.landmarks import read_landmarks
from anatomark.model.config import MOST_MINUTES
from anatomark.model.predict import predict
from anatomark.progress import Reporter
from anatomark.training.fit import fit

DATA = Path(anatomark.__file__).parent / "zoo" / "brain-data"
TEMPLATE, PERSON = "MNI152NLin2009cAsym", "Colin27"
CASES = ((TEMPLATE, "train"), (PERSON, "test"))
LICENSE = "landmarks CC-BY-4.0 (AFIDs); images under the McGill notice"
REGISTRATION = "ANTs SyNQuick registration, measured elsewhere: 2.66 mm in about 80 s"
STEPS = {"context": 220, "level1": 120, "level2": 130}  # about two minutes on two quiet cores
RUN, PREDICTIONS, EVALUATION = "run", "predictions", "evaluation"


@dataclass(frozen=True)
class Demonstrated:
    """The outcome of :func:`demo`: the evaluation on the person, and where everything is."""

    result: EvaluationResult
    copied_mm: float
    seconds: float
    landmarks: Path
    report: Path
    model: Path

    def summary(self) -> dict[str, Any]:
        """The figures, plain."""
        overall = self.result.overall
        return {
            "mean_error_mm": overall.mre_mm,
            "median_error_mm": overall.median_mm,
            "copying_the_template_mm": self.copied_mm,
            "seconds_to_predict": self.seconds,
            "landmarks": str(self.landmarks),
            "report": str(self.report),
            "model": str(self.model),
        }

    def lines(self) -> list[str]:
        """The same in words."""
        overall = self.result.overall
        out = [
            f"{overall.located} of {overall.pairs} landmarks found in {PERSON} in {self.seconds:.1f} s",
            f"mean distance to the experts' points: {overall.mre_mm:.2f} mm (median {overall.median_mm:.2f} mm)",
            f"copying the template's points instead: {self.copied_mm:.2f} mm; {REGISTRATION}",
        ]
        if overall.mre_mm is not None and overall.mre_mm > self.copied_mm:
            out.append(
                "that is worse than copying: the training budget was too short for this machine; give more `minutes`"
            )
        return [
            *out,
            f"report:    {self.report}",
            f"landmarks: {self.landmarks}  (opens in 3D Slicer)",
            f"model:     {self.model}",
            "For research, not a medical device.",
        ]


def demo(out: str | os.PathLike[str], *, minutes: float | None = None, report: Reporter | None = None) -> Demonstrated:
    """Train PIN on the template, find the landmarks in Colin27, compare with the experts' points.

    The number of training steps is fixed, so that every machine comes to the same result; ``minutes`` gives a budget
    instead.

    Writes ``cases.csv``, the run, the predictions and the evaluation with ``report.html`` into ``out``; parts that an
    earlier demo left there are made anew, anything else is left alone. Raises InputError where ``out`` is not a demo's
    folder.
    """
    out, report = Path(out), report or Reporter()
    if minutes is not None:
        check_range("minutes", minutes, 0, MOST_MINUTES, above=True)
    with claimed(out):
        if not _is_demo(out):
            raise InputError(f"{out}: exists already and holds no demo; choose another `out`")
        return _demonstrated(out, minutes, report)


def _demonstrated(out: Path, minutes: float | None, report: Reporter) -> Demonstrated:
    cases = out / "cases.csv"
    for part in (RUN, PREDICTIONS, EVALUATION):
        shutil.rmtree(out / part, ignore_errors=True)
    rows = [f"{c},{DATA / (c + '_T1w.nii.gz')},{DATA / (c + '_afids.fcsv')},{s}" for c, s in CASES]
    write_text(cases, "\n".join(["case,image,landmarks,split", *rows]) + "\n")
    report.say(f"learning 32 landmarks from one brain, the template {TEMPLATE}")
    # copies of the one template to validate on would only cost learning time
    budget = {"minutes": minutes} if minutes else {"stage_steps": STEPS}
    fitted = fit(cases, out / RUN, method="pin", val_fraction=0.0, license=LICENSE, **budget, report=report)
    person = DATA / f"{PERSON}_T1w.nii.gz"
    report.say(f"finding them in a person, {PERSON}, and comparing with the experts' points")
    predicted = predict(fitted.model, [person], out / PREDICTIONS, pictures=True, report=report)[0]
    if predicted.state == "failed":
        raise InputError(predicted.reason)
    result = evaluate(out / PREDICTIONS, cases, out / EVALUATION)
    return Demonstrated(
        result,
        float(copy_errors().mean()),
        predicted.seconds,
        next(f for f in predicted.files if f.name.endswith(".mrk.json")),
        out / EVALUATION / "report.html",
        out / RUN,
    )


def _is_demo(folder: Path) -> bool:
    """Whether a folder is empty or holds an earlier demo: its table of cases names our two, nobody else's."""
    cases = folder / "cases.csv"
    if not cases.is_file():
        return all(is_passing(p.name) for p in folder.iterdir())
    rows = cases.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    return [row.partition(",")[0] for row in rows] == [case for case, _ in CASES]


def copy_errors() -> np.ndarray:
    """(32,) mm: errors on the person when the template's points are simply copied; both lie roughly in MNI space."""
    template, person = (read_landmarks(DATA / f"{c}_afids.fcsv") for c in (TEMPLATE, PERSON))
    return template.errors_to(person)
