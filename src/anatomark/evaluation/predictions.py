"""What is evaluated: predictions of a model, made here, or those of a folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from anatomark.cases.find import flat, landmark_file
from anatomark.cases.manifest import Case
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.jsonfile import write_json_landmarks
from anatomark.io.landmarks import read_landmarks, write_landmarks
from anatomark.model.ensemble import is_ensemble
from anatomark.model.model import image_stem
from anatomark.model.predict import align_facts, described, load, member_facts, trust_facts
from anatomark.progress import Reporter


class Predictor(Protocol):
    """What is evaluated: anything that finds landmarks in an image, world mm."""

    def predict(self, image: Image) -> Landmarks:
        """The landmarks of one image."""
        ...


@dataclass
class Predictions:
    """Predictions by case, None where there is none, and what is known of how they came about."""

    found: dict[str, Landmarks | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    align_seconds: dict[str, float] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    suspicion: dict[str, float] = field(default_factory=dict)
    peak_gb: float | None = None


def prediction_folder(model: Any) -> Path | None:
    """The folder, if that is what ``model`` names and no trained model lies in it."""
    if not isinstance(model, str | os.PathLike):
        return None
    path = Path(model)
    trained = any((path / part).exists() for part in ("config.yaml", "plan.json", "weights.safetensors"))
    return path if path.is_dir() and not trained and not is_ensemble(path) else None


def named_predictor(model: Any) -> tuple[str, Predictor]:
    """The model, loaded where ``model`` is a run folder or a zoo name, and what it is called."""
    if isinstance(model, str | os.PathLike):
        model = load(os.fspath(model))
    return str(getattr(model, "name", type(model).__name__)), model


def predict_cases(model: Predictor, cases: Sequence[Case], reporter: Reporter) -> Predictions:
    """Predict every case. One that cannot be read or predicted is a failure with its reason; InputError if all are."""
    made = Predictions()
    with reporter.bar("evaluate", len(cases)) as bar:
        for i, case in enumerate(cases):
            try:
                image = case.read_image()
                start = time.perf_counter()
                found = model.predict(image)
                made.seconds[case.id] = time.perf_counter() - start
                made.found[case.id] = found
                if "align_seconds" in found.meta:
                    made.align_seconds[case.id] = float(found.meta["align_seconds"])
                if found.meta.get("flags"):
                    made.flags[case.id] = [str(flag) for flag in found.meta["flags"]]
                if "suspicion" in found.meta:
                    made.suspicion[case.id] = float(found.meta["suspicion"])
            except InputError as error:
                made.found[case.id], made.flags[case.id] = None, [str(error)]
            bar.update(i + 1, case.id)
    if not made.seconds:
        raise InputError(f"no case could be predicted; the first one: {made.flags[cases[0].id][0]}")
    made.peak_gb = peak_memory_gb()
    return made


def read_predictions(folder: Path, cases: Sequence[Case], truth: Mapping[str, Landmarks]) -> Predictions:
    """The predictions of ``cases`` in a folder, named by case or image; 2D where the ``truth`` is. Raises InputError
    where there is none of any case."""
    made = Predictions()
    for case in cases:
        stems = dict.fromkeys((case.id, image_stem(case.image)))
        file = landmark_file(folder, stems)
        if file is None:
            made.found[case.id] = None
            continue
        found = read_landmarks(file, case=case.id if file.suffix == ".csv" else None, spacing=case.spacing)
        made.found[case.id] = _like(found, truth[case.id])
        facts = found.meta.get("json", {})
        for key, seconds in (("seconds", made.seconds), ("align_seconds", made.align_seconds)):
            if isinstance(facts.get(key), int | float):
                seconds[case.id] = float(facts[key])
        if isinstance(facts.get("flags"), list) and facts["flags"]:
            made.flags[case.id] = [str(flag) for flag in facts["flags"]]
        if "suspicion" in facts:  # null: beyond measure
            value = facts["suspicion"]
            made.suspicion[case.id] = float(value) if isinstance(value, int | float) else float("inf")
    if all(found is None for found in made.found.values()):
        first = cases[0].id
        raise InputError(f"{folder}: holds no trained model and no prediction of any case, such as {first}.mrk.json")
    return made


def _like(found: Landmarks, truth: Landmarks) -> Landmarks:
    """2D landmarks of a 3D Slicer file as 2D ones, also where none is defined."""
    if truth.ndim == 2 and found.ndim == 3 and not found.defined.any():
        return replace(found, points=found.points[:, :2], covariance=None)
    return flat(found) if truth.ndim == 2 else found


def write_predictions(folder: Path, model: Mapping[str, str], cases: Sequence[Case], made: Predictions) -> None:
    """Write what a ``model`` (facts for the files) found, as ``predict`` does."""
    for case in cases:
        found = made.found[case.id]
        if found is None:
            continue
        facts = {"case": case.id, **model, "image": str(case.image), "seconds": round(made.seconds[case.id], 4)}
        flags = made.flags.get(case.id, [])
        facts.update(align_facts(found), flagged=bool(flags), flags=flags, **trust_facts(found), **member_facts(found))
        write_json_landmarks(found, folder / f"{case.id}.json", facts)
        shown = replace(found, descriptions=described(found), meta={})
        write_landmarks(shown, folder / f"{case.id}.mrk.json")


def peak_memory_gb(pid: int | None = None) -> float | None:
    """Largest resident memory so far in GB, of this process or, on Linux, of ``pid``; None where the system does not
    say. Linux carries a parent's peak over into what ``getrusage`` says of its child, so its VmHWM is read instead."""
    with suppress(OSError):  # no such file elsewhere, and none of a process that has ended
        for line in Path(f"/proc/{pid or 'self'}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    if pid is not None:
        return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
