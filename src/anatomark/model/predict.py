"""Prediction: from images on disk to landmark files."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anatomark
from anatomark.cases.manifest import read_manifest
from anatomark.cases.store import fingerprint_of
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, nearest
from anatomark.io.atomic import read_json
from anatomark.io.images import find_images, read_image
from anatomark.io.jsonfile import write_json_landmarks
from anatomark.io.landmarks import write_landmarks
from anatomark.model.ensemble import AnyModel, load_any
from anatomark.model.model import image_stem
from anatomark.progress import Reporter

FORMATS = ("mrk.json", "fcsv", "csv")
Spacing = Sequence[float] | float | None


@dataclass(frozen=True)
class Job:
    """One image to predict: ``stem`` names its files; ``key`` changes with the image."""

    stem: str
    path: Path
    key: str
    read: Callable[[], Image]


@dataclass(frozen=True)
class Outcome:
    """What became of one image: ``state`` is ``written``, ``skipped`` (finished before) or ``failed`` (``reason``)."""

    stem: str
    image: Path
    state: str
    seconds: float = 0.0  # alignment included
    align_seconds: float | None = None  # None where nothing is aligned
    files: tuple[Path, ...] = ()
    reason: str = ""
    flags: tuple[str, ...] = ()


def load(path: str | os.PathLike[str], device: str | None = None, threads: int | None = None, tta: int = 1) -> AnyModel:
    """A trained model from a run folder or by its zoo name, or several with the same landmarks as one: ``A+B+C``, or a
    folder of run folders such as ``RUN/folds``.

    ``device``: ``cpu`` (default), ``cuda``, ``cuda:0`` or ``mps``; ``threads``: of torch on the CPU; ``tta``: views of
    each image whose answers are averaged. Raises InputError where a folder is missing, incomplete or damaged, and where
    several models find different landmarks.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return load_any(path, device, tta)


def predict_paths(
    model: AnyModel,
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    spacing: Spacing = None,
    pictures: bool = False,
    format: str = "mrk.json",
    overwrite: bool = False,
    report: Reporter | None = None,
) -> list[Outcome]:
    """Predict images, folders of images, or the cases of manifests (``.csv``), and write the files into ``out``.

    Per image: ``<stem>.<format>``, ``<stem>.json``, in 2D ``<stem>.csv``, with ``pictures`` ``<stem>.png``. Finished
    ones of the same model and image are skipped. One that cannot be read or predicted is reported, the others go on.
    Raises InputError before any work: two images with one stem, no image, results of another model in ``out``
    (without ``overwrite``).
    """
    out, report = Path(out), report or Reporter(quiet=True)
    if format not in FORMATS:
        raise InputError(f"--format {format!r} is unknown{nearest(format, FORMATS)}; it is {', '.join(FORMATS)}")
    jobs = find_jobs(paths, spacing)
    done = _finished(jobs, out, model, _endings(model.ndim, format, pictures), overwrite)
    _writable(out)
    outcomes = []
    with report.bar("predict", len(jobs)) as bar:
        for i, job in enumerate(jobs):
            if job.stem in done:
                outcome = Outcome(job.stem, job.path, "skipped")
            else:
                outcome = _predicted(model, job, out, format, pictures)
            if outcome.state == "failed":
                report.say(f"failed: {outcome.reason}")
            outcomes.append(outcome)
            bar.update(i + 1, job.stem)
    return outcomes


def find_jobs(paths: Sequence[str | os.PathLike[str]], spacing: Spacing = None) -> list[Job]:
    """The images that ``paths`` name, manifests among them. Raises InputError where there is none, or two share a
    stem."""
    jobs: list[Job] = []
    for path in map(Path, paths):
        if path.suffix.lower() == ".csv":
            cases = read_manifest(path, need_landmarks=False).cases
            for c in cases:
                own = c.spacing if c.spacing is not None else spacing
                jobs.append(Job(c.id, c.image, _key(c.image, own), _reader(c.image, own)))
        else:
            for file in find_images([path]):
                jobs.append(Job(image_stem(file), file, _key(file, spacing), _reader(file, spacing)))
    if not jobs:
        raise InputError("no image to predict")
    stem, count = Counter(j.stem for j in jobs).most_common(1)[0]
    if count > 1:
        first, second = [str(j.path) for j in jobs if j.stem == stem][:2]
        raise InputError(f"{first} and {second} would both be written as {stem!r}; rename one or predict them apart")
    return jobs


def _reader(path: Path, spacing: Spacing) -> Callable[[], Image]:
    return lambda: read_image(path, spacing)


def _key(path: Path, spacing: Spacing) -> str:
    return fingerprint_of(path, spacing) if path.exists() else "missing"


