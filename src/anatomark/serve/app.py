"""The application: its rooms joined, errors as one line of JSON, the page and the description of the interface."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import anatomark
from anatomark.errors import InputError, reason_of
from anatomark.review import Conflict
from anatomark.serve import monailabel, predicting, reviewing
from anatomark.serve.description import POLICY as DOCS_POLICY
from anatomark.serve.description import described
from anatomark.serve.desk import Desk
from anatomark.serve.guard import Guard
from anatomark.serve.jobs import Busy, Jobs
from anatomark.serve.pool import Failed, Full, Workers
from anatomark.serve.predicting import Unknown

PAGE = Path(__file__).parent / "page"
RETRY_S = 5
log = logging.getLogger("anatomark.serve")


def create_app(
    workers: Workers,
    desk: Desk | None = None,
    jobs: Jobs | None = None,
    *,
    names: set[str],
    by_address: bool = False,
    token: str | None = None,
    most_bytes: int = 512 << 20,
    most_voxels: int = 512 << 20,
    with_monailabel: bool = False,
) -> Guard:
    """The application with the models of ``workers``, the review of ``desk`` and its trainings.

    ``names``, ``by_address``, ``token``, ``most_bytes`` as in :class:`Guard`; an image has at most ``most_voxels``;
    ``with_monailabel``: MONAI Label's protocol too.
    """
    app = FastAPI(
        title="anatomark", version=anatomark.__version__, docs_url=None, redoc_url=None,
        description="Anatomical landmarks in 2D and 3D medical images. For research, not a medical device.",
    )  # fmt: skip
    app.state.workers, app.state.most_voxels = workers, most_voxels
    app.state.desk, app.state.jobs = desk, jobs
    app.include_router(predicting.router)
    if desk is not None:
        app.include_router(reviewing.router)
    if with_monailabel:
        app.state.sessions = monailabel.Sessions()
        app.include_router(monailabel.router)
    _answer_errors(app)
    _serve_page(app)
    return Guard(app, names=names, by_address=by_address, token=token, most_bytes=most_bytes)


def _serve_page(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(described(app.openapi()), headers={"content-security-policy": DOCS_POLICY})

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs" if app.state.desk is None else "/page/")

    if PAGE.is_dir():  # it comes with the package
        app.mount("/page", StaticFiles(directory=PAGE, html=True), name="page")


def _answer_errors(app: FastAPI) -> None:
    """Every error is ``{"error": one line}``."""

    @app.exception_handler(InputError)
    async def input_error(_: Request, error: InputError) -> Response:
        refused = isinstance(error.__cause__, OSError)  # our disk, when it was to be written: worth another try
        return _error(507 if refused else 400, str(error))

    @app.exception_handler(Unknown)
    async def unknown(_: Request, error: Unknown) -> Response:
        return _error(404, str(error))

    @app.exception_handler(Failed)
    async def failed(_: Request, error: Failed) -> Response:
        return _error(error.status, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> Response:
        return _error(409, str(error))

    @app.exception_handler(Conflict)
    async def conflict(request: Request, error: Conflict) -> Response:
        review = request.app.state.desk.review
        current = {"error": str(error), "current": review.document(error.current.case)}
        return JSONResponse(current, 412, {"etag": f'"{error.current.etag}"'})

    @app.exception_handler(Full)
    async def full(_: Request, error: Full) -> Response:
        return _error(503, str(error), {"retry-after": str(RETRY_S)})

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _error(400, "; ".join(_problem(e) for e in error.errors()[:5]))

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> Response:
        log.error("%s", reason_of(error), exc_info=error)
        return _error(500, reason_of(error))


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(reason.split())}, status, headers)


def _problem(error: Any) -> str:
    """What is wrong with a part of a request: ``body points 0 name: Field required``."""
    where: Sequence[Any] = error.get("loc", ())
    return f"{' '.join(map(str, where))}: {error.get('msg', 'is wrong')}"
