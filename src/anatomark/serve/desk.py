"""The cases that a person reviews, the model that predicted them, and the change to the next one."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock

from anatomark.cases.case import Case
from anatomark.cases.find import find_images_as_cases
from anatomark.errors import InputError
from anatomark.io.atomic import read_json, write_json
from anatomark.progress import Reporter
from anatomark.review import Review

MODELS, PREDICTIONS, GOES_ON = "models", "predictions", "goes_on.json"
Spacing = tuple[float, ...] | None


@dataclass(frozen=True)
class Setting:
    """What a review is opened with: the ``images`` (or manifests), what is to be known of them, the folder ``out``, the
    ``model`` (path or zoo name) and its ``predictions``. ``train_with``: manifests that training reads besides.
    ``annotated``: the predictions are the manifest's own annotations."""

    out: Path
    images: Sequence[Path]
    predictions: Path
    model: str | None = None
    spacing: Spacing = None
    form: str | None = None
    train_with: Sequence[Path] = ()
    device: str | None = None
    person: str = ""
    annotated: bool = False

    def cases(self) -> list[Case]:
        """Raises InputError. A row with a blank split is in no review of annotations: nothing of it is used."""
        cases = find_images_as_cases(self.images, spacing=self.spacing, form=self.form)
        return [case for case in cases if case.split or not self.annotated]


@dataclass
class Desk:
    """A review as the service has it open. Everything that reads or changes it holds ``lock``: the model changes under
    it when a training has ended."""

    setting: Setting
    report: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    lock: RLock = field(default_factory=RLock)

    def __post_init__(self) -> None:
        given = self.setting
        self.setting = gone_on(given)
        if self.setting is not given:
            self.report.say(f"going on with the model {self.setting.model}, which was trained in this review")
        self.cases = [replace(case, apart=True) for case in given.cases()]
        self.bare = {case.id: replace(case, source=None, given=None) for case in self.cases}  # images alone
        self._given = given
        self.review = self._opened()

    @property
    def ids(self) -> Collection[str]:
        return self.bare.keys()

    @property
    def model_name(self) -> str:
        return Path(self.setting.model).name if self.setting.model else ""

    def next_cases(self) -> list[str]:
        """The open cases, the most suspicious first; not those whose image cannot be shown."""
        return [str(row["id"]) for row in self.review.queue("suspicion", "open") if not row["reason"]]

    def next_model(self) -> tuple[Path, Path]:
        """The run folder and the folder of predictions of the next model: ``NAME-1``, then ``NAME-2``."""
        assert self.setting.model is not None
        folder = self.setting.out / MODELS
        path = Path(os.path.abspath(self.setting.model))
        stem = re.sub(r"-\d+\Z", "", path.name) if path.parent == Path(os.path.abspath(folder)) else path.name
        number = 1
        while os.path.lexists(folder / f"{stem}-{number}"):
            number += 1
        return folder / f"{stem}-{number}", self.setting.out / PREDICTIONS / f"{stem}-{number}"

    def go_on(self, model: Path, predictions: Path) -> None:
        """Go on with another model and its predictions; what a person decided stays. Raises InputError, and then the
        review stays as it was."""
        with self.lock:
            before = self.setting
            self.setting = replace(before, model=str(model), predictions=predictions)
            self.review.close()
            try:
                self.review = self._opened()
            except InputError:
                self.setting = before
                self.review = self._opened()
                raise
            out = self.setting.out
            write_json(
                out / MODELS / GOES_ON,
                {
                    **_given(self._given),
                    "then": os.path.relpath(model, out),
                    "found": os.path.relpath(predictions, out),
                },
            )

    def close(self) -> None:
        with self.lock:
            self.review.close()

    def _opened(self) -> Review:
        return Review(self.setting.out, self.cases, self.setting.predictions, self.report)


def gone_on(given: Setting) -> Setting:
    """The setting with the last model that was trained in a review of the same model and predictions, if any."""
    with suppress(InputError):
        said = read_json(given.out / MODELS / GOES_ON)
        if isinstance(said, dict) and said.items() >= _given(given).items():
            model, predictions = given.out / str(said.get("then")), given.out / str(said.get("found"))
            if model.is_dir() and predictions.is_dir():
                return replace(given, model=str(model), predictions=predictions)
    return given


def _given(setting: Setting) -> dict[str, str | None]:
    model = setting.model
    whole = os.path.abspath(model) if model is not None and os.path.exists(model) else model
    return {"model": whole, "predictions": os.path.abspath(setting.predictions)}
