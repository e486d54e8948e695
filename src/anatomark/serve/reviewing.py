"""What the page asks of a review: its cases, their images and points, what a person decides, and training."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Strict

from anatomark.errors import InputError, nearest
from anatomark.review import CaseReview
from anatomark.serve.desk import Desk
from anatomark.serve.jobs import Job, Jobs
from anatomark.serve.predicting import MARKUPS, Unknown
from anatomark.serve.volume import facts, nifti, packed

router = APIRouter(prefix="/v1", tags=["review"])
IfMatch = Annotated[str | None, Header(description="The ETag of the case as it was read.")]
CHANGED = {412: {"description": "Somebody else was faster; `current` is the case as it stands."},
           404: {"description": "No such case."},
           507: {"description": "It could not be written; try again."}}  # fmt: skip


class Placed(BaseModel):
    """One landmark as a person leaves it."""

    name: str
    state: str  # predicted, moved, confirmed, absent or missing
    position: list[Annotated[float, Strict()]] | None = None  # mm; 3D: LPS; 2D: x right, y down


class Change(BaseModel):
    """Points that a person decided on; others stay."""

    person: str = ""
    points: list[Placed]


class Who(BaseModel):
    """Who says so."""

    person: str = ""
    confirm_all: bool = True  # for done: points that are still predicted are right


class Training(BaseModel):
    """How long to train."""

    minutes: float = 5.0


def desk_of(request: Request) -> Desk:
    """The review that the service has open."""
    desk: Desk = request.app.state.desk
    return desk


def jobs_of(request: Request) -> Jobs:
    """The trainings of the review."""
    jobs: Jobs = request.app.state.jobs
    return jobs


@router.get("/review")
def review(request: Request) -> dict[str, Any]:
    """What is reviewed: dimension, the model, the landmarks with their definitions, whether it can be trained."""
    desk = desk_of(request)
    with desk.lock:
        now, setting = desk.review, desk.setting
        landmarks = [{"name": n, "definition": now.definitions.get(n, "")} for n in now.names]
        return {
            "dimension": now.ndim, "model": desk.model_name or None, "landmarks": landmarks,
            "can_train": jobs_of(request).can_train,
            "train_with": [path.name for path in setting.train_with], "out": str(setting.out), "person": setting.person,
        }  # fmt: skip


@router.get("/cases")
def cases(
    request: Request,
    order: Literal["suspicion", "name"] = "suspicion",
    state: Literal["open", "done", "skipped"] | None = None,
) -> dict[str, Any]:
    """The queue, the most suspicious case first, and what was done so far."""
    desk = desk_of(request)
    with desk.lock:
        return {"cases": desk.review.queue(order, state), "figures": desk.review.figures()}


@router.get("/cases/{id}", responses=CHANGED)  # type: ignore[arg-type]
def case(request: Request, id: str) -> dict[str, Any]:
    """A case's row of the queue, and facts of its image along the file's axes x, y[, z]: `size` (voxels), `spacing`
    (mm), `origin` (mm, of the first voxel's centre)."""
    desk = _with_case(request, id)
    with desk.lock:
        row = next(row for row in desk.review.queue() if row["id"] == id)
        ndim = desk.review.ndim
    try:
        return {**row, **facts(desk.bare[id].grid(ndim), desk.bare[id].remarks)}
    except InputError as error:
        return {**row, "reason": row["reason"] or str(error)}


@router.get("/cases/{id}/image.nii.gz", response_class=Response, responses=CHANGED)  # type: ignore[arg-type]
def image(request: Request, id: str) -> Response:
    """The case's image as NIfTI, one value a voxel; in 2D one slice: its rows run upwards, affine diag(spacing)."""
    desk = _with_case(request, id)
    with desk.lock:
        now = desk.review
    picture = now.image(id)
    try:
        data = packed(nifti(picture))
    except InputError as error:
        now.note_image(id, str(error))
        raise
    return Response(data, media_type="application/gzip", headers={"cache-control": "private, max-age=0"})


@router.get("/cases/{id}/landmarks", responses=CHANGED)  # type: ignore[arg-type]
def landmarks(request: Request, id: str) -> Response:
    """The case's points, with the `ETag` that a change must give; with `Accept: application/vnd.slicer.mrk+json` a
    markups document of 3D Slicer."""
    desk = _with_case(request, id)
    with desk.lock:
        now, etag = desk.review.case(id), {"etag": f'"{desk.review.case(id).etag}"'}
        if MARKUPS in request.headers.get("accept", ""):
            document = json.dumps(desk.review.markups(id), allow_nan=False)
            return Response(document, media_type=MARKUPS, headers=etag)
        return _answer(desk, now)


@router.put("/cases/{id}/landmarks", responses=CHANGED | {428: {"description": "If-Match is needed."}})  # type: ignore[arg-type]
def change(request: Request, id: str, body: Change, if_match: IfMatch = None) -> Response:
    """Save points that a person decided on; it is on disk when the answer comes."""
    desk = _with_case(request, id)
    if if_match is None:
        return JSONResponse({"error": "If-Match is needed: the ETag of the case as it was read"}, 428)
    points = [point.model_dump() for point in body.points]
    with desk.lock:
        return _answer(desk, desk.review.change(id, points, body.person, _etag(if_match)))


@router.post("/cases/{id}/done", responses=CHANGED)  # type: ignore[arg-type]
def done(request: Request, id: str, body: Who | None = None, if_match: IfMatch = None) -> Response:
    """The case is finished: its points are truth for training. Answers it, and in `next` the next open case."""
    desk, who = _with_case(request, id), body or Who()
    with desk.lock:
        return _answer(desk, desk.review.done(id, who.person, who.confirm_all, _etag(if_match)), True)


@router.post("/cases/{id}/skip", responses=CHANGED)  # type: ignore[arg-type]
def skip(request: Request, id: str, body: Who | None = None, if_match: IfMatch = None) -> Response:
    """The case is left out."""
    desk = _with_case(request, id)
    with desk.lock:
        return _answer(desk, desk.review.skip(id, (body or Who()).person, _etag(if_match)), True)


@router.post("/cases/{id}/reopen", responses=CHANGED)  # type: ignore[arg-type]
def reopen(request: Request, id: str, body: Who | None = None, if_match: IfMatch = None) -> Response:
    """The case is open again."""
    desk = _with_case(request, id)
    with desk.lock:
        return _answer(desk, desk.review.reopen(id, (body or Who()).person, _etag(if_match)), True)


@router.post("/train", status_code=202, responses={409: {"description": "Another training is under way."}})
def train(request: Request, body: Training | None = None) -> dict[str, str]:
    """Train the current model on the finished cases, then predict all cases anew by it and go on with these."""
    return {"id": jobs_of(request).train((body or Training()).minutes).id}


@router.get("/jobs")
def jobs(request: Request) -> dict[str, Any]:
    """All trainings since the service was started."""
    return {"jobs": [job.document() for job in jobs_of(request).all.values()]}


@router.get("/jobs/{id}")
def job(request: Request, id: str) -> dict[str, Any]:
    """A training: `state` (waiting, running, done, failed, stopped), `progress` 0..1, its last `lines`, `figures`
    (validation errors in mm, by step), and in the end the new `model`."""
    return _job(request, id).document()


@router.delete("/jobs/{id}")
def stop(request: Request, id: str) -> dict[str, Any]:
    """Stop a training; the model in use stays."""
    found = _job(request, id)
    found.stop()
    return found.document()


def _job(request: Request, id: str) -> Job:
    try:
        return jobs_of(request).all[id]
    except KeyError:
        raise Unknown(f"no job {id[:40]!r}") from None


def _with_case(request: Request, id: str) -> Desk:
    desk = desk_of(request)
    if id not in desk.ids:
        raise Unknown(f"no case is called {id[:60]!r}{nearest(id, sorted(desk.ids))}")
    return desk


def _etag(header: str | None) -> str | None:
    """The tag that ``If-Match`` names; None where it is not asked for, or any will do."""
    if header is None or header.strip() == "*":
        return None
    return header.strip().removeprefix("W/").strip('"')


def _answer(desk: Desk, review: CaseReview, with_next: bool = False) -> JSONResponse:
    document = desk.review.document(review.case)
    if with_next:
        document["next"] = next((id for id in desk.next_cases() if id != review.case), None)
    return JSONResponse(document, headers={"etag": f'"{review.etag}"'})
