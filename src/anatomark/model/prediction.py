"""A prediction: the landmarks of one image, whether to look at them again, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import anatomark
from anatomark.cases.case import Case
from anatomark.cases.find import read_landmarks_of
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.io.jsonfile import write_json_landmarks
from anatomark.io.landmarks import write_landmarks

FORMATS = ("mrk.json", "fcsv", "csv")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of an image.

    ``landmarks``: world mm (3D: LPS; 2D: x right, y down), with ``score`` in 0..1, ``covariance`` mm^2 and ``radius90``
    mm where these are known; ``absent`` where a landmark is not in the image. ``flags``: why the case should be
    reviewed, nothing where nothing is unusual. ``suspicion``: the most unusual measure in robust standard deviations,
    infinite beyond measure; above ``suspicion_limit`` a case is flagged; None where the model remembers nothing of its
    training images. ``seconds`` without reading the image, ``align_seconds`` of them for the alignment, None where
    nothing is aligned. Of an average: ``members``, ``views``, and by landmark which of them were ``left_out``.
    ``source``: which image and which model, as the files say it. ``notes``: what is to be known of how the image was
    read. ``unproven``: why nothing that the model says should be believed unseen; empty where nothing speaks against
    it.
    """

    landmarks: Landmarks
    flags: tuple[str, ...] = ()
    suspicion: float | None = None
    suspicion_limit: float | None = None
    seconds: float | None = None
    align_seconds: float | None = None
    members: tuple[str, ...] = ()
    views: int | None = None
    left_out: Mapping[str, Sequence[Any]] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unproven: str = ""

    def to_json(self) -> dict[str, Any]:
        """What ``<stem>.json`` holds beside the landmarks."""
        out: dict[str, Any] = {"anatomark": anatomark.__version__, **self.source}
        if self.seconds is not None:
            out["seconds"] = round(self.seconds, 4)
        if self.align_seconds is not None:
            out["align_seconds"] = round(self.align_seconds, 4)
        out.update(flagged=bool(self.flags), flags=list(self.flags))
        if self.unproven:
            out["unproven"] = self.unproven
        for key in ("suspicion", "suspicion_limit"):
            value = getattr(self, key)
            if value is not None:
                out[key] = round(float(value), 3) if np.isfinite(value) else None
        if self.notes:
            out["notes"] = list(self.notes)
        if self.members:
            out["members"] = list(self.members)
        if self.views is not None:
            out["views"] = self.views
        if self.left_out is not None:
            out["left_out"] = {name: list(which) for name, which in self.left_out.items()}
        if "posterior_mass" in self.landmarks.meta:
            masses = zip(self.landmarks.names, self.landmarks.meta["posterior_mass"], strict=True)
            out["posterior_mass"] = dict(masses)
        return out

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], landmarks: Landmarks) -> Prediction:
        """The inverse of :meth:`to_json`, and of landmark files of other programs (which hold none of it)."""
        number = {k: float(v) for k in ("seconds", "align_seconds") if isinstance(v := facts.get(k), int | float)}
        for key in ("suspicion", "suspicion_limit"):
            if key in facts:  # null: beyond measure
                value = facts[key]
                number[key] = float(value) if isinstance(value, int | float) else float("inf")
        flags = facts.get("flags")
        return cls(
            landmarks,
            tuple(map(str, flags)) if isinstance(flags, list) else (),
            members=tuple(facts.get("members") or ()),
            views=facts.get("views"),
            left_out=facts.get("left_out"),
            notes=tuple(map(str, facts.get("notes") or ())),
            unproven=str(facts.get("unproven") or ""),
            source={k: facts[k] for k in ("case", "model", "model_name", "image", "image_key") if k in facts},
            **number,
        )


def read_prediction(case: Case, file: Path) -> Prediction:
    """A case's prediction in a file that ``predict`` or another program wrote. Raises InputError."""
    landmarks = read_landmarks_of(case, file)
    facts = landmarks.meta.get("json")
    return Prediction.from_json(facts if isinstance(facts, Mapping) else {}, landmarks)


def endings(ndim: int, format: str, pictures: bool) -> list[str]:
    """What a finished case consists of; the JSON comes last, so that its presence means finished."""
    return list(dict.fromkeys([format, *(["csv"] if ndim == 2 else []), *(["png"] if pictures else []), "json"]))


def write_prediction(
    prediction: Prediction, folder: Path, stem: str, which: Sequence[str], image: Image | None = None
) -> list[Path]:
    """Write the files ``<stem>.<ending>`` of :func:`endings` into a folder; a table in pixels and a picture need the
    ``image``. Raises InputError where the disk refuses."""
    landmarks, files = replace(prediction.landmarks, meta={}), []
    if "json" in which:  # one that is there says finished, of other files
        (folder / f"{stem}.json").unlink(missing_ok=True)
    for ending in which:
        path = folder / f"{stem}.{ending}"
        if ending == "json":
            write_json_landmarks(landmarks, path, prediction.to_json())
        elif ending == "png":
            from anatomark.pictures.overlay import overlay  # loads matplotlib

            assert image is not None
            overlay(image, landmarks, None, path, flags=prediction.flags, case=stem)
        elif ending == "csv":
            flat = image.grid if image is not None and landmarks.ndim == 2 else None
            write_landmarks(landmarks, path, case=stem, spacing=flat)
        else:
            write_landmarks(landmarks, path)
        files.append(path)
    return files
