"""JSON files of annotation programs and challenges: what they hold, and what is refused by name."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from anatomark.core.landmarks import Status
from anatomark.errors import InputError
from anatomark.io.landmarks import read_landmarks
from anatomark.io.tables import read_table

COCO = {
    "images": [{"id": 7, "file_name": "x/a.png"}, {"id": 9, "file_name": "b.png"}],
    "annotations": [
        {"image_id": 9, "category_id": 1, "keypoints": [5, 6.5, 2, 0, 0, 0]},
        {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"image_id": 7, "category_id": 1, "keypoints": [1, 2, 1, 3, 4, 2]},
    ],
    "categories": [{"id": 1, "keypoints": ["S", "N"]}, {"id": 2, "name": "box"}],
}
LABELME = {
    "version": "5", "imagePath": "a.png",
    "shapes": [
        {"label": "S", "points": [[1, 2]], "shape_type": "point"},
        {"label": "jaw", "points": [[1, 2], [3, 4]], "shape_type": "line"},
        {"label": "N", "points": [[3.25, 4]], "shape_type": "point"},
    ],
}  # fmt: skip
CL = {"a.bmp": {"spacing": 0.1, "landmarks": {"S": [1, 2], "N": [3.25, 4]}}}
AARIZ = {"ceph_id": "a", "landmarks": [
    {"symbol": "S", "title": "Sella", "value": {"x": 1, "y": 2}},
    {"symbol": "N", "title": "Nasion", "value": {"x": 3.25, "y": 4}},
]}  # fmt: skip


def _file(folder, document):
    (folder / "a.json").write_text(json.dumps(document))
    return folder / "a.json"


@pytest.mark.parametrize("document", [LABELME, CL, AARIZ, {"b.bmp": {"landmarks": {"Q": [0, 1]}}, **CL}])
def test_points_in_pixels(tmp_path, document):
    path = _file(tmp_path, document)
    landmarks = read_landmarks(path, case="a", spacing=0.5)
    assert landmarks.names == ("S", "N") and landmarks.meta["frame"] == "image"
    np.testing.assert_array_equal(landmarks.points, [[0.5, 1], [1.625, 2]])
    assert ("passed over: jaw" in " ".join(landmarks.meta["notes"])) == (document is LABELME)
    with pytest.raises(InputError, match="positions are in px; give mm per pixel"):
        read_landmarks(path, case="a")
    with pytest.raises(InputError, match="says frame image, but LPS was given"):
        read_landmarks(path, case="a", frame="LPS")


def test_descriptions_of_aariz_are_titles(tmp_path):
    path = _file(tmp_path, AARIZ)
    assert read_landmarks(path, spacing=1).descriptions == ("Sella", "Nasion")
    assert read_landmarks(path, spacing=1, label_from="description").names == ("Sella", "Nasion")


def test_images_of_coco_are_cases(tmp_path):
    table = read_table(_file(tmp_path, COCO))
    assert set(table.cases) == {"a", "b"} and table.unit == "px"
    np.testing.assert_array_equal(table.pick("a").points, [[1, 2], [3, 4]])
    assert table.pick("b").status == (Status.DEFINED, Status.UNANNOTATED)
    with pytest.raises(InputError, match="holds 2 cases"):
        read_landmarks(tmp_path / "a.json", spacing=1)


def _changed(document, *at_and_value):
    document = copy.deepcopy(document)
    *way, last, value = at_and_value
    inner = document
    for key in way:
        inner = inner[key]
    inner[last] = value
    return document


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (_changed(COCO, "annotations", 0, "image_id", 7), "several individuals of 'x/a.png'"),
        (_changed(COCO, "annotations", 0, "image_id", 8), "annotation 1 is of an image or a category"),
        (_changed(COCO, "annotations", 0, "keypoints", [1, 2, 2]), "annotation 1: x, y, visibility of 2 keypoints"),
        (_changed(COCO, "annotations", 0, "keypoints", ["1", 2, 2] * 2), "'S': position .* is not 2 numbers"),
        (_changed(COCO, "annotations", []), "is a file of COCO, but holds no points"),
        (_changed(COCO, "categories", 0, "keypoints", ["S", "S"]), "has several points called 'S'"),
        (_changed(LABELME, "shapes", 0, "points", []), "point 'S' has no position"),
        (_changed(LABELME, "shapes", 0, "label", None), "label is blank"),
        (_changed(LABELME, "shapes", 0, "points", [[1, 2, 3]]), "is not 2 numbers"),
        (_changed(CL, "a.bmp", "landmarks", "S", 4), "is not 2 numbers"),
        (_changed(AARIZ, "landmarks", 1, "symbol", "S"), "several points called 'S'"),
        ([{"image_id": 1, "category_id": 1, "keypoints": [1, 2, 3], "score": 1}], "is a list of COCO results"),
        ({"a.png12": {"filename": "a.png", "regions": []}}, "is a file of the VGG Image Annotator, which is not read"),
        ([{"id": 1, "annotations": []}], "is a file of Label Studio"),
        ({"name": "x", "points": [{"name": "1", "point": [1, 2, 3]}]}, "is a list of points of Grand Challenge"),
        ({"what": 1}, "nor is it a file of 3D Slicer, COCO keypoints, labelme"),
        ([1, 2], "has no list \"landmarks\""),
        ("text", "has no list \"landmarks\""),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, document, words):
    with pytest.raises(InputError, match=words) as caught:
        read_landmarks(_file(tmp_path, document), case="a", spacing=1)
    assert "a.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_changed_file_is_read_anew(tmp_path):
    assert read_landmarks(_file(tmp_path, LABELME), spacing=1).names == ("S", "N")
    ours = {"frame": "image", "unit": "mm", "landmarks": [{"label": "Q", "position": [1, 2]}]}
    assert read_landmarks(_file(tmp_path, ours)).names == ("Q",)
