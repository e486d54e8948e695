"""What a manifest's cases are suspect of by place alone, in every split."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anatomark.cases.division import read_division
from anatomark.cases.look.fingerprint import fingerprint
from anatomark.cases.manifest import read_manifest
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.io.images import write_image
from anatomark.io.landmarks import write_landmarks

NAMES = tuple("abcdef")
SPLITS = ["train"] * 5 + ["val", "test"]
BASE = np.random.default_rng(3).uniform(-11, 11, (6, 3)) + 5


def _folder(folder: Path, change: Callable[[int, np.ndarray], Any] = lambda k, points: None) -> Path:
    """Seven volumes with six landmarks each, in fcsv in RAS; ``change`` moves points (LPS) of case k."""
    rows = ["case,image,landmarks,split"]
    for k, split in enumerate(SPLITS):
        rng = np.random.default_rng(k)
        grid = Grid.centred((20, 20, 20), np.eye(3)[:, ::-1] * 1.5, (5, 5, 5))
        write_image(Image(rng.integers(0, 200, (1, 20, 20, 20)).astype(np.int16), grid), folder / f"c{k}.nii.gz")
        points = BASE + rng.normal(size=BASE.shape) * 0.3
        change(k, points)
        write_landmarks(Landmarks(NAMES, points * [-1, -1, 1]), folder / f"c{k}.fcsv")
        text = (folder / f"c{k}.fcsv").read_text()
        (folder / f"c{k}.fcsv").write_text(text.replace("CoordinateSystem = LPS", "CoordinateSystem = RAS"))
        rows.append(f"c{k},c{k}.nii.gz,c{k}.fcsv,{split}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


def _found(path: Path) -> set[tuple[str, str | None, str, tuple[str, ...]]]:
    facts = fingerprint(read_manifest(path))
    assert not facts["suspects_note"]
    return {(s["case"], s["split"], s["kind"], tuple(s["labels"])) for s in facts["suspects"]}


def _put(case: int, labels: list[int], place: tuple[float, ...]) -> Callable[[int, np.ndarray], None]:
    def change(k: int, points: np.ndarray) -> None:
        if k == case:
            points[labels] = place

    return change


def test_clean_cases_are_quiet(tmp_path: Path) -> None:
    assert _found(_folder(tmp_path)) == set()


@pytest.mark.parametrize(
    ("case", "place"),
    [(2, (0, 0, 0)), (5, (1, 1, -1)), (6, (-9.25, -9.25, -9.25))],  # -1 in RAS; the first voxel
)
def test_a_position_that_stands_for_none(tmp_path: Path, case: int, place: tuple[float, ...]) -> None:
    path = _folder(tmp_path, _put(case, [1], place))
    found = {one for one in _found(path) if one[2] == "placeholder"}
    assert found == {(f"c{case}", SPLITS[case], "placeholder", ("b",))}
    assert fingerprint(read_manifest(path))["landmarks"][1]["aligned_mm"] < 1  # it does not turn the mean shape


def test_a_landmark_that_is_the_origin_everywhere_is_asked_about_once(tmp_path: Path) -> None:
    def change(k: int, points: np.ndarray) -> None:
        points -= points[0]

    path = _folder(tmp_path, change)
    assert {f for f in _found(path) if f[2] == "placeholder"} == {("", None, "placeholder", ("a",))}
    assert fingerprint(read_manifest(path))["landmarks"][0]["aligned_mm"] < 1  # it counts as a point


def test_nothing_but_placeholders(tmp_path: Path) -> None:
    def change(k: int, points: np.ndarray) -> None:
        points[:] = (1.0, 1.0, -1.0)

    facts = fingerprint(read_manifest(_folder(tmp_path, change)))
    assert sum(s["kind"] == "placeholder" for s in facts["suspects"]) == 7
    json.dumps(facts, allow_nan=False)


def test_two_landmarks_at_zero_are_not(tmp_path: Path) -> None:
    def change(k: int, points: np.ndarray) -> None:
        points[:2] = 0.0

    found = {f for f in _found(_folder(tmp_path, change)) if f[2] == "placeholder"}
    assert found == {(f"c{k}", split, "placeholder", ("a", "b")) for k, split in enumerate(SPLITS)}


@pytest.mark.parametrize("case", [0, 6])
def test_a_point_outside_the_image(tmp_path: Path, case: int) -> None:
    found = _found(_folder(tmp_path, _put(case, [3], (5, 5, 900))))
    assert (f"c{case}", SPLITS[case], "outside", ("d",)) in found
    facts = fingerprint(read_manifest(tmp_path / "cases.csv"))
    (text,) = (s["message"] for s in facts["suspects"] if s["kind"] == "outside")
    assert text == "d lies 880 mm outside the image"  # whose border is at 20


@pytest.mark.parametrize("case", [1, 5])
def test_swapped_labels(tmp_path: Path, case: int) -> None:
    def change(k: int, points: np.ndarray) -> None:
        if k == case:
            points[[2, 4]] = points[[4, 2]]

    assert _found(_folder(tmp_path, change)) == {(f"c{case}", SPLITS[case], "swap", ("c", "e"))}


@pytest.mark.parametrize(("case", "of", "copy"), [(5, 0, True), (6, 1, False), (6, 5, True)])
def test_one_image_in_two_splits(tmp_path: Path, case: int, of: int, copy: bool) -> None:
    path = _folder(tmp_path)
    if copy:
        shutil.copy(tmp_path / f"c{of}.nii.gz", tmp_path / f"c{case}.nii.gz")
    else:
        path.write_text(path.read_text().replace(f"c{case}.nii.gz", f"./c{of}.nii.gz"))
    assert _found(path) == {(f"c{case}", SPLITS[case], "image", ())}
    told = [n for n in read_division(path).notes if "the same image" in n]
    assert told == [f"case 'c5' has the same image as 'c{of}', which is train: no independent val case"] * (case == 5)


def test_images_of_one_size_are_told_apart(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    for k in range(7):  # uncompressed: of one size, and alike up to one voxel
        data = bytearray(gzip.decompress((tmp_path / "c0.nii.gz").read_bytes()))
        data[9000] = k
        (tmp_path / f"c{k}.nii").write_bytes(data)
    path.write_text(path.read_text().replace(".nii.gz", ".nii"))
    assert _found(path) == set()


def test_px_are_those_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(10, 60, (6, 2))
    table = ["# frame=image unit=px", "case,label,x,y"]
    rows = ["case,image,landmarks,split,spacing"]
    for k, split in enumerate(SPLITS):
        grid = Grid.from_axes((70, 80), [[0, 0.5], [0.5, 0]], (30.0, -20.0))  # its first pixel is not at (0, 0) mm
        write_image(Image(rng.integers(0, 255, (1, 70, 80)).astype(np.uint8), grid), tmp_path / f"c{k}.mha")
        points = base + rng.normal(size=base.shape) * 0.5
        if k == 6:
            points[1], points[2] = 0, -1
        table += [f"c{k},{n},{x},{y}" for n, (x, y) in zip(NAMES, points, strict=True)]
        rows.append(f"c{k},c{k}.mha,marks.csv,{split},")
    (tmp_path / "marks.csv").write_text("\n".join(table) + "\n")
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    assert _found(tmp_path / "cases.csv") == {("c6", "test", "placeholder", ("b", "c"))}
    json.dumps(fingerprint(read_manifest(tmp_path / "cases.csv")), allow_nan=False)
