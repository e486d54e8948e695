"""The whole loop on the bundled brain: learn from one template, find 32 landmarks in one real person."""

from __future__ import annotations

import os
import shutil
from copy import copy
from dataclasses import dataclass
from functools import partial
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
from anatomark.machine import free_cores
from anatomark.model.config import MOST_MINUTES, read_config
from anatomark.model.predict import predict
from anatomark.model.run_folder import CHECKPOINT, WEIGHTS
from anatomark.progress import Reporter
from anatomark.training.fit import fit
from anatomark.training.request import REQUEST

DATA = Path(anatomark.__file__).parent / "zoo" / "brain-data"
TEMPLATE, PERSON = "MNI152NLin2009cAsym", "Colin27"
CASES = ((TEMPLATE, "train"), (PERSON, "test"))
LICENSE = "landmarks CC-BY-4.0 (AFIDs); images under the McGill notice"
REGISTRATION = "ANTs SyNQuick registration, measured elsewhere: 2.66 mm in about 80 s"
STEPS = {"context": 220, "level1": 120, "level2": 130}  # about two minutes on two quiet cores
COST = {"context": 1.0, "level1": 3.2, "level2": 3.1}  # of a step, compared with the first stage's
AFTER = 80  # steps of the first stage that finishing, predicting and measuring take as long as
LONG_S = 600.0
RUN, PREDICTIONS, EVALUATION, REPORT = "run", "predictions", "evaluation", "report.html"


@dataclass(frozen=True)
class Demonstrated:
    """The outcome of :func:`demo`: the evaluation on the person, and where everything is."""

    result: EvaluationResult
    copied_mm: float
    seconds: float
    landmarks: Path
    report: Path
    model: Path
    cases: Path

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
            "cases": str(self.cases),
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
    instead. Computes on the cores that are free, and says after a few steps how long it will take.

    Writes ``cases.csv``, the run, the predictions and the evaluation with ``report.html`` into ``out``. A demo that was
    stopped goes on from its last checkpoint; parts that a finished one left there are made anew, anything else is left
    alone. Raises InputError where ``out`` is not a demo's folder.
    """
    out, report = Path(out), report or Reporter()
    if minutes is not None:
        check_range("minutes", minutes, 0, MOST_MINUTES, above=True)
    with claimed(out):
        if not _is_demo(out):
            raise InputError(f"{out}: exists already and holds no demo; choose another `out`")
        return _demonstrated(out, minutes, report)


def _demonstrated(out: Path, minutes: float | None, report: Reporter) -> Demonstrated:
    cases, run = out / "cases.csv", out / RUN
    # copies of the one template to validate on would only cost learning time
    budget: dict[str, Any] = {"minutes": minutes} if minutes else {"stage_steps": STEPS}
    goes_on = _goes_on(out, budget)
    for part in (PREDICTIONS, EVALUATION) if goes_on else (RUN, PREDICTIONS, EVALUATION):
        shutil.rmtree(out / part, ignore_errors=True)
    rows = [f"{c},{DATA / (c + '_T1w.nii.gz')},{DATA / (c + '_afids.fcsv')},{s}" for c, s in CASES]
    write_text(cases, "\n".join(["case,image,landmarks,split", *rows]) + "\n")
    report.say(f"learning 32 landmarks from one brain, the template {TEMPLATE}")
    if goes_on:
        report.say(f"going on with the training in {run}, which was stopped")
    training = copy(report)
    training.pace = None if minutes else partial(_foretell, report)
    fitted = fit(
        cases, run, method="pin", val_fraction=0.0, license=LICENSE, threads=_threads(), resume=goes_on, **budget,
        report=training,
    )  # fmt: skip
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
        out / EVALUATION / REPORT,
        run,
        cases,
    )


def kept(out: Path) -> str:
    """What a demo that was stopped left in ``out``, and how it goes on."""
    run = out / RUN
    if (run / WEIGHTS).is_file():
        return f"the trained model is kept in {run}; the same command goes on with it"
    if (run / CHECKPOINT).is_file():
        return f"the training up to its last checkpoint is kept in {run}; the same command goes on from there"
    return "nothing was saved yet; the same command begins anew"


def _goes_on(out: Path, budget: dict[str, Any]) -> bool:
    """Whether ``out`` holds a demo with this budget that was stopped before its end."""
    run = out / RUN
    if (out / EVALUATION / REPORT).is_file() or not any((run / f).is_file() for f in (WEIGHTS, CHECKPOINT)):
        return False
    try:
        asked = read_config(run / REQUEST)
    except InputError:
        return False
    return {key: getattr(asked, key) for key in ("minutes", "stage_steps")} == {
        "minutes": None, "stage_steps": {}, **budget,
    }  # fmt: skip


def _threads() -> int:
    """Threads to compute with: more than there are free cores wait for each other."""
    import torch

    return min(torch.get_num_threads(), free_cores())


def _foretell(report: Reporter, title: str, done: int, step_s: float) -> None:
    """Say how long the demo takes, from the time of a step in the training stage that ``title`` names."""
    stage = title.partition(" ")[0]
    if stage not in STEPS:
        return
    later = list(STEPS)[list(STEPS).index(stage) + 1 :]
    steps = (STEPS[stage] - done) * COST[stage] + sum(STEPS[s] * COST[s] for s in later) + AFTER
    seconds = steps * step_s / COST[stage]
    report.say(f"{step_s:.2g} s a step on this machine: the demo takes about {in_words(seconds)} more")
    if seconds > LONG_S:
        report.say("that is long; is something else using the machine? `minutes` 5 ends sooner and is less accurate")


def in_words(seconds: float) -> str:
    """``40 seconds``, ``1 minute``, ``35 minutes``."""
    if seconds < 55:
        return f"{max(10, 10 * round(seconds / 10))} seconds"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes > 1)}"


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
