"""Images on disk: what comes back, and in how much memory."""

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
from anatomark.cases.case import Case
from anatomark.cases.store import CaseStore, fingerprint_of, open_images, save_images
from anatomark.core.alignment import Alignment
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
    again, alignment = open_images(tmp_path / "k")
    assert alignment is None
    for name, one in {"a": image, "b": other, "c": image}.items():
        np.testing.assert_array_equal(again[name].array, one.array)
        assert again[name].array.dtype == one.array.dtype
        assert again[name].grid == one.grid
    assert again["a"].array is again["c"].array
    assert again["b"].meta == {"path": "x"}
    again["a"].array[:] = 0  # stays in memory
    np.testing.assert_array_equal(open_images(tmp_path / "k")[0]["a"].array, image.array)


def test_a_case_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "cache")

    def broken() -> tuple[dict[str, Image], None]:
        raise InputError("no such image")

    with pytest.raises(InputError):
        store.add(Case("x", given=MARKS), "k", broken)
    assert len(store) == 0
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save_images(tmp_path / "file" / "k", {"a": tiny.blobs(0)[0]})


def test_a_cached_case_is_not_made_again(tmp_path: Path) -> None:
    image, marks = tiny.blobs(0)
    made = []
    for _ in range(2):
        CaseStore(tmp_path).add(Case("x", given=marks), "k", lambda: made.append(1) or ({"image": image}, None))
    assert len(made) == 1


def test_memory_stays_bounded_whatever_the_number_of_cases(tmp_path: Path) -> None:
    store = CaseStore(tmp_path, cache_mb=20)
    grid = Grid((128, 128, 128), np.eye(4))  # 8 MB each as float32
    for i in range(40):
        array = np.full((1, *grid.shape), i, np.float32)
        store.add(Case(str(i), given=MARKS), f"k{i}", lambda a=array: ({"image": Image(a, grid)}, None))
    del array
    gc.collect()
    process = psutil.Process(os.getpid())
    before, peak = process.memory_info().rss, 0
    for turn in range(2):
        for i in range(40):
            assert store[i].images["image"].array.sum(dtype=np.float64) == i * 128**3, turn
            peak = max(peak, process.memory_info().rss)
    assert (peak - before) / 2**20 < 60  # 320 MB in all


def test_what_was_used_last_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(store_module, "open_images", lambda folder: opened.append(folder.name) or open_images(folder))
    store = CaseStore(tmp_path, cache_mb=2.5)  # two of three images of 1 MB
    grid = Grid((64, 64, 64), np.eye(4))
    for name in "abc":
        image = Image(np.zeros((1, 64, 64, 64), np.float32), grid)
        store.add(Case(name, given=MARKS), name, lambda image=image: ({"image": image}, None))
    for i in (0, 1, 0, 2, 0, 1):  # a is used again before c comes, so b goes; then c, which is older than a
        _ = store[i]
    assert opened == ["a", "b", "c", "b"]
    one = CaseStore(tmp_path, 0.5, store.cases, store.keys)  # too little for one: it stays all the same
    assert one[0].images["image"] is one[0].images["image"]


def test_a_store_pickles_without_its_mappings(tmp_path: Path) -> None:
    image, marks = tiny.blobs(0)
    store = CaseStore(tmp_path)
    store.add(Case("x", given=marks), "k", lambda: ({"image": image}, Alignment(2 * np.eye(4))))
    _ = store[0]
    data = pickle.dumps(store)
    assert len(data) < 5000
    again = pickle.loads(data)[0]
    np.testing.assert_array_equal(again.images["image"].array, image.array)
    np.testing.assert_array_equal(again.alignment.affine, 2 * np.eye(4))
    assert again.id == "x" and again.landmarks.names == marks.names


def test_keys_follow_file_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"1")
    first = fingerprint_of(path, {"x": 1})
    assert first == fingerprint_of(path, {"x": 1}) != fingerprint_of(path, {"x": 2})
    os.utime(path, ns=(1, 1))
    assert first != fingerprint_of(path, {"x": 1})
