import json
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.atomic import read_json
from anatomark.io.fcsv import read_fcsv, write_fcsv
from anatomark.io.landmarks import convert, read_landmarks, write_landmarks
from anatomark.io.names import clean_name
from anatomark.io.slicer import read_mrk, write_mrk

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBER = st.floats(-1e4, 1e4, allow_nan=False)
NAME = (
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
    .map(lambda s: unicodedata.normalize("NFC", s))
    .filter(lambda s: s[0] != "#" and clean_name(s) == s)
)


@st.composite
def landmark_sets(draw, ndim=None):
    names = draw(st.lists(NAME, min_size=1, max_size=6, unique=True))
    d = ndim or draw(st.sampled_from([2, 3]))
    points = np.array([[draw(NUMBER) for _ in range(d)] for _ in names])
    status = tuple(draw(st.sampled_from(list(Status))) for _ in names)
    texts = tuple(draw(st.sampled_from(["", "AC", 'says "x", twice', "p=0.93 r90=1.2mm"])) for _ in names)
    return Landmarks(tuple(names), points, status, descriptions=texts)


def same(a, b, atol=0.0):
    assert a.names == b.names
    assert a.status == b.status
    assert a.descriptions == b.descriptions
    np.testing.assert_allclose(a.points, b.points, atol=atol, rtol=0)


def slicer_document(frame="LPS"):
    point = {
        "id": "7", "label": "AC", "description": "front", "associatedNodeID": "vtkMRMLScalarVolumeNode1",
        "position": [0.1, -53.388409961685827, 1e-7], "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0, 0, 1],
        "selected": False, "locked": True, "visibility": False, "positionStatus": "defined", "future": {"a": [1]},
    }  # fmt: skip
    undefined = {"id": "9", "label": "PC", "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"}
    markup = {
        "type": "Fiducial", "coordinateSystem": frame, "coordinateUnits": "mm", "locked": True, "labelFormat": "%N-%d",
        "controlPoints": [point, undefined], "measurements": [{"name": "x", "enabled": False}],
        "display": {"color": [0.4, 1.0, 1.0], "glyphType": "Sphere3D"},
    }  # fmt: skip
    return {"@schema": "markups-schema-v1.0.3.json#", "markups": [markup], "extra": None}


@QUICK
@given(landmark_sets())
def test_mrk_write_read(tmp_path, landmarks):
    write_mrk(landmarks, tmp_path / "a.mrk.json")
    same(read_mrk(tmp_path / "a.mrk.json"), landmarks)


@QUICK
@given(landmark_sets())
def test_fcsv_write_read(tmp_path, landmarks):
    write_fcsv(landmarks, tmp_path / "a.fcsv")
    same(read_fcsv(tmp_path / "a.fcsv"), landmarks)


@pytest.mark.parametrize("frame", ["LPS", "RAS"])
def test_mrk_round_trip_keeps_every_field(tmp_path, frame):
    document = slicer_document(frame)
    (tmp_path / "a.mrk.json").write_text(json.dumps(document))
    landmarks = read_landmarks(tmp_path / "a.mrk.json")
    sign = -1 if frame == "RAS" else 1
    np.testing.assert_array_equal(landmarks["AC"], [sign * 0.1, sign * -53.388409961685827, 1e-7])
    assert landmarks.status == (Status.DEFINED, Status.UNANNOTATED)
    write_landmarks(landmarks, tmp_path / "b.mrk.json")
    assert json.loads((tmp_path / "b.mrk.json").read_text()) == document
    assert read_landmarks(tmp_path / "b.mrk.json").meta["mrk.json"] == document


