"""What a worker process answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import service
from anatomark.serve.worker import Worker


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return service.trained(tmp_path_factory.mktemp("worker"), 2, cases=2, steps=2)


def asked(run: Path, **changes: Any) -> dict[str, Any]:
    image = str(run.parent / "data" / "case0.png")
    return {
        "what": "predict", "model": str(run), "image": image, "spacing": [2.0], "form": None, "markups": False,
        "most_voxels": 1 << 29, "own": False, **changes,
    }  # fmt: skip


def test_it_predicts_and_describes(run: Path) -> None:
    worker = Worker()
    document = json.loads(worker.answer(asked(run))["text"])
    assert (document["model_name"], document["frame"]) == (run.name, "image")
    facts = worker.answer({"what": "describe", "model": str(run)})["model"]
    assert (facts["name"], facts["dimension"], facts["hash"]) == (run.name, 2, document["model"])
    both = worker.answer({"what": "describe", "model": f"{run}+{run}"})["model"]
    assert [mark["name"] for mark in both["landmarks"]] == ["a", "b", "c"]


def test_what_cannot_be_is_an_error_with_its_status(run: Path) -> None:
    worker = Worker()
    large = worker.answer(asked(run, most_voxels=500))
    assert large["status"] == 413 and "has 576 voxels; at most 500" in large["error"]
    assert worker.answer(asked(run, most_voxels=576)).keys() == {"text"}
    assert worker.answer(asked(run, spacing=None))["status"] == 400
    assert "no such" in worker.answer(asked(run, model=str(run / "nowhere")))["error"].lower()
    assert "KeyError" in worker.answer({"what": "sing"})["fault"]