def _endings(ndim: int, format: str, pictures: bool) -> list[str]:
    """What a finished case consists of; the JSON comes last, so that its presence means finished."""
    return list(dict.fromkeys([format, *(["csv"] if ndim == 2 else []), *(["png"] if pictures else []), "json"]))


def _finished(jobs: Sequence[Job], out: Path, model: AnyModel, endings: Sequence[str], overwrite: bool) -> set[str]:
    """Stems that need no work. Raises InputError where a result of something else would be overwritten."""
    done, strange = set(), []
    for job in jobs:
        old = out / f"{job.stem}.json"
        if overwrite or not any((out / f"{job.stem}.{e}").exists() for e in endings):
            continue
        try:
            facts = read_json(old) if old.exists() else None
        except InputError:
            facts = None
        if isinstance(facts, dict) and (facts.get("model"), facts.get("image_key")) == (model.hash, job.key):
            if all((out / f"{job.stem}.{e}").exists() for e in endings):
                done.add(job.stem)
        else:
            strange.append(next(out / f"{job.stem}.{e}" for e in endings if (out / f"{job.stem}.{e}").exists()))
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise InputError(
            f"{strange[0]}{more}: is a result of another model or image; add --overwrite or choose another --out"
        )
    return done


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".tmp-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written into: {error.strerror or error}") from error


def _predicted(model: AnyModel, job: Job, out: Path, format: str, pictures: bool) -> Outcome:
    try:
        image = model.flattened(job.read())
        start = time.perf_counter()
        found = model.predict(image)
        seconds = time.perf_counter() - start
        files = _write(model, job, found, image, seconds, out, _endings(model.ndim, format, pictures))
    except InputError as error:
        return Outcome(job.stem, job.path, "failed", reason=str(error))
    align, flags = found.meta.get("align_seconds"), tuple(found.meta["flags"])
    return Outcome(job.stem, job.path, "written", seconds, align, tuple(files), flags=flags)


def _write(
    model: AnyModel, job: Job, found: Landmarks, image: Image, seconds: float, out: Path, endings: Sequence[str]
) -> list[Path]:
    facts: dict[str, Any] = {
        "anatomark": anatomark.__version__,
        "model": model.hash,
        "model_name": model.name,
        "image": str(job.path.resolve()),
        "image_key": job.key,
        "seconds": round(seconds, 4),
        **align_facts(found),
        "flagged": bool(found.meta["flags"]),
        "flags": list(found.meta["flags"]),
        **trust_facts(found),
        **member_facts(found),
    }
    if "posterior_mass" in found.meta:
        facts["posterior_mass"] = dict(zip(found.names, found.meta["posterior_mass"], strict=True))
    files = []
    for ending in endings:
        path = out / f"{job.stem}.{ending}"
        if ending == "json":
            write_json_landmarks(found, path, facts)
        elif ending == "png":
            from anatomark.pictures.overlay import overlay  # loads matplotlib

            overlay(image, found, None, path)
        elif ending == "csv":
            flat = image.grid if model.ndim == 2 else None
            write_landmarks(replace(found, meta={}), path, case=job.stem, spacing=flat)
        else:
            write_landmarks(replace(found, descriptions=described(found), meta={}), path)
        files.append(path)
    return files


def align_facts(found: Landmarks) -> dict[str, float]:
    """``align_seconds``, the part of ``seconds`` that the alignment took; nothing where nothing was aligned."""
    return {"align_seconds": round(found.meta["align_seconds"], 4)} if "align_seconds" in found.meta else {}


def trust_facts(found: Landmarks) -> dict[str, float | None]:
    """``suspicion`` (null: beyond measure) and ``suspicion_limit``, above which a case is flagged; nothing where the
    run remembers nothing of its training images."""
    facts = {k: found.meta[k] for k in ("suspicion", "suspicion_limit") if k in found.meta}
    return {k: round(float(v), 3) if np.isfinite(v) else None for k, v in facts.items()}


def member_facts(found: Landmarks) -> dict[str, Any]:
    """What an average was made of: ``members``, ``views``, and by landmark which were ``left_out``; nothing of one."""
    return {k: found.meta[k] for k in ("members", "views", "left_out") if k in found.meta}


def described(landmarks: Landmarks) -> tuple[str, ...]:
    """Each landmark's description followed by its score and radius where known: ``AC p=0.93 r90=1.2mm``."""
    out = []
    for k, text in enumerate(landmarks.descriptions):
        parts = [text] if text else []
        if landmarks.score is not None and np.isfinite(landmarks.score[k]):
            parts.append(f"p={landmarks.score[k]:.2f}")
        if landmarks.radius90 is not None and np.isfinite(landmarks.radius90[k]):
            parts.append(f"r90={landmarks.radius90[k]:.1f}mm")
        out.append(" ".join(parts))
    return tuple(out)