def test_mrk_only_what_changed_is_written(tmp_path):
    document = slicer_document("RAS")
    (tmp_path / "a.mrk.json").write_text(json.dumps(document))
    landmarks = read_mrk(tmp_path / "a.mrk.json")
    moved = Landmarks(
        ("AC", "PC", "new"), [[1, 2, 3], [4, 5, 6], [7, 8, 9]], meta=landmarks.meta, descriptions=("front", "", "")
    )
    write_mrk(moved, tmp_path / "b.mrk.json")
    controls = json.loads((tmp_path / "b.mrk.json").read_text())["markups"][0]["controlPoints"]
    before = document["markups"][0]["controlPoints"][0]
    assert controls[0] == {**before, "position": [-1, -2, 3]}
    assert (controls[1]["position"], controls[1]["positionStatus"]) == ([-4, -5, 6], "defined")
    assert controls[2]["position"] == [-7, -8, 9]
    same(read_mrk(tmp_path / "b.mrk.json"), moved)
    assert landmarks.meta["mrk.json"] == document  # the original stays as it was


def test_mrk_units_and_undeclared_frame(tmp_path):
    path = tmp_path / "a.mrk.json"
    document = slicer_document()
    document["markups"][0]["coordinateUnits"] = ["cm", "UCUM", "centimetre"]
    path.write_text(json.dumps(document))
    landmarks = read_mrk(path)
    np.testing.assert_allclose(landmarks["AC"], [1, -533.88409961685827, 1e-6])
    write_mrk(landmarks, tmp_path / "b.mrk.json")
    assert json.loads((tmp_path / "b.mrk.json").read_text()) == document
    del document["markups"][0]["coordinateSystem"], document["markups"][0]["coordinateUnits"]
    path.write_text(json.dumps(document))
    np.testing.assert_array_equal(read_mrk(path, frame="ras")["AC"], [-0.1, 53.388409961685827, 1e-7])


def test_slicers_own_words_for_missing(tmp_path):
    document = slicer_document()
    document["markups"][0]["controlPoints"][1]["positionStatus"] = "missing"
    (tmp_path / "a.mrk.json").write_text(json.dumps(document))
    assert read_mrk(tmp_path / "a.mrk.json").status[1] is Status.ABSENT


def document_of(tmp_path, *changes, name="a.mrk.json"):
    """Slicer's document, changed, in a file; its path."""
    document = slicer_document()
    for change in changes:
        change(document)
    (tmp_path / name).write_text(json.dumps(document))
    return tmp_path / name


def test_preview_with_a_position_is_a_point(tmp_path):
    """As SlicerAutomatedDentalTools' ALI writes all its points."""
    path = document_of(tmp_path, break_markup("positionStatus", "preview"))
    landmarks = read_mrk(path)
    assert landmarks.status == (Status.DEFINED, Status.UNANNOTATED)
    np.testing.assert_array_equal(landmarks["AC"], [0.1, -53.388409961685827, 1e-7])
    assert "positionStatus of AC is 'preview'" in " ".join(landmarks.meta["notes"])
    write_mrk(landmarks, tmp_path / "b.mrk.json")
    assert read_json(tmp_path / "b.mrk.json") == read_json(path)
    nowhere = document_of(tmp_path, lambda d: d["markups"][0]["controlPoints"][1].update(position=None))
    assert read_mrk(nowhere).status[1] is Status.UNANNOTATED


@pytest.mark.parametrize(("number", "sign"), [(1, 1), ("1", 1), (0, -1), ("0", -1), ("ras", -1), (" lps ", 1)])
def test_coordinate_system_as_a_number(tmp_path, number, sign):
    path = document_of(tmp_path, break_markup("coordinateSystem", number))
    np.testing.assert_array_equal(read_mrk(path)["AC"][:2], [sign * 0.1, sign * -53.388409961685827])
    with pytest.raises(InputError, match=r"but .* was given"):
        read_mrk(path, frame="RAS" if sign == 1 else "LPS")


@pytest.mark.parametrize("unit", ["um", "UM", "µm", "micron", "micrometre", ["um", "um", "um"], ["um", "UCUM", "x"]])
def test_units_in_capitals_and_in_full(tmp_path, unit):
    path = document_of(tmp_path, break_markup("coordinateUnits", unit))
    np.testing.assert_allclose(read_mrk(path)["AC"], [1e-4, -53.388409961685827e-3, 1e-10])


