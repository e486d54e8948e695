"""From a command to a running service: checks, the socket, the processes; and what is predicted before a review."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import uvicorn

from anatomark.benchmark.work import terminable
from anatomark.cases.find import find_images_as_cases, landmark_files
from anatomark.errors import InputError
from anatomark.io.atomic import read_json
from anatomark.io.claim import LOCK
from anatomark.io.images import find_images
from anatomark.model.predict import load, predict
from anatomark.progress import Reporter
from anatomark.review.annotated import write_annotations
from anatomark.review.files import check_name
from anatomark.review.record import ANNOTATIONS
from anatomark.serve.app import create_app
from anatomark.serve.desk import PREDICTIONS, Desk, Setting
from anatomark.serve.guard import is_loopback, own_names
from anatomark.serve.jobs import Jobs
from anatomark.serve.pool import Workers

WILD = ("", "0.0.0.0", "::")
SHORTEST_TOKEN = 8


@dataclass(frozen=True)
class Service:
    """How the service is offered: address, ``token`` (needed by every request; none on loopback addresses alone),
    further ``names`` by which it may be called, ``workers`` (processes that predict), at most ``queue`` requests under
    way, each at most ``timeout`` s; bodies of at most ``most_mb``; ``monailabel``: MONAI Label's protocol too."""

    host: str = "127.0.0.1"
    port: int = 8777
    token: str | None = None
    names: Sequence[str] = ()
    workers: int = 1
    queue: int = 32
    timeout: float = 600.0
    most_mb: int = 512
    monailabel: bool = False
    device: str | None = None

    def check(self) -> None:
        """Raises InputError where others could reach it and no token is asked for."""
        given = self.token
        if given is not None and not (len(given.strip()) >= SHORTEST_TOKEN and given.isascii() and given.isprintable()):
            raise InputError(f"`token`: give at least {SHORTEST_TOKEN} letters, digits and signs")
        if not is_loopback(self.host) and self.token is None:
            raise InputError(
                f"`host` {self.host or '0.0.0.0'} can be reached from other machines: give a `token`, or use 127.0.0.1"
            )


def serve(
    models: Sequence[str], service: Service, setting: Setting | None, ready: Callable[[str], None], report: Reporter
) -> None:
    """Answer requests until the process is told to end. ``setting``: the review, if there is one, whose predictions are
    there; ``ready`` is called with the URL once it can be used. Raises InputError before that."""
    service.check()
    with ExitStack() as stack:
        listening = stack.enter_context(bound(service.host, service.port))
        desk = None
        if setting is not None:
            desk = Desk(setting, report)
            stack.callback(desk.close)
            models = [*models, *([desk.setting.model] if desk.setting.model else [])]
        workers = Workers(
            list(dict.fromkeys(models)), service.workers, device=service.device, most_waiting=service.queue,
            timeout=service.timeout,
        )  # fmt: skip
        stack.callback(workers.close)
        workers.start()
        jobs = None if desk is None else Jobs(desk, workers)
        if jobs is not None:
            stack.callback(jobs.close)
        app = create_app(
            workers, desk, jobs, names=own_names(service.host, service.names), by_address=not is_loopback(service.host),
            token=service.token, most_bytes=service.most_mb << 20, with_monailabel=service.monailabel,
        )  # fmt: skip
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off",
            timeout_graceful_shutdown=2, ws="none",
        )  # fmt: skip
        ready(url_of(service, listening.getsockname()[1]))
        with suppress(KeyboardInterrupt), terminable():  # the usual end
            uvicorn.Server(config).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers at once only where the protocol is named; without it each waits 40 ms
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name != "nt":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"`port` {port} of {host}: {reason}; choose another, or 0 for any that is free") from None
    return listening


def url_of(service: Service, port: int) -> str:
    """Where a browser finds the service; the token stands behind the sign that keeps it in the browser."""
    host = "127.0.0.1" if service.host in WILD else service.host
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"#token={quote(service.token, safe='')}" if service.token else "")


def divided(paths: Sequence[Path], out: Path, model: str | None) -> tuple[Path, list[Path]]:
    """The folder of predictions and the images among ``FOUND IMAGE...``: the first is FOUND where there is more than
    one, and it is not there yet or holds landmarks and no images; else the predictions belong into ``out``, and where
    there is no model the annotations of a manifest do. Raises InputError."""
    if len(paths) > 1 and _may_hold_predictions(paths[0]):
        return paths[0], list(paths[1:])
    if model is None and len(paths) == 1 and paths[0].suffix.lower() == ".csv":
        return out / PREDICTIONS / ANNOTATIONS, list(paths)
    if model is None:
        raise InputError(
            f"{paths[0]}: give the folder that predict wrote, then the images or their manifest; or a `model`, which "
            "predicts first; or a manifest alone, to look at its own annotations"
        )
    return out / PREDICTIONS / Path(os.path.abspath(model)).name, list(paths)


def _may_hold_predictions(path: Path) -> bool:
    if not os.path.lexists(path):
        return not path.suffix
    if not path.is_dir():
        return False
    try:
        images = bool(find_images([path]))
    except InputError:
        images = False
    if not images:
        return True
    return any(
        (path / f.name.replace(".mrk.json", ".json")).exists() and _is_ours(path, f) for f in landmark_files(path)
    )


def _is_ours(folder: Path, file: Path) -> bool:
    """Whether a landmark file is one of a prediction, which names its model."""
    try:
        document = read_json(file)
    except InputError:
        return False
    return isinstance(document, dict) and "model" in document


def predicted_first(setting: Setting, given: bool, report: Reporter) -> Setting:
    """Predict what is not predicted yet: all where the predictions are not there, or a run that made them did not come
    to its end; where none are ``given``, into a folder of the model's own, or without a model the annotations of the
    manifest. The setting with that folder. Raises InputError where there is no model for it."""
    if not given and setting.model is None:
        setting = replace(setting, annotated=True)
        write_annotations(setting.cases(), setting.predictions, setting.out, report)
        return setting
    if given and setting.predictions.is_dir() and not (setting.predictions / LOCK).exists():
        return setting
    if setting.model is None:
        raise InputError(f"{setting.predictions}: no such folder; give the one that predict wrote, or a `model`")
    for case in find_images_as_cases(setting.images, spacing=setting.spacing, form=setting.form):
        check_name(case)
    model = load(setting.model, setting.device)
    if not given:  # another model of this name has a folder of its own
        folder = setting.out / PREDICTIONS / f"{model.name}-{model.hash[:8]}"
        setting = replace(setting, predictions=folder)
    rows = predict(
        model, setting.images, setting.predictions, spacing=setting.spacing, form=setting.form, report=report
    )  # fmt: skip
    if failed := [row for row in rows if row.state == "failed"]:
        if len(failed) == len(rows):
            raise InputError(failed[0].reason)
        report.say(f"{len(failed)} of {len(rows)} images have no prediction")
    return setting
