"""The fingerprint of a manifest's training cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anatomark.cases.look.fingerprint import fingerprint, orientation
from anatomark.cases.manifest import read_manifest
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import rotation_from_vector
from anatomark.errors import InputError
from anatomark.io.images import write_image
from anatomark.io.landmarks import write_landmarks

NAMES = tuple("abcdefghij")
BASE = np.random.default_rng(0).uniform(-12, 12, (10, 3))


def _volumes(folder: Path, count: int = 8) -> Path:
    """Small volumes with ten landmarks each, turned by 0, 10, 20 ... degrees about z; the last two are val and test."""
    rows = ["case,image,landmarks,split"]
    for k in range(count):
        rng = np.random.default_rng(k)
        steps = [2.0 if k % 2 else 1.5, 1.5, 1.5]
        grid = Grid.centred((20, 22, 24), np.eye(3)[:, ::-1] * steps, (5, 5, 5))
        write_image(Image(rng.integers(0, 200, (1, *grid.shape)).astype(np.int16), grid), folder / f"c{k}.nii.gz")
        turn = rotation_from_vector([0, 0, np.radians(10.0 * k)])
        points = (BASE + rng.normal(size=BASE.shape) * 0.1) @ turn.T + 5
        status = ["defined"] * 10
        if k == 1:
            status[0] = "absent"
        if k == 2:
            points[3] = 900
        names = NAMES if k != 3 else NAMES[:-1]
        write_landmarks(Landmarks(names, points[: len(names)], tuple(status[: len(names)])), folder / f"c{k}.mrk.json")
        split = {count - 2: "val", count - 1: "test"}.get(k, "train")
        rows.append(f"c{k},c{k}.nii.gz,c{k}.mrk.json,{split}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


def test_facts_of_volumes(tmp_path: Path) -> None:
    facts = fingerprint(read_manifest(_volumes(tmp_path)))
    assert facts["cases"] == {"train": 6, "val": 1, "test": 1, "unused": 0, "without landmarks": 0}
    assert (facts["dimension"], facts["modality"]) == (3, "image") and facts["names"] == list(NAMES)
    assert facts["image_formats"] == {".nii.gz": 6} and facts["landmark_formats"] == {".mrk.json": 6}
    images = facts["images"]
    assert images["spacing_mm"] == {"min": [1.5] * 3, "median": [1.5, 1.5, 1.75], "max": [1.5, 1.5, 2.0]}
    assert images["size"]["median"] == [24, 22, 20] and images["extent_mm"]["max"] == [36, 33, 40]
    assert images["orientations"] == {"LPS": 6}
    assert facts["poses"]["rotation_deg"]["max"] == pytest.approx(25, abs=1.5)
    assert facts["poses"]["most_turned"] in ("c0", "c5") and facts["poses"]["scale_sd"] < 0.02
    rows = {row["name"]: row for row in facts["landmarks"]}
    assert (rows["a"]["defined"], rows["a"]["absent"]) == (5, 1)
    assert (rows["j"]["defined"], rows["j"]["unannotated"]) == (5, 1)
    assert rows["d"]["outside"] == 1 and rows["b"]["outside"] == 0
    assert rows["b"]["world_mm"] > rows["b"]["predicted_mm"]
    assert [(s["case"], s["split"], s["kind"], s["labels"]) for s in facts["suspects"]] == [
        ("c2", "train", "point", ["d"]), ("c2", "train", "outside", ["d"]),
    ]  # fmt: skip
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("count", [3, 4, 6])
def test_few_cases_say_so(tmp_path: Path, count: int) -> None:
    facts = fingerprint(read_manifest(_volumes(tmp_path, count)))
    judged = count == 6  # all of them together are enough
    assert ("too few to judge" in facts["suspects_note"]) != judged
    assert [s["kind"] for s in facts["suspects"]] == ["point"] * judged + ["outside"]
    assert all(row["predicted_mm"] is None for row in facts["landmarks"])
    json.dumps(facts, allow_nan=False)


def test_radiographs_with_two_observers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(2, 18, (8, 2))
    rows, table = ["case,image,landmarks,split,spacing"], ["# frame=image unit=mm", "case,label,x,y,observer"]
    for k in range(6):
        grid = Grid.from_axes((80, 90), [[0, 0.25], [0.25, 0]], (0, 0))
        write_image(Image(rng.integers(0, 255, (1, 80, 90)).astype(np.uint8), grid), tmp_path / f"{k}.png")
        rows.append(f"k{k},{k}.png,marks.csv#one,train,0.25")
        for observer, off in (("one", 0.0), ("two", 3.0)):
            points = base + rng.normal(size=base.shape) * 0.2 + off * (np.arange(8) == 5)[:, None]
            table += [f"k{k},m{i},{x:.4f},{y:.4f},{observer}" for i, (x, y) in enumerate(points)]
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "marks.csv").write_text("\n".join(table) + "\n")
    facts = fingerprint(read_manifest(tmp_path / "cases.csv"))
    assert (facts["dimension"], facts["modality"]) == (2, "image")
    images = facts["images"]
    assert images["extent_mm"]["median"] == [22.5, 20] and images["spacing_mm"]["max"] == [0.25, 0.25]
    assert images["orientations"] == {"right, down": 6} and facts["observers"]["cases"] == 6
    assert ("observers", ["m5"]) in [(s["kind"], s["labels"]) for s in facts["suspects"]] and len(
        facts["suspects"]
    ) <= 2


def test_a_manifest_without_training_cases_is_refused(tmp_path: Path) -> None:
    path = _volumes(tmp_path, 3)
    path.write_text(path.read_text().replace(",train", ",val"))
    with pytest.raises(InputError, match="no case has split 'train'"):
        fingerprint(read_manifest(path))


def test_orientation_codes() -> None:
    def of(columns: np.ndarray) -> str:  # world steps of x-, y-, z-index, as files count
        return orientation(Grid.from_axes((4, 5, 6), columns[:, ::-1], (0, 0, 0)))

    assert of(np.eye(3)) == "LPS" and of(np.diag([-1.0, -1.0, 1.0])) == "RAS"
    assert of(np.eye(3)[:, [1, 2, 0]] * [1, -1, 1]) == "PIL"
    assert of(rotation_from_vector([0, 0.2, 0])) == "LPS oblique"
    assert orientation(Grid.from_axes((4, 5), [[0, 1.0], [1, 0]], (0, 0))) == "right, down"
