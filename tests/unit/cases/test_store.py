"""Images on disk: what comes back, in how much memory, and augmented copies."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import numpy as np
import psutil
import pytest

import tiny
from anatomark.cases import store as store_module
from anatomark.cases.store import CaseStore, augmented_copy, fingerprint_of, open_images, save_images
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError

MARKS = Landmarks(("a",), np.zeros((1, 3)))


def test_images_come_back_as_they_were_and_shared_ones_are_stored_once(tmp_path: Path) -> None:
    image, _ = tiny.blobs(0)
    other = Image(np.random.default_rng(0).normal(size=(2, 5, 6, 7)), Grid((5, 6, 7), np.eye(4)), {"path": "x"})
    save_images(tmp_path / "k", {"a": image, "b": other, "c": image})
    assert len(list((tmp_path / "k").glob("*.npy"))) == 2
    again = open_images(tmp_path / "k")
    for name, one in {"a": image, "b": other, "c": image}.items():
        np.testing.assert_array_equal(again[name].array, one.array)
        assert again[name].array.dtype == one.array.dtype
        assert again[name].grid == one.grid
    assert again["a"].array is again["c"].array
    assert again["b"].meta == {"path": "x"}
    again["a"].array[:] = 0  # stays in memory
    np.testing.assert_array_equal(open_images(tmp_path / "k")["a"].array, image.array)


def test_a_case_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "cache")

    def broken() -> dict[str, Image]:
        raise InputError("no such image")

    with pytest.raises(InputError):
        store.add("x", "k", MARKS, broken)
    assert len(store) == 0
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save_images(tmp_path / "file" / "k", {"a": tiny.blobs(0)[0]})


def test_a_cached_case_is_not_made_again(tmp_path: Path) -> None:
    image, marks = tiny.blobs(0)
    made = []
    for _ in range(2):
        CaseStore(tmp_path).add("x", "k", marks, lambda: made.append(1) or {"image": image})
    assert len(made) == 1


def test_memory_stays_bounded_whatever_the_number_of_cases(tmp_path: Path) -> None:
    store = CaseStore(tmp_path, cache_mb=20)
    grid = Grid((128, 128, 128), np.eye(4))  # 8 MB each as float32
    for i in range(40):
        array = np.full((1, *grid.shape), i, np.float32)
        store.add(str(i), f"k{i}", MARKS, lambda a=array: {"image": Image(a, grid)})
    del array
    gc.collect()
    process = psutil.Process(os.getpid())
    before, peak = process.memory_info().rss, 0
    for turn in range(2):
        for i in range(40):
            assert store.images(i)["image"].array.sum(dtype=np.float64) == i * 128**3, turn
            peak = max(peak, process.memory_info().rss)
    assert (peak - before) / 2**20 < 60  # 320 MB in all


def test_what_was_used_last_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(store_module, "open_images", lambda folder: opened.append(folder.name) or open_images(folder))
    store = CaseStore(tmp_path, cache_mb=2.5)  # two of three images of 1 MB
    grid = Grid((64, 64, 64), np.eye(4))
    for name in "abc":
        store.add(name, name, MARKS, lambda: {"image": Image(np.zeros((1, 64, 64, 64), np.float32), grid)})
    for i in (0, 1, 0, 2, 0, 1):  # a is used again before c comes, so b goes; then c, which is older than a
        store.images(i)
    assert opened == ["a", "b", "c", "b"]
    one = CaseStore(tmp_path, 0.5, store.ids, store.keys, store.landmarks)  # too little for one: it stays all the same
    assert one.images(0)["image"] is one.images(0)["image"]


def test_a_store_pickles_without_its_mappings(tmp_path: Path) -> None:
    image, marks = tiny.blobs(0)
    store = CaseStore(tmp_path)
    store.add("x", "k", marks, lambda: {"image": image})
    store.images(0)
    data = pickle.dumps(store)
    assert len(data) < 5000
    np.testing.assert_array_equal(pickle.loads(data).images(0)["image"].array, image.array)


def test_keys_follow_file_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"1")
    first = fingerprint_of(path, {"x": 1})
    assert first == fingerprint_of(path, {"x": 1}) != fingerprint_of(path, {"x": 2})
    os.utime(path, ns=(1, 1))
    assert first != fingerprint_of(path, {"x": 1})


@pytest.mark.parametrize("ndim", [2, 3])
def test_landmarks_of_an_augmented_copy_stay_on_their_structures(ndim: int) -> None:
    grid = Grid.from_axes((40,) * ndim, np.diag([1.5, 1.2, 1.0][:ndim])[:, ::-1], np.arange(ndim) * 10.0)
    points = grid.to_world(np.array([[12, 14, 20], [28, 12, 18], [20, 28, 25]])[:, :ndim])
    world = grid.points()
    array = np.stack([np.exp(-((world - p) ** 2).sum(-1) / 8) for p in points]).astype(np.float32)
    marks = Landmarks(("a", "b", "c"), points)
    copy, moved = augmented_copy(Image(array, grid), marks, np.random.default_rng(3))
    where = copy.grid.points()
    for channel, point in zip(copy.array, moved.points, strict=True):
        centre = (where * channel[..., None]).reshape(-1, ndim).sum(0) / channel.sum()
        assert np.linalg.norm(centre - point) < 0.3
    assert np.linalg.norm(moved.points - marks.points, axis=1).max() > 0.5
    assert copy.grid.shape == grid.shape


def test_an_unknown_landmark_stays_unknown_in_a_copy() -> None:
    image, marks = tiny.blobs(1)
    partial = Landmarks(marks.names, np.where(np.arange(3)[:, None] == 1, np.nan, marks.points))
    _, moved = augmented_copy(image, partial, np.random.default_rng(0))
    assert moved.defined.tolist() == [True, False, True]