@pytest.mark.parametrize("ending", [".mrk.json", ".json"])
def test_the_list_of_points_beside_others(tmp_path, ending):
    """A region of interest in the file is no rival, and survives; ``.json`` is known by what it holds."""
    roi = {"type": "ROI", "controlPoints": [{"label": "R", "position": [0, 0, 0]}], "size": [9, 9, 9]}
    path = document_of(tmp_path, lambda d: d["markups"].insert(0, roi), name=f"a{ending}")
    landmarks = read_landmarks(path)
    assert landmarks.names == ("AC", "PC")
    assert "beside it stand: ROI" in " ".join(landmarks.meta["notes"])
    write_landmarks(landmarks, tmp_path / "b.mrk.json")
    assert read_json(tmp_path / "b.mrk.json") == read_json(path)
    empty = {"type": "Fiducial", "controlPoints": []}
    path = document_of(tmp_path, lambda d: d["markups"].append(empty))
    assert read_landmarks(path).names == ("AC", "PC")


def _three_lists(folder):
    def change(document):
        other = json.loads(json.dumps(document["markups"][0]))
        other["controlPoints"] = [{"id": "1", "label": "Q", "position": [7, 8, 9]}]
        document["markups"] += [{**other, "name": "F"}, {**other, "type": "Curve", "name": "1#c"}]

    return document_of(folder, change)


def test_one_of_several_lists_is_chosen(tmp_path):
    path = _three_lists(tmp_path)
    with pytest.raises(InputError, match=r"3 markups lists .Fiducial, F, 1#c.; choose one .* such as .*a.mrk.json#1"):
        read_landmarks(path)
    assert read_landmarks(f"{path}#1").names == ("AC", "PC")
    for chosen in ("F", "2", "1#c", "3"):
        landmarks = read_landmarks(f"{path}#{chosen}")
        assert landmarks.names == ("Q",) and not landmarks.meta["notes"]
    moved = read_landmarks(f"{path}#F")
    write_landmarks(moved.with_points(moved.points + 1), tmp_path / "b.mrk.json")
    before, after = read_json(path), read_json(tmp_path / "b.mrk.json")
    assert after["markups"][1]["controlPoints"][0]["position"] == [8, 9, 10]
    assert after["markups"][::2] == before["markups"][::2]  # no other list is lost
    convert(f"{path}#F", tmp_path / "c.mrk.json")
    assert read_json(tmp_path / "c.mrk.json")["markups"] == before["markups"][1:2]
    for name in ("G", "4", ""):
        with pytest.raises(InputError, match=f"is called '{name}'"):
            read_landmarks(f"{path}#{name}")
    assert read_landmarks(document_of(tmp_path, lambda d: d["markups"][0].update(name="A")).as_posix() + "#A").names


def test_labels_are_cleaned_and_written_as_they_were(tmp_path):
    path = document_of(tmp_path, break_markup("label", " Nasio\u0301n\u00a0"))
    landmarks = read_mrk(path)
    assert landmarks.names == ("Nasi\u00f3n", "PC")
    write_mrk(landmarks, tmp_path / "b.mrk.json")
    assert read_json(tmp_path / "b.mrk.json") == read_json(path)


def test_descriptions_that_are_names(tmp_path):
    def numbered(document):
        for i, (control, name) in enumerate(zip(document["markups"][0]["controlPoints"], ("AC", "PC"), strict=True)):
            control.update(label=f"F-{i + 1}", description=name)

    path = document_of(tmp_path, numbered)
    assert "give `label_from` description" in " ".join(read_landmarks(path).meta["name_notes"])
    named = read_landmarks(path, label_from="description")
    assert (named.names, named.descriptions, named.meta["notes"]) == (("AC", "PC"), ("F-1", "F-2"), ())
    write_landmarks(named, tmp_path / "b.mrk.json")
    assert read_landmarks(tmp_path / "b.mrk.json").names == ("AC", "PC")


