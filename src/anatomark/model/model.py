"""A trained model as it is used: the method, then the radii that calibration gives, then what is suspicious."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.images import check_image, read_image, squeeze_to_2d
from anatomark.methods.base import Method
from anatomark.methods.kit.precision import use_bf16
from anatomark.model.confidence.presence import with_absent
from anatomark.model.confidence.radius import radii
from anatomark.model.run_folder import Run

LOW_SCORE = 0.5


class Model:
    """Finds landmarks in images. ``names``: the landmarks in order; ``ndim`` 2 or 3; ``hash`` identifies everything
    that its predictions depend on; ``cost``: how many predictions of one model a prediction takes."""

    cost = 1

    def __init__(self, run: Run, device: str | None = None):
        self.run, self.hash = run, run.hash
        self.name = run.folder.resolve().name
        self.names, self.ndim, self.modality = tuple(run.plan.names), run.plan.ndim, run.plan.modality
        self.method: Method = run.method().to(_device(device))
        self.calibration = run.calibration

    @property
    def licence(self) -> str:
        """What the weights may be used for; empty where nothing is said."""
        return self.run.licence

    def predict(
        self, image: Image | str | os.PathLike[str], spacing: tuple[float, ...] | float | None = None
    ) -> Landmarks:
        """Landmarks of an image, or of an image file, in world mm (3D: LPS; 2D: x right, y down).

        ``spacing`` mm along x, y[, z], for files that have none. ``score`` in 0..1, ``covariance`` mm^2 and
        ``radius90`` mm where known; ``status`` absent where a landmark is not in the image (``presence.py``);
        ``meta["flags"]`` lists why the case should be reviewed, nothing where nothing is unusual (``trust.py``).
        Raises InputError for an unreadable or unfit image.
        """
        if not isinstance(image, Image):
            image = read_image(image, spacing)
        image = self.flattened(image)
        where = str(image.meta.get("path") or "the image")
        if image.ndim != self.ndim:
            raise InputError(f"{where}: is {image.ndim}D, but the model {self.name} is for {self.ndim}D images")
        check_image(image, where)
        use_bf16({"auto": None, "fp32": False, "bf16": True}[self.run.config.precision])
        with torch.inference_mode():
            found = self.method.locate(image)
        found = with_absent(found, image.grid, self.calibration)
        if found.radius90 is None:
            found = replace(found, radius90=radii(found, self.calibration))
        described = found.descriptions if any(found.descriptions) else tuple(self.run.plan.descriptions)
        found = replace(found, descriptions=described)
        if self.run.trust is None:
            return replace(found, meta={**found.meta, "flags": flags(found, image)})
        said = self.run.trust.judge(image, found)
        own = {"flags": list(said.reasons), "suspicion": said.suspicion, "suspicion_limit": said.limit}
        return replace(found, meta={**found.meta, **own})

    def flattened(self, image: Image) -> Image:
        """A 3D image whose slowest axis has length 1 as a 2D image, where the model is for 2D; others as they are."""
        single = image.ndim == 3 and self.ndim == 2 and image.grid.shape[0] == 1
        return squeeze_to_2d(image) if single else image


def flags(landmarks: Landmarks, image: Image) -> list[str]:
    """What is suspicious about a prediction of a run that remembers nothing of its training images, one line each."""
    out = []
    known = landmarks.defined
    outside = known.copy()
    outside[known] = ~image.grid.contains(landmarks.points[known])
    if outside.any():
        out.append(f"outside the image: {_named(landmarks, outside)}")
    if landmarks.score is not None:
        low = known & (landmarks.score < LOW_SCORE)
        if low.any():
            out.append(f"low score: {_named(landmarks, low)}")
    absent = np.array([s is Status.ABSENT for s in landmarks.status], dtype=bool)
    if absent.any():
        out.append(f"absent: {_named(landmarks, absent)}")
    if not (known | absent).all():
        out.append(f"not found: {_named(landmarks, ~(known | absent))}")
    return out


def _named(landmarks: Landmarks, which: Any) -> str:
    return ", ".join(n for n, w in zip(landmarks.names, which, strict=True) if w)


def _device(device: str | None) -> torch.device:
    kind = (device or "auto").partition(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise InputError(f"device {device!r} is unknown; use auto, cpu, cuda, cuda:0 or mps")
    if kind == "auto":
        return torch.device("cpu")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, True)
    if not there:
        raise InputError(f"device {device!r}: this machine or this build of torch has no {kind}; use --device cpu")
    try:
        return torch.device(str(device))
    except RuntimeError:
        raise InputError(f"device {device!r} is unknown; use auto, cpu, cuda, cuda:0 or mps") from None


def image_stem(path: str | os.PathLike[str]) -> str:
    """A file's name without its ending (``.nii.gz`` is one); a DICOM folder's name."""
    path = Path(path)
    return path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
