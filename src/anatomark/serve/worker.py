"""The process that predicts for the service: on one thread of torch, one request after the other."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, is_users, reason_of
from anatomark.io.atomic import read_json
from anatomark.io.files import FREE, RATIO
from anatomark.io.headers import in_one_file
from anatomark.io.images import image_grid, read_image
from anatomark.io.jsonfile import landmarks_to_dict
from anatomark.io.reader_process import bytes_of
from anatomark.io.slicer import write_mrk
from anatomark.model.predict import AnyModel, load
from anatomark.model.run_folder import Run

READY = b"ready\n"


class TooLarge(InputError):
    """An image of more voxels than the service takes."""


class Worker:
    """Answers requests, plain JSON each; a model stays loaded from its first request on. ``device`` as for ``load``."""

    def __init__(self, device: str | None = None):
        self.device = device
        self.models: dict[str, AnyModel] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What is asked for; of what goes wrong the ``error`` (with a ``status`` of HTTP), or our own ``fault``."""
        try:
            return {"describe": self.describe, "predict": self.predict}[request["what"]](request)
        except TooLarge as error:
            return {"error": str(error), "status": 413}
        except Exception as error:
            return {"error" if is_users(error) else "fault": reason_of(error), "status": 400}

    def model(self, path: str) -> AnyModel:
        """The model of a run folder or zoo name. Raises InputError."""
        if path not in self.models:
            self.models[path] = load(path, self.device)
        return self.models[path]

    def describe(self, request: dict[str, Any]) -> dict[str, Any]:
        """Facts of the model at the path ``model``."""
        model = self.model(request["model"])
        texts = descriptions(model)
        landmarks = [{"name": n, "definition": t} for n, t in zip(model.names, texts, strict=True)]
        facts = {"name": model.name, "hash": model.hash, "dimension": model.ndim, "licence": model.licence}
        return {"model": {**facts, "landmarks": landmarks}}

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        """The landmarks of the image file ``image`` (or DICOM folder) as the text of the JSON that ``predict`` writes,
        or with ``markups`` of a document of 3D Slicer. ``spacing``: mm or None; ``form``: of a NIfTI file. Raises
        InputError, also for an image of more than ``most_voxels``, or one that is not our ``own`` and names files."""
        model, path = self.model(request["model"]), Path(request["image"])
        with nullcontext() if request["own"] else in_one_file():
            how = {"spacing": request["spacing"], "form": request["form"], "apart": True}
            if max(FREE, RATIO * bytes_of(path)) > request["most_voxels"]:  # a smaller file cannot hold so many
                voxels = int(np.prod(image_grid(path, **how).shape, dtype=np.float64))
                if voxels > request["most_voxels"]:
                    raise TooLarge(f"{path}: has {voxels:,} voxels; at most {request['most_voxels']:,} are taken")
            image = read_image(path, **how)
        start = time.perf_counter()
        prediction = model.predict(image)
        seconds = time.perf_counter() - start
        source = {"model": model.hash, "model_name": model.name}
        prediction = replace(prediction, seconds=seconds, notes=image.notes, source=source)
        landmarks = replace(prediction.landmarks, meta={})
        if request["markups"]:
            return {"text": json.dumps(markups(landmarks), allow_nan=False)}
        document = {"schema": 1, **prediction.to_json(), **landmarks_to_dict(landmarks)}
        return {"text": json.dumps(document, allow_nan=False)}


def markups(landmarks: Landmarks) -> dict[str, Any]:
    """The document of 3D Slicer that ``predict`` writes of ``landmarks`` (world mm)."""
    with tempfile.TemporaryDirectory(prefix="anatomark-") as folder:
        write_mrk(landmarks, path := Path(folder) / "points.mrk.json")
        document: dict[str, Any] = read_json(path)
        return document


def descriptions(model: AnyModel) -> tuple[str, ...]:
    """The definition of each landmark, as the model's (of several: the first one's) training data gave it."""
    while not isinstance(run := getattr(model, "run", None), Run):
        inner = getattr(model, "members", None)
        model = inner[0] if inner else model.model  # type: ignore[union-attr]
    return tuple(run.plan.method.descriptions) or ("",) * len(model.names)


def serve(device: str | None) -> None:
    """Answer lines of JSON on standard input until it ends. What libraries print goes nowhere."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides
    torch.set_num_threads(1)
    worker = Worker(device)
    answers.write(READY)
    answers.flush()
    for line in requests:
        answers.write(json.dumps(worker.answer(json.loads(line))).encode() + b"\n")
        answers.flush()
