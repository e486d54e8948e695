"""Training in the background: the model of a review learns from its corrections, then predicts its cases anew."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anatomark.errors import InputError, check_range, reason_of
from anatomark.model.ensemble import is_ensemble
from anatomark.review import files
from anatomark.serve.desk import Desk
from anatomark.serve.pool import Failed, Workers

MOST_MINUTES = 60 * 24 * 7.0
SHOWN = 20  # lines
TRAINS = 0.9  # of the progress
WEIGHTS = "weights.safetensors"
CHILD = "anatomark.benchmark.child"  # the command line, which ends with the process that started it


class Busy(Exception):
    """Another training is under way."""


@dataclass
class Job:
    """One training. ``state``: waiting, running, done, failed or stopped; ``progress`` 0..1; ``figures``: validation
    errors, mm, by step; ``model``: the name of the new model once it is in use."""

    id: str
    run: Path
    state: str = "waiting"
    progress: float = 0.0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=SHOWN))
    model: str | None = None
    error: str = ""
    child: subprocess.Popen[str] | None = None

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running")

    def document(self) -> dict[str, Any]:
        """The job as plain data."""
        return {
            "id": self.id, "state": self.state, "progress": round(self.progress, 3), "lines": list(self.lines),
            "figures": validation_errors(self.run / "log.csv"), "model": self.model, "error": self.error,
        }  # fmt: skip

    def stop(self) -> None:
        """End the job, if it is under way."""
        if self.active:
            self.state = "stopped"
            if self.child is not None:
                self.child.kill()


class Jobs:
    """The trainings of a review, one at a time."""

    def __init__(self, desk: Desk, workers: Workers):
        self.desk, self.workers = desk, workers
        self.all: dict[str, Job] = {}
        self._lock, self._numbers = threading.Lock(), itertools.count(1)

    @property
    def can_train(self) -> bool:
        """Whether there is a model that training can start from: one, no average."""
        model = self.desk.setting.model
        return model is not None and not is_ensemble(model)

    def train(self, minutes: float) -> Job:
        """Begin to train for ``minutes``. Raises Busy, and InputError where there is nothing to learn from."""
        check_range("minutes", minutes, 0, MOST_MINUTES, above=True)
        setting = self.desk.setting
        if not self.can_train:
            raise InputError("there is no single model to go on from; open the review with one, `model` RUN")
        if not self.desk.review.figures()["done"] or not (setting.out / files.CASES).exists():
            raise InputError(
                "no case with a point that somebody decided on is done yet; there is nothing to learn from"
            )
        with self._lock:
            if any(job.active for job in self.all.values()):
                raise Busy("a training is under way; stop it, or wait until it has ended")
            run, predictions = self.desk.next_model()
            job = Job(str(next(self._numbers)), run)
            self.all[job.id] = job
        threading.Thread(target=self._work, args=(job, minutes, predictions), daemon=True).start()
        return job

    def close(self) -> None:
        """Stop what is under way."""
        for job in self.all.values():
            job.stop()

    def _work(self, job: Job, minutes: float, predictions: Path) -> None:
        job.state = "running" if job.state == "waiting" else job.state
        try:
            self._train(job, minutes)
            self._predict(job, predictions)
            if job.active:
                self.workers.add(str(job.run))
                self.desk.go_on(job.run, predictions)
                job.model, job.progress, job.state = job.run.name, 1.0, "done"
        except Exception as error:
            job.error = str(error) if isinstance(error, Failed) else reason_of(error)
            job.state = "failed" if job.active else job.state
        if job.state != "done" and not (job.run / WEIGHTS).exists():
            shutil.rmtree(job.run, ignore_errors=True)  # what we began

    def _train(self, job: Job, minutes: float) -> None:
        setting, began = self.desk.setting, time.monotonic()
        manifests = [os.path.abspath(path) for path in (*setting.train_with, setting.out / files.CASES)]

        def watch() -> None:
            job.progress = TRAINS * min(1.0, (time.monotonic() - began) / (60 * minutes))

        options = {"out": job.run, "init": setting.model, "minutes": minutes, "device": setting.device}
        self._run(job, _command("fit", *manifests, **options), (0,), watch)

    def _predict(self, job: Job, predictions: Path) -> None:
        setting, count = self.desk.setting, len(self.desk.cases)
        images = [os.path.abspath(path) for path in setting.images]

        def watch() -> None:
            made = sum(1 for _ in predictions.glob("[!.]*.mrk.json"))
            job.progress = TRAINS + (1 - TRAINS) * min(1.0, made / count)

        spacing = ";".join(f"{v!r}" for v in setting.spacing or ())
        options = {"out": predictions, "spacing": spacing, "form": setting.form, "device": setting.device}
        # 2: some images cannot be read; the review says of which there is no prediction
        self._run(job, _command("predict", os.path.abspath(job.run), *images, **options), (0, 2), watch)

    def _run(self, job: Job, command: Sequence[str], good: Sequence[int], watch: Callable[[], None]) -> None:
        """Run the command line in a process that ends with this one; its lines are the job's. Raises Failed."""
        if not job.active:
            raise Failed("it was stopped", 500)
        path = os.pathsep.join(p for p in sys.path if p)  # it finds what we find
        job.child = subprocess.Popen(
            [sys.executable, "-m", CHILD, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "250", "NO_COLOR": "1"},
        )  # fmt: skip
        reader = threading.Thread(target=_read, args=(job.child, job.lines), daemon=True)
        reader.start()
        while job.child.poll() is None:
            watch()
            if not job.active:
                job.child.kill()
            time.sleep(0.2)
        reader.join(5)
        if not job.active:
            raise Failed("it was stopped", 500)
        if job.child.returncode not in good:
            last = next((line for line in reversed(job.lines) if line.startswith("error: ")), "")
            how = last.removeprefix("error: ") or f"{command[0]} ended with exit code {job.child.returncode}"
            raise Failed(how, 500)


def _command(*words: object, **options: object) -> list[str]:
    """A command line of anatomark; options without a value are left out."""
    given = ((f"--{name}", value) for name, value in options.items() if value)
    return [str(word) for word in (*words, *itertools.chain.from_iterable(given))]


def _read(child: subprocess.Popen[str], lines: deque[str]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if line.strip():
                lines.append(line.rstrip())


def validation_errors(log: Path) -> list[dict[str, Any]]:
    """The validation errors in a run's ``log.csv``: ``step``, counted over all stages, and ``error``, mm."""
    found, before, last, stage = [], 0, 0, ""
    with suppress(OSError, ValueError, KeyError), open(log, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["stage"] != stage:
                before, stage = before + last, row["stage"]
            last = int(row["step"])
            if row["val_mm"]:
                found.append({"step": before + last, "error": float(row["val_mm"])})
    return found
