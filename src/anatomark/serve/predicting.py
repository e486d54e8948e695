"""What programs ask of models: which there are, and the landmarks of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import Response

import anatomark
from anatomark.cases.case import Case
from anatomark.errors import nearest
from anatomark.serve.pool import Failed, Workers
from anatomark.serve.upload import given_spacing, shown_name, stored

MARKUPS = "application/vnd.slicer.mrk+json"
OUR_FAULTS = {400: {"description": "Not an image that can be read, or not one for this model."},
              404: {"description": "No such model."},
              413: {"description": "More bytes or voxels than the service takes."},
              500: {"description": "The process that predicted was ended."},
              503: {"description": "Too many requests wait; `Retry-After` says when to come again."},
              504: {"description": "The prediction took too long and was ended."}}  # fmt: skip
router = APIRouter(prefix="/v1", tags=["models"])


class Unknown(Exception):
    """What a request names does not exist."""


def workers_of(request: Request) -> Workers:
    """The worker processes of the application."""
    workers: Workers = request.app.state.workers
    return workers


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Whether the service is there, which models it has, how many predictions are under way or wait (`queue`), and how
    many processes predict."""
    workers = workers_of(request)
    names = list(workers.models)
    return {
        "status": "ok", "version": anatomark.__version__, "models": names, "queue": workers.pending,
        "workers": workers.count if names else 0,
    }  # fmt: skip


@router.get("/models")
async def models(request: Request) -> list[dict[str, Any]]:
    """The models: name, hash of all that their predictions depend on, dimension, licence, landmarks with their
    definitions."""
    return [{k: v for k, v in facts.items() if k != "path"} for facts in workers_of(request).models.values()]


@router.post("/models/{model}/predict", responses=OUR_FAULTS)  # type: ignore[arg-type]
async def predict(
    request: Request,
    model: str,
    image: Annotated[list[UploadFile], File(description="An image file, or the files of one DICOM series.")],
    spacing: Annotated[
        str | None, Form(description="mm per pixel where the file does not say: 0.1 or 0.1;0.1 (x;y)")
    ] = None,
) -> Response:
    """Find the landmarks in an image: a file of any format that `anatomark predict` reads, or a DICOM series.

    Answers the JSON that `anatomark predict` writes: for each landmark `position` (mm; frame `LPS`, in 2D `image`: x
    right, y down), `status`, `score`, `radius90`; for the case `flagged`, `flags`, `suspicion`. With
    `Accept: application/vnd.slicer.mrk+json` a markups document of 3D Slicer."""
    as_markups = MARKUPS in request.headers.get("accept", "")
    text = await predicted(request, model, image, spacing, as_markups)
    return Response(text, media_type=MARKUPS if as_markups else "application/json")


async def predicted(
    request: Request, model: str, image: Sequence[UploadFile] | Path | Case, spacing: str | None, as_markups: bool
) -> str:
    """The landmarks of an image that was sent, that we keep, or of a case, as the text of a JSON document. Raises
    Unknown, Full, Failed and InputError."""
    workers = workers_of(request)
    facts = workers.models.get(model)
    if facts is None:
        raise Unknown(f"no model {model[:80]!r}{nearest(model, list(workers.models))}")
    workers.check_room()
    asked = {
        "what": "predict", "model": facts["path"], "markups": as_markups, "spacing": given_spacing(spacing),
        "form": None, "most_voxels": request.app.state.most_voxels, "own": False,
    }  # fmt: skip
    if isinstance(image, Case):
        asked |= {"image": str(image.path), "spacing": image.spacing, "form": image.form, "own": True}
        return await _text(workers, asked, f"case {image.id!r}")
    if isinstance(image, Path):
        return await _text(workers, asked | {"image": str(image)}, "the image")
    async with contextmanager_in_threadpool(stored(image)) as path:
        return await _text(workers, asked | {"image": str(path)}, shown_name(image))


async def _text(workers: Workers, asked: dict[str, Any], name: str) -> str:
    """The answer of a worker; of the file it knows the name that the client gave it alone."""
    try:
        answer = await workers.ask(asked)
    except Failed as error:
        raise Failed(str(error).replace(asked["image"], name), error.status) from None
    text: str = answer["text"]
    return text
