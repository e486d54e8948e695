"""What the commands that use landmarks are given: files, folders of predictions, manifests, 2D and 3D."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anatomark.cases.find import find_cases, find_landmarks
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.images import write_image
from anatomark.io.jsonfile import write_json_landmarks
from anatomark.io.landmarks import write_landmarks

MARKS = Landmarks(("a", "b"), np.array([[1.0, 2, 3], [4, 5, 6]]), covariance=np.stack([np.eye(3)] * 2))


def volume(path: Path, shape: tuple[int, ...] = (8, 9, 10)) -> Path:
    grid = Grid.from_axes(shape, np.eye(3)[:, ::-1], np.zeros(3))
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    write_image(Image(values, grid), path)
    return path


@pytest.mark.parametrize("ending", [".mrk.json", ".fcsv"])
def test_a_folder_that_predict_wrote_in_any_format(tmp_path: Path, ending: str) -> None:
    for stem in ("one", "two"):
        write_landmarks(MARKS, tmp_path / f"{stem}{ending}")
        write_json_landmarks(MARKS, tmp_path / f"{stem}.json", {})
    (tmp_path / "summary.json").write_text('{"no": "landmarks"}')
    found = find_landmarks([tmp_path])
    assert [m.id for m in found] == ["one", "two"]
    assert found[0].landmarks.covariance is not None  # of the JSON beside it


def test_a_split_is_for_manifests_only(tmp_path: Path) -> None:
    write_landmarks(MARKS, tmp_path / "one.mrk.json")
    for path in (tmp_path, tmp_path / "one.mrk.json"):
        with pytest.raises(InputError, match="needs a manifest"):
            find_landmarks([path], split="test")


def test_points_in_the_plane_z_0_of_a_volume_stay_3d(tmp_path: Path) -> None:
    image = volume(tmp_path / "scan.nii.gz")
    flat = Landmarks(("a",), np.array([[3.0, 4, 0]]))
    write_landmarks(flat, tmp_path / "scan.mrk.json")
    marked = find_cases([image], tmp_path / "scan.mrk.json")[0]
    assert marked.landmarks.ndim == marked.image().ndim == 3


def test_slicers_2d_points_belong_to_a_single_slice(tmp_path: Path) -> None:
    image = volume(tmp_path / "slice.nii.gz", (1, 9, 10))
    write_landmarks(Landmarks(("a",), np.array([[3.0, 4, 0]])), tmp_path / "slice.mrk.json")
    marked = find_cases([image], tmp_path / "slice.mrk.json")[0]
    assert marked.landmarks.ndim == marked.image().ndim == 2


def test_what_is_missing_is_named_at_once(tmp_path: Path) -> None:
    images = [volume(tmp_path / f"{n}.nii.gz") for n in "xyz"]
    (tmp_path / "found").mkdir()
    write_landmarks(MARKS, tmp_path / "found" / "y.mrk.json")
    with pytest.raises(InputError, match=r"no landmarks of x, z"):
        find_cases(images, tmp_path / "found")
    with pytest.raises(InputError, match="give its landmarks"):
        find_cases(images)


def test_a_sidecar_of_another_program_is_no_landmark_file(tmp_path: Path) -> None:
    image = volume(tmp_path / "one.nii.gz")
    write_landmarks(MARKS, tmp_path / "one.mrk.json")
    (tmp_path / "one.json").write_text('{"EchoTime": 0.03}')
    (tmp_path / "dataset_description.json").write_text('{"Name": "mine"}')
    assert find_cases([image], tmp_path)[0].landmarks.names == MARKS.names
    assert [m.id for m in find_landmarks([tmp_path])] == ["one"]


def test_tables_of_landmarks_without_images(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("# frame=LPS unit=mm\ncase,label,x,y,z\np,a,1,2,3\nq,a,4,5,6\n")
    found = find_landmarks([tmp_path / "table.csv"])
    assert [(m.id, m.landmarks["a"].tolist()) for m in found] == [("p", [1, 2, 3]), ("q", [4, 5, 6])]
    write_landmarks(MARKS, tmp_path / "alone.csv", case="alone")
    assert "alone" in [m.id for m in find_landmarks([tmp_path / "alone.csv"])]


def test_points_of_slicer_in_the_plane_z_0_stay_3d_without_an_image(tmp_path: Path) -> None:
    write_landmarks(Landmarks(("a",), np.array([[3.0, 4, 0]])), tmp_path / "acpc.fcsv")
    assert find_landmarks([tmp_path / "acpc.fcsv"])[0].landmarks.ndim == 3
    flat = Landmarks(("a",), np.array([[3.0, 4]]))
    write_landmarks(flat, tmp_path / "xray.mrk.json")
    write_json_landmarks(flat, tmp_path / "xray.json", {})
    assert find_landmarks([tmp_path / "xray.mrk.json"])[0].landmarks.ndim == 2


def test_two_cases_with_one_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_landmarks(MARKS, tmp_path / folder / "same.fcsv")
    with pytest.raises(InputError, match="two of the cases are called 'same'"):
        find_landmarks([tmp_path / "one", tmp_path / "two"])
