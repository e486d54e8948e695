"""MONAI Label's protocol, as far as its extension for 3D Slicer needs it to show our points. It cannot save them."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response

import anatomark
from anatomark.serve.predicting import Unknown, predicted, workers_of
from anatomark.serve.reviewing import desk_of, image
from anatomark.serve.upload import ending_of

router = APIRouter(tags=["MONAI Label"])
MOST_SESSIONS, KEPT_S = 16, 3600.0
NO_POINTS = (
    "MONAI Label's extension sends no points, only boxes and segmentations; save points on the review page, or with "
    "anatomark's own module for 3D Slicer"
)


class Sessions:
    """Images that clients sent to be asked about: the newest ``MOST_SESSIONS``, each for ``KEPT_S`` seconds."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="anatomark-sessions-")
        self._files: OrderedDict[str, tuple[Path, float]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, source: BinaryIO, ending: str) -> str:
        """Keep an image; the name by which it is asked for."""
        name = secrets.token_hex(16)
        path = Path(self._folder.name) / f"{name}{ending}"
        with open(path, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        with self._lock:
            self._files[name] = path, time.monotonic()
            while len(self._files) > MOST_SESSIONS:
                self._files.popitem(last=False)[1][0].unlink(missing_ok=True)
        return name

    def path(self, name: str) -> Path:
        """Where an image lies. Raises Unknown."""
        with self._lock:
            for old in [n for n, (_, at) in self._files.items() if time.monotonic() - at > KEPT_S]:
                self._files.pop(old)[0].unlink(missing_ok=True)
            if name not in self._files:
                raise Unknown(f"no session {name[:40]!r}; send the image again")
            return self._files[name][0]

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
        with self._lock:
            self._files.pop(name, None)


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


@router.get("/info/")
def info(request: Request) -> dict[str, Any]:
    """The models, as MONAI Label describes detectors."""
    models = {
        name: {
            "type": "detection", "dimension": facts["dimension"], "description": f"{len(facts['landmarks'])} landmarks",
            "labels": {mark["name"]: i for i, mark in enumerate(facts["landmarks"], 1)}, "config": {},
        }
        for name, facts in workers_of(request).models.items()
    }  # fmt: skip
    labels = list(dict.fromkeys(label for model in models.values() for label in model["labels"]))
    strategies = {"suspicion": {"description": "The most suspicious case first"}} if _has_cases(request) else {}
    return {
        "name": "anatomark", "description": "Anatomical landmarks", "version": anatomark.__version__, "labels": labels,
        "models": models, "trainers": {}, "strategies": strategies, "scoring": {}, "train_stats": {},
        "datastore": _counts(request),
    }  # fmt: skip


@router.post("/activelearning/{strategy}")
def next_image(request: Request, strategy: str) -> dict[str, Any]:
    """The next open case of the review; nothing where there is none."""
    if not _has_cases(request):
        return {}
    desk = desk_of(request)
    with desk.lock:
        ids = desk.next_cases()
    return {"id": ids[0], "name": f"{ids[0]}.nii.gz", "weight": 1} if ids else {}


@router.get("/datastore/")
def datastore(request: Request) -> dict[str, Any]:
    """How many cases there are, and how many are done."""
    return _counts(request)


@router.get("/datastore/image", response_class=Response)
def case_image(request: Request, image_id: str | None = None) -> Response:
    """A case's image as NIfTI (`?image=ID`)."""
    id = image_id or request.query_params.get("image", "")
    if not _has_cases(request):
        raise Unknown("the service has no cases")
    return image(request, id)


@router.put("/session/")
def new_session(request: Request, files: Annotated[list[UploadFile], File()]) -> dict[str, Any]:
    """Keep an image for `infer`."""
    name = _sessions(request).add(files[0].file, ending_of(files[0]))
    return {"session_id": name, "session_info": {"expiry": KEPT_S}}


@router.get("/session/{name}")
def session(request: Request, name: str) -> dict[str, Any]:
    """Whether an image is kept."""
    _sessions(request).path(name)
    return {"session_id": name}


@router.delete("/session/{name}")
def end_session(request: Request, name: str) -> dict[str, Any]:
    """Forget an image."""
    _sessions(request).remove(name)
    return {"session_id": name}


@router.post("/infer/{model}", response_class=Response)
async def infer(
    request: Request,
    model: str,
    session_id: str | None = None,
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
) -> Response:
    """The landmarks of a session's image, of a file that is sent along, or of a case (`?image=ID`): as
    multipart/form-data, the part `params`, and a markups file of 3D Slicer."""
    image_id = request.query_params.get("image", "")
    if session_id:
        source: Any = _sessions(request).path(session_id)
    elif file is not None:
        source = [file]
    elif _has_cases(request) and image_id in desk_of(request).ids:
        source = next(case for case in desk_of(request).cases if case.id == image_id)
    else:
        return JSONResponse({"error": "no image: name a session or a case, or send a file"}, 422)
    document = await predicted(request, model, source, None, True)
    return _multipart({"params": json.dumps({"label_names": {}, "model": model})}, f"{model}.mrk.json", document)


@router.put("/datastore/label")
async def submit(request: Request) -> Response:
    """MONAI Label's "Submit Label": refused, for what it sends holds no points."""
    async for _ in request.stream():
        pass
    return JSONResponse({"error": NO_POINTS, "detail": NO_POINTS}, 422)


def _has_cases(request: Request) -> bool:
    return getattr(request.app.state, "desk", None) is not None


def _counts(request: Request) -> dict[str, int]:
    if not _has_cases(request):
        return {"total": 0, "completed": 0}
    desk = desk_of(request)
    with desk.lock:
        return {"total": len(desk.ids), "completed": int(desk.review.figures()["done"])}


def _multipart(fields: dict[str, str], name: str, content: str) -> Response:
    """A form with one file."""
    name = "".join(c if c.isalnum() or c in "-_.+" else "_" for c in name)
    boundary = secrets.token_hex(16)
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: application/json'
    parts.append(f"--{boundary}\r\n{head}\r\n\r\n{content}\r\n--{boundary}--\r\n")
    return Response("".join(parts), media_type=f"multipart/form-data; boundary={boundary}")
