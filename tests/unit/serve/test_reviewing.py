"""What the page is answered, without processes: a case whose image cannot be shown, a disk that refuses."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.io.images import write_image
from anatomark.model.prediction import Prediction, write_prediction
from anatomark.serve.app import create_app
from anatomark.serve.desk import Desk, Setting
from anatomark.serve.jobs import Jobs
from anatomark.serve.pool import Workers


def study(folder: Path, ndim: int = 3, turned: bool = False) -> list[Case]:
    """Cases s0, s1 and s2, the last the most suspicious; with ``turned`` its axes are."""
    (folder / "images").mkdir(parents=True)
    cases = []
    for k in range(3):
        axes = np.eye(ndim)[:, ::-1] * 2.0
        if turned and k == 2:
            axes = axes @ np.array([[0.8, 0.6], [-0.6, 0.8]])
        path = folder / "images" / (f"s{k}.nii.gz" if ndim == 3 else f"s{k}.mha")
        write_image(
            Image(np.full((1, *(8,) * ndim), k, np.uint8), Grid.from_axes((8,) * ndim, axes, np.zeros(ndim))), path
        )
        cases.append(Case(f"s{k}", path))
        landmarks = Landmarks(("a", "b"), np.array([[1.0] * ndim, [2.0] * ndim]), score=[0.9, 0.8])
        made = Prediction(landmarks, ("odd shape",), float(k), 3.0, source={"model": "m1", "model_name": "M"})
        write_prediction(made, folder / "found", f"s{k}", ("mrk.json", "json"))
    return cases


def talk(folder: Path, say: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Open the review in ``folder`` and speak to it."""

    async def once() -> None:
        desk = Desk(Setting(folder / "out", [folder / "images"], folder / "found"))
        workers = Workers([])
        app = create_app(workers, desk, Jobs(desk, workers), names={"localhost"}, with_monailabel=True)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                await say(client)
        finally:
            desk.close()
            workers.close()

    asyncio.run(once())


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_case_that_cannot_be_shown_does_not_stand_in_the_way(tmp_path: Path, ndim: int) -> None:
    cases = study(tmp_path, ndim, turned=ndim == 2)
    if ndim == 3:
        shutil.copyfile(__file__, str(cases[2].path))

    async def say(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/cases")).json()["cases"][0]["id"] == "s2"
        picture = await client.get("/v1/cases/s2/image.nii.gz")
        assert picture.status_code == 400
        row = (await client.get("/v1/cases")).json()["cases"][0]
        assert row["reason"] == picture.json()["error"] == (await client.get("/v1/cases/s2")).json()["reason"]
        assert (await client.post("/v1/cases/s1/done")).json()["next"] == "s0"
        assert (await client.post("/activelearning/first")).json()["id"] == "s0"
        assert (await client.post("/v1/cases/s0/done")).json()["next"] is None
        assert (await client.post("/v1/cases/s2/skip")).json()["state"] == "skipped"

    talk(tmp_path, say)


def test_a_disk_that_refuses_is_no_fault_of_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page drops what is answered 400 and tries the rest again."""
    study(tmp_path)
    replace = os.replace

    def full(a: Any, b: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def say(client: httpx.AsyncClient) -> None:
        place = "/v1/cases/s0/landmarks"
        before = await client.get(place)
        body = {"points": [{"name": "a", "state": "moved", "position": [5.0, 5.0, 5.0]}]}
        head = {"if-match": before.headers["etag"]}
        monkeypatch.setattr(os, "replace", full)
        answer = await client.put(place, json=body, headers=head)
        assert answer.status_code == 507 and "No space left" in answer.json()["error"]
        assert (await client.get(place)).json() == before.json()
        monkeypatch.setattr(os, "replace", replace)
        assert (await client.put(place, json=body, headers=head)).json()["points"][0]["position"] == [5.0, 5.0, 5.0]
        for position in (["1", "2", "3"], [True, 1, 1]):
            body["points"][0]["position"] = position
            assert (await client.put(place, json=body, headers={"if-match": "*"})).status_code == 400

    talk(tmp_path, say)
