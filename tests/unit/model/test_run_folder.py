"""Run folders: what they hold, and that nothing in them runs code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from anatomark.cases.look.sizes import odd_sizes
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.model import run_folder
from anatomark.model.config import make_config
from anatomark.model.model import Model
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
from anatomark.model.sizes import check_size
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


# ---------------------------------------------------------------------- whole or refused


def test_every_file_is_listed_as_sha256sum_reads_it(run: Path) -> None:
    lines = dict(reversed(line.split("  ")) for line in (run / LIST).read_text().splitlines())
    assert set(lines) == {p.name for p in run.iterdir()} - {LIST}
    assert lines["plan.json"] == hashlib.sha256((run / "plan.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["config.yaml", "card.md", "request.yaml", "reference.safetensors"])
def test_a_changed_file_is_named_with_what_to_do(run: Path, name: str) -> None:
    with (run / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(InputError, match=rf"{name}: is not the file .*delete its line in {LIST}"):
        load_run(run)
    text = "".join(line for line in (run / LIST).read_text().splitlines(True) if name not in line)
    (run / LIST).write_text(text)
    if name != "reference.safetensors":
        load_run(run)
        (run / name).unlink()
    with pytest.raises(InputError, match=name) if name.startswith(("config", "ref")) else nullcontext():
        load_run(run)


@pytest.mark.parametrize("text", ["", "abc  plan.json\n", f"{'0' * 64}  ../plan.json\n", f"{'0' * 64}  gone.txt\n"])
def test_a_damaged_list_is_refused(run: Path, text: str) -> None:
    (run / LIST).write_text(text)
    with pytest.raises(InputError, match=LIST):
        load_run(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_cannot_be_are_refused(unlisted: Path, value: float) -> None:
    stored = load_file(unlisted / "weights.safetensors")
    stored["method.rough.0.weight"][0, 0] = value
    save_file(stored, unlisted / "weights.safetensors")
    with pytest.raises(InputError, match=r"weights.safetensors: method.rough.0.weight holds numbers"):
        load_run(unlisted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ndim": 4}, "ndim"),
        ({"names": ["a", "a", "c"]}, "names"),
        ({"names": []}, "names"),
        ({"descriptions": ["x"]}, "descriptions"),
        ({"intensity": {"kind": "window"}}, "intensity"),
        ({"intensity": {"kind": "percentiles", "low": 5, "high": 200, "skip_zero": True}}, "percentiles"),
        ({"facts": [1]}, "facts"),
        ({"facts": {"size_mm": "20"}}, "size_mm"),
        ({"facts": {"size_mm": 20.0, "refine": 3}}, "refine"),
        ({"images": {"longest_mm": [2.0, 1.0]}}, "longest_mm"),
        ({"images": {"longest_mm": [1.0, 2.0], "learned": ["no digest"]}}, "learned"),
    ],
)
def test_a_plan_of_wrong_types_is_refused_on_load(unlisted: Path, change: dict[str, Any], said: str) -> None:
    plan = {**tiny.read_json(unlisted / "plan.json"), **change}
    (unlisted / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match=rf"plan.json: .*{said}"):
        load_run(unlisted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"level": 2.0}, "level"),
        ({"landmarks": {"x": {"n": 1}}}, "'a' stands only in one|'x' stands only in one"),
        ({"pooled": {"radius90_mm": "3"}}, "radius90_mm"),
        ({"presence": {"threshold": 1.5}}, "threshold"),
        ({"trust": {"limit": 4.0, "cases": 1, "independent": 0, "usual": {"odd": {"middle": 0, "scale": 1}}}}, "odd"),
        ([1], "keys and values"),
    ],
)
def test_a_calibration_of_wrong_types_is_refused_on_load(unlisted: Path, change: Any, said: str) -> None:
    facts = tiny.read_json(unlisted / "calibration.json")
    (unlisted / "calibration.json").write_text(json.dumps({**facts, **change} if isinstance(change, dict) else change))
    with pytest.raises(InputError, match=rf"calibration.json: .*({said})"):
        load_run(unlisted)


def test_reference_and_calibration_belong_together(unlisted: Path) -> None:
    stored = load_file(unlisted / "reference.safetensors")
    save_file({**stored, "noise": stored["noise"][:1]}, unlisted / "reference.safetensors")
    with pytest.raises(InputError, match=r"reference.safetensors: does not fit plan.json: noise"):
        load_run(unlisted)
    (unlisted / "reference.safetensors").rename(unlisted / "aside")
    with pytest.raises(InputError, match=r"has no reference.safetensors"):
        load_run(unlisted)
    (unlisted / "aside").rename(unlisted / "reference.safetensors")
    (unlisted / "calibration.json").unlink()
    with pytest.raises(InputError, match=r"has no calibration.json"):
        load_run(unlisted)


def test_what_is_no_regular_file_is_not_read(unlisted: Path) -> None:
    for name in ("weights.safetensors", "plan.json", "config.yaml", "calibration.json", "reference.safetensors"):
        (unlisted / name).rename(unlisted / "aside")
        (unlisted / name).symlink_to("/dev/zero")
        with pytest.raises(InputError, match=rf"{name}: is no regular file"):
            load_run(unlisted)
        (unlisted / name).unlink()
        (unlisted / "aside").rename(unlisted / name)


def test_a_pipe_in_place_of_a_listed_file_is_not_waited_for(run: Path) -> None:
    (run / "card.md").unlink()
    os.mkfifo(run / "card.md")
    with pytest.raises(InputError, match=r"card\.md: is no regular file"):
        load_run(run)


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("factor", [10.0, 0.1, 1e9])
def test_an_image_of_an_impossible_size_is_refused_at_once(run: Path, factor: float) -> None:
    model, (image, _) = Model(load_run(run)), tiny.blobs(9)  # of 48 mm
    assert tiny.read_json(run / "plan.json")["images"]["longest_mm"] == [48.0, 48.0]
    model.predict(image)
    for allowed in (7.0, 1 / 7):
        model.predict(Image(image.array, Grid.from_axes(image.grid.shape, image.grid.axes * allowed, np.zeros(3))))
    wrong = Image(image.array, Grid.from_axes(image.grid.shape, image.grid.axes * factor, np.zeros(3)))
    with pytest.raises(InputError, match=r"the image: is .*; training images were 48 mm long: is the spacing right\?"):
        model.predict(wrong)


def test_sizes_judge_images_and_are_no_part_of_the_hash(unlisted: Path) -> None:
    before = load_run(unlisted)
    plan = tiny.read_json(unlisted / "plan.json")
    plan.pop("images")
    (unlisted / "plan.json").write_text(json.dumps(plan))
    assert load_run(unlisted).hash == before.hash and load_run(unlisted).plan.images is None


def test_runs_without_sizes_go_by_the_extent_of_their_landmarks() -> None:
    facts = SimpleNamespace(mean_shape=[[-10.0, 0], [10, 0], [0, 5]])  # spans 20 mm
    for side, good in ((100, True), (400, True), (600, False), (2, False)):
        image = Image(np.zeros((1, 10, 10), np.uint8), Grid.from_axes((10, 10), np.eye(2)[:, ::-1] * side / 10, (0, 0)))
        with nullcontext() if good else pytest.raises(InputError, match="the landmarks of the training images span"):
            check_size(image, None, facts)


def test_cases_of_another_size_than_the_others_are_named() -> None:
    grids = [Grid.from_axes((10, 10), np.eye(2)[:, ::-1] * s, (0, 0)) for s in (1, 1.2, 0.9, 10)]
    assert odd_sizes("abc", grids[:3]) == []
    assert odd_sizes("abcd", grids) == ["case 'd' is 100 mm x 100 mm, others 11 mm long: is its spacing right?"]
    with pytest.raises(InputError, match=r"case 'd' is 10 m x 10 m"):
        odd_sizes("abcd", [*grids[:3], Grid.from_axes((10, 10), np.eye(2)[:, ::-1] * 1000, (0, 0))])


def test_a_model_that_is_neither_folder_nor_name_is_an_input_error() -> None:
    with pytest.raises(InputError, match="give a model as its run folder or its name, not as list"):
        load_run([Path("run")])  # type: ignore[arg-type]