@pytest.mark.parametrize("value", [None, 5, ["x"], {"dimension": [2]}])
def test_odd_values_in_fields_that_do_not_matter(tmp_path, value):
    path = document_of(tmp_path, break_markup("description", value), lambda d: d.update(anatomark=value))
    landmarks = read_mrk(path)
    assert (landmarks.descriptions[0], landmarks.ndim) == ("", 3)
    write_mrk(landmarks, tmp_path / "b.mrk.json")
    assert read_json(tmp_path / "b.mrk.json") == read_json(path)


def break_markup(key, value):
    def change(document):
        target = document["markups"][0] if key in document["markups"][0] else document["markups"][0]["controlPoints"][0]
        target[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("markups"), "not a 3D Slicer markups file"),
        (lambda d: d["markups"].append(d["markups"][0]), r"2 markups lists \(Fiducial, Fiducial\)"),
        (lambda d: d["markups"][0].pop("coordinateSystem"), "frame is not stated; give `frame`"),
        (break_markup("coordinateSystem", "IJK"), "frame 'IJK' is not known"),
        (break_markup("coordinateUnits", "inch"), "unit 'inch' is not known"),
        (break_markup("position", [1, 2]), r"'AC': position \[1, 2\] is not 3 numbers"),
        (break_markup("position", ["a", 2, 3]), "not 3 numbers"),
        (break_markup("positionStatus", "maybe"), "'maybe' is not known"),
        (break_markup("label", "PC"), "control point 2: label 'PC' appears more than once .control point 1."),
        (break_markup("label", "PC "), "label 'PC' appears more than once"),
        (break_markup("label", None), "control point 1 has no label"),
        (break_markup("label", ["AC"]), "control point 1 has no label"),
        (break_markup("label", True), "control point 1 has no label"),
        (break_markup("label", " "), "control point 1: the label is blank; the descriptions may be names"),
        (break_markup("coordinateSystem", 2), "frame '2' is not known"),
        (break_markup("coordinateSystem", 1.0), "coordinateSystem 1.0 is not known"),
        (break_markup("coordinateSystem", True), "coordinateSystem True is not known"),
        (break_markup("coordinateSystem", ["LPS"]), "is not known; it is LPS or RAS"),
        (break_markup("coordinateUnits", ["mm", "mm", "um"]), "its axes have different units, mm, mm, um"),
        (break_markup("coordinateUnits", [["mm"]]), "is not known; it is one of"),
        (break_markup("coordinateUnits", 5), "unit '5' is not known"),
        (break_markup("position", None), "not 3 numbers"),
        (break_markup("position", {"x": 1}), "not 3 numbers"),
        (break_markup("position", [10**299, 1, "z" * 999]), "not 3 numbers"),
        (break_markup("positionStatus", ["defined"]), "is not known"),
        (break_markup("controlPoints", {"a": 1}), "1 markups lists"),
        (break_markup("controlPoints", [1]), "control point 1 has no label"),
        (lambda d: d.update(markups=[1]), "not a 3D Slicer markups file"),
        (lambda d: d.update(markups=[]), "0 markups lists"),
        (lambda d: d["markups"].append({**d["markups"][0], "name": "G"}), r"2 markups lists \(Fiducial, G\)"),
        (lambda d: d.update(markups=[{"type": "Line"}, {"type": "ROI"}]), r"2 markups lists \(Line, ROI\)"),
        (lambda d: d["markups"][0]["controlPoints"][0].pop("label"), "control point 1 has no label"),
    ],
)
def test_bad_mrk(tmp_path, change, words):
    document = slicer_document()
    change(document)
    (tmp_path / "a.mrk.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=words) as caught:
        read_landmarks(tmp_path / "a.mrk.json")
    assert "\n" not in str(caught.value)
    assert "a.mrk.json" in str(caught.value)


OLD = """# Markups fiducial file version = 4.6
# CoordinateSystem = 0
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_1,0.547527528125,4.007721875,-5.85731125,0,0,0,1,1,1,0,1,AC,vtkMRMLScalarVolumeNode1
vtkMRMLMarkupsFiducialNode_2,0.31921995625,-23.23456875,-3.70,0,0,0,1,1,1,0,2,"PC, ""the"" back",
"""
NEW = """# Markups fiducial file version = 4.13
# CoordinateSystem = LPS
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID

1,1.5,2.50,3,0,0,0,1,1,1,0,A,,,2,0
2,0,0,0,0,0,0,1,1,1,0,B,,,0,0
"""
SHORT = "# CoordinateSystem = 1\n# columns = label,x,y,z,sel,vis\nA,1,2,3,1,1\n"


def test_fcsv_headers(tmp_path):
    path = tmp_path / "a.fcsv"
    path.write_text(OLD)
    old = read_landmarks(path)
    np.testing.assert_array_equal(old["1"], [-0.547527528125, -4.007721875, -5.85731125])
    assert old.descriptions == ("AC", 'PC, "the" back')
    path.write_text(NEW)
    new = read_landmarks(path)
    np.testing.assert_array_equal(new["A"], [1.5, 2.5, 3])
    assert new.status[1] is Status.UNANNOTATED
    path.write_text(SHORT)
    np.testing.assert_array_equal(read_landmarks(path)["A"], [1, 2, 3])
    path.write_text(OLD.replace("CoordinateSystem = 0", "CoordinateSystem = RAS"))
    np.testing.assert_array_equal(read_landmarks(path).points, old.points)


@pytest.mark.parametrize("text", [OLD, NEW.replace("\n\n", "\n"), SHORT])
def test_fcsv_round_trip_keeps_every_cell(tmp_path, text):
    (tmp_path / "a.fcsv").write_text(text)
    write_landmarks(read_landmarks(tmp_path / "a.fcsv"), tmp_path / "b.fcsv")
    assert (tmp_path / "b.fcsv").read_text() == text


def test_fcsv_moved_point(tmp_path):
    (tmp_path / "a.fcsv").write_text(OLD)
    landmarks = read_fcsv(tmp_path / "a.fcsv")
    write_fcsv(landmarks.with_points(landmarks.points + [[1.0, 0, 0], [0, 0, 0]]), tmp_path / "b.fcsv")
    before, after = OLD.splitlines(), (tmp_path / "b.fcsv").read_text().splitlines()
    assert after[4] == before[4]
    assert after[3].replace(after[3].split(",")[1], before[3].split(",")[1]) == before[3]
    np.testing.assert_allclose(read_fcsv(tmp_path / "b.fcsv")["1"], landmarks["1"] + [1, 0, 0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OLD.replace("# CoordinateSystem = 0\n", ""), "frame is not stated"),
        (OLD.replace("= 0", "= 2"), "CoordinateSystem = 2 is not known"),
        (OLD.replace("4.007721875", "four"), "row 4: position .* is not 3 numbers"),
        (OLD.replace("0,2,", "0,1,"), "row 5: label '1' appears more than once .row 4."),
        (OLD.replace("0,2,", "0,,"), "row 5: the label is blank"),
        (OLD + "1,2,3\n", "row 6: has 3 cells"),
        ("# CoordinateSystem = 0\n", "no landmarks"),
        (SHORT.replace("label,", "name,"), "has no 'label'"),
        (SHORT.replace("label,", "label,label,"), "names 'label' twice"),
    ],
)
def test_bad_fcsv(tmp_path, text, words):
    (tmp_path / "a.fcsv").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_landmarks(tmp_path / "a.fcsv")
    assert "\n" not in str(caught.value)
    assert "a.fcsv" in str(caught.value)


@QUICK
@given(landmark_sets(ndim=3))
def test_lps_ras(tmp_path, landmarks):
    ras = slicer_document("RAS")
    ras["markups"][0]["controlPoints"] = []
    write_mrk(
        Landmarks(landmarks.names, landmarks.points, landmarks.status, meta={"mrk.json": ras}), tmp_path / "r.mrk.json"
    )
    controls = read_json(tmp_path / "r.mrk.json")["markups"][0]["controlPoints"]
    for control, point, defined in zip(controls, landmarks.points, landmarks.defined, strict=True):
        if defined:
            assert control["position"] == [-point[0], -point[1], point[2]]
    np.testing.assert_array_equal(read_mrk(tmp_path / "r.mrk.json").points, landmarks.points)
