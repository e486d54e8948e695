"""A trained model as it is used: what the network locates, then presence, radii and what is suspicious, once."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import torch

from anatomark.cases.case import of_dimension
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.images import check_image, read_image
from anatomark.methods.kit.precision import set_precision
from anatomark.model.confidence.presence import with_absent
from anatomark.model.confidence.radius import radii
from anatomark.model.device import find_device
from anatomark.model.prediction import Prediction
from anatomark.model.run_folder import Run

LOW_SCORE = 0.5
Spacing = tuple[float, ...] | float | None


class Model:
    """Finds landmarks in images. ``names``: the landmarks in order; ``ndim`` 2 or 3; ``hash`` identifies everything
    that its predictions depend on; ``cost``: how many predictions of one model a prediction takes; ``learned`` and
    ``chosen``: digests of the images that it learned from, and by which its weights were chosen (``sizes.py``)."""

    cost = 1

    def __init__(self, run: Run, device: str | None = None):
        self.run, self.hash = run, run.hash
        self.name = run.folder.resolve().name
        self.names, self.ndim, self.modality = tuple(run.plan.names), run.plan.ndim, run.plan.method.modality
        self.intensity = run.plan.method.intensity
        self.composed = run.build().to(find_device(device))
        self.calibration = run.calibration
        images = run.plan.images
        self.learned = frozenset() if images is None else frozenset(images.learned)
        self.chosen = frozenset() if images is None else frozenset(images.chosen)

    @property
    def licence(self) -> str:
        """What the weights may be used for; empty where nothing is said."""
        return self.run.licence

    def predict(self, image: Image | str | os.PathLike[str], spacing: Spacing = None) -> Prediction:
        """Landmarks of an image, or of an image file, with all that is known of how far to trust them.

        ``spacing`` mm along x, y[, z], for files that have none. Raises InputError for an unreadable or unfit image.
        """
        image = fitting(image, spacing, self.ndim, self.name)
        set_precision(self.run.config.precision)
        with torch.inference_mode():
            landmarks, alignment = self.composed.find(image)
        landmarks = with_absent(landmarks, image.grid, self.calibration)
        if landmarks.radius90 is None:
            landmarks = replace(landmarks, radius90=radii(landmarks, self.calibration))
        if not any(landmarks.descriptions):
            landmarks = replace(landmarks, descriptions=tuple(self.run.plan.method.descriptions))
        unproven = str(self.calibration.get("unproven") or "")
        seconds = None if alignment is None else alignment.seconds
        prediction = Prediction(landmarks, unproven=unproven, align_seconds=seconds)
        doubts = (unproven,) if unproven else ()  # every answer of such a model must be looked at
        if self.run.review is None:
            return replace(prediction, flags=(*doubts, *plain_flags(landmarks, image)))
        judged = self.run.review.judge(image, landmarks)
        flags = (*doubts, *judged.reasons)
        return replace(prediction, flags=flags, suspicion=judged.suspicion, suspicion_limit=judged.limit)


def fitting(image: Image | str | os.PathLike[str], spacing: Spacing, ndim: int, model: str) -> Image:
    """The image, read where it is a file, as a model of dimension ``ndim`` takes it. Raises InputError."""
    if not isinstance(image, Image):
        image = read_image(image, spacing)
    image, where = of_dimension(image, ndim), str(image.meta.get("path") or "the image")
    if image.ndim != ndim:
        raise InputError(f"{where}: is {image.ndim}D, but the model {model} is for {ndim}D images")
    check_image(image, where)
    return image


def plain_flags(landmarks: Landmarks, image: Image) -> list[str]:
    """What is suspicious about a prediction of a run that remembers nothing of its training images, one line each."""
    defined, absent = landmarks.defined, landmarks.absent
    outside = defined.copy()
    outside[defined] = ~image.grid.contains(landmarks.points[defined])
    low = np.zeros_like(defined) if landmarks.score is None else defined & (landmarks.score < LOW_SCORE)
    causes = {"outside the image": outside, "low score": low, "absent": absent, "not found": ~(defined | absent)}
    names = np.array(landmarks.names)
    return [f"{what}: {', '.join(names[which])}" for what, which in causes.items() if which.any()]
