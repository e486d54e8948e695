"""Run folders: what they hold, and that nothing in them runs code."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from anatomark.errors import InputError
from anatomark.model import run_folder
from anatomark.model.config import make_config
from anatomark.model.run_files import LIST
from anatomark.model.run_folder import (
    CHECKPOINT_VERSION,
    find_run,
    list_zoo,
    load_run,
    read_checkpoint,
    write_checkpoint,
    write_weights,
)
from anatomark.progress import Reporter
from anatomark.training.fit import fit

tiny.register()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(
        tiny.write_study(folder / "data"),
        folder / "run",
        make_config(method="tiny", steps=4),
        report=Reporter(quiet=True),
    )
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def unlisted(run: Path) -> Path:
    """As earlier versions wrote it."""
    (run / LIST).unlink()
    return run


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_a_run_holds_what_the_design_says(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    parts = {"config.yaml", "plan.json", "weights.safetensors", "calibration.json", "card.md", "log.csv"}
    # what was asked, beside what was settled; what the training images looked like
    assert names == parts | {"request.yaml", "reference.safetensors", "SHA256SUMS"}


def test_loading_gives_the_trained_model(run: Path) -> None:
    loaded = load_run(run)
    composed = loaded.build()
    assert not composed.training
    assert all(torch.equal(v, loaded.weights[k]) for k, v in composed.state_dict().items())
    assert not any(p.requires_grad for p in composed.parameters())


def test_weights_bear_the_names_of_their_part_and_those_of_earlier_runs_without_are_read(unlisted: Path) -> None:
    run = unlisted
    stored = load_file(run / "weights.safetensors")
    assert "method.rough.0.weight" in stored
    save_file({name.removeprefix("method."): v for name, v in stored.items()}, run / "weights.safetensors")
    earlier = load_run(run).build().state_dict()
    assert all(torch.equal(v, earlier[name]) for name, v in stored.items())


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "weights.safetensors"])
def test_a_missing_file_is_named_with_what_a_run_holds(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(InputError, match=name):
        load_run(run)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_in_place_of_weights_is_refused_and_not_run(unlisted: Path, tmp_path: Path, protocol: int) -> None:
    run = unlisted
    trap = tmp_path / "trapped"
    (run / "weights.safetensors").write_bytes(pickle.dumps(Evil(trap), protocol=protocol))
    with pytest.raises(InputError, match="not a safetensors file"):
        load_run(run)
    torch.save({"x": Evil(trap)}, run / "weights.safetensors")
    with pytest.raises(InputError, match="pickle"):
        load_run(run)
    (run / "weights.safetensors").rename(run / "model.pt")
    with pytest.raises(InputError, match=r"model.pt may run code"):
        load_run(run)
    assert not trap.exists()


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    torch.save({"version": CHECKPOINT_VERSION, "x": Evil(trap)}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="no checkpoint"):
        read_checkpoint(tmp_path)
    assert not trap.exists()


def test_checkpoints_read_back(tmp_path: Path) -> None:
    whole = {"version": CHECKPOINT_VERSION, "x": torch.arange(3), "rows": [{"a": "b"}], "best_mm": float("inf")}
    write_checkpoint(tmp_path, whole)
    data = read_checkpoint(tmp_path)
    assert torch.equal(data["x"], torch.arange(3))
    assert (data["rows"], data["best_mm"]) == ([{"a": "b"}], float("inf"))


def test_a_checkpoint_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"version": 1})
    with pytest.raises(InputError, match=r"version 1, .*finish the run with the version that began it"):
        read_checkpoint(tmp_path)


def test_damaged_files_are_input_errors(unlisted: Path) -> None:
    run = unlisted
    data = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"weights.safetensors"):
        load_run(run)
    (run / "plan.json").write_text('{"names": ["a"], "surprise": 1}')
    with pytest.raises(InputError, match=r"plan.json"):
        load_run(run)


def test_weights_of_another_shape_are_an_input_error(unlisted: Path) -> None:
    run = unlisted
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("width: 16", "width: 5"))
    with pytest.raises(InputError, match="does not fit"):
        load_run(run).build()


def test_the_hash_follows_what_changes_predictions(unlisted: Path) -> None:
    run = unlisted
    before = load_run(run).hash
    (run / "card.md").write_text("another card")
    assert load_run(run).hash == before
    (run / "calibration.json").write_text('{"pooled": {"radius90_mm": 3}}')
    assert load_run(run).hash != before


def test_half_weights_load_as_float32(run: Path) -> None:
    composed = load_run(run).build()
    size = (run / "weights.safetensors").stat().st_size
    write_weights(run, composed, half=True)
    assert (run / "weights.safetensors").stat().st_size < 0.7 * size
    again, name = load_run(run).build().state_dict(), "method.rough.0.weight"
    assert again[name].dtype == torch.float32
    assert again["method.seen"].dtype == torch.int64
    torch.testing.assert_close(again[name], composed.state_dict()[name], atol=1e-3, rtol=1e-2)


def test_models_are_found_by_path_and_zoo_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "zoo_folder", lambda: tmp_path)
    assert list_zoo() == {"run": run}
    assert find_run("run") == run == find_run(str(run))
    with pytest.raises(InputError, match="'run'"):
        find_run("rum")
    with pytest.raises(InputError, match="is a file"):
        find_run(run / "card.md")
