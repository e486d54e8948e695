"""Damaged landmark files: read, or refused in one line that names the file; what is read is written and read again."""

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomark.errors import InputError
from anatomark.io.landmarks import read_landmarks, write_landmarks
from anatomark.io.slicer import says_absent

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
POINT = {"label": "a", "description": "AC p=0.93 r90=1.2mm", "position": [1, 2, 3], "positionStatus": "defined"}
OTHER = {"label": "b", "positionStatus": "undefined", "description": "absent: x"}
MARKUP = {"type": "Fiducial", "coordinateSystem": "RAS", "coordinateUnits": "mm", "controlPoints": [POINT, OTHER]}
ENTRY = {"label": "a", "position": [1, 2, 3], "score": 0.5, "radius90": 1.0, "covariance": np.eye(3).tolist()}
DOCUMENTS = {
    "a.mrk.json": {"@schema": "x", "markups": [MARKUP], "anatomark": {"dimension": 2}},
    "a.json": {
        "frame": "LPS",
        "unit": "mm",
        "landmarks": [ENTRY, {"label": "b", "status": "absent", "position": None}],
    },
}
FCSV = """# CoordinateSystem = 0
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
a,-1.5,92.25,-18.0,0,0,0,1,1,1,0,nasion,front,
b,0.75,21.5,30.125,0,0,0,1,1,1,0,sella,,vtkMRMLScalarVolumeNode1,2,0
"""
TABLE = """# frame=LPS unit=mm
case,label,x,y,z,status,description,score
c,nasion,1.5,-2.5,3,,front,0.5
c,sella,,,,absent,,
"""
DLC = "scorer,A,A,A\nbodyparts,nose,nose,nose\ncoords,x,y,likelihood\nimg.png,1,2,0.5\n"
TEXTS = {"a.fcsv": FCSV, "a.csv": TABLE, "a.tsv": TABLE.replace(",", "\t"), "dlc.csv": DLC}
ODD = st.sampled_from([
    None, True, 0, -1, 5.5, 10**290, "", " ", "x", "\n", "\0", [], {}, [[1]], ["mm", "um"], {"a": 1}, "preview",
])  # fmt: skip
PIECES = st.sampled_from([*',;"\n\r\0#=.-\té', "1", "e9", "nan", "inf", "_x", "sep=;\n", ",,,,", "\u2028", "\ufeff"])


def places(value):
    """(container, key) of everything in a document."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def read_write_read(path):
    try:
        landmarks = read_landmarks(path, spacing=1)
    except InputError as error:
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 600
        return
    for ending in ("mrk.json", "fcsv", "csv", "json") if len(landmarks) else ():
        written = path.with_name(f"written.{ending}")
        write_landmarks(landmarks, written)
        again = read_landmarks(written)
        assert again.names == landmarks.names
        if ending in ("csv", "json") or not any(map(says_absent, landmarks.descriptions)):
            assert again.status == landmarks.status
        if again.ndim == landmarks.ndim:
            np.testing.assert_allclose(again.points, landmarks.points, rtol=1e-12)


@pytest.mark.parametrize("name", DOCUMENTS)
@MANY
@given(st.data())
def test_odd_values_in_json(tmp_path, name, data):
    document = copy.deepcopy(DOCUMENTS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(list(places(document)) or [(document, "x")]))
        if data.draw(st.booleans()) or not container:
            container[key] = copy.deepcopy(data.draw(ODD))
        else:
            del container[key]
    (tmp_path / name).write_text(json.dumps(document))
    read_write_read(tmp_path / name)


@pytest.mark.parametrize("name", TEXTS)
@MANY
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4), PIECES), min_size=1, max_size=4))
def test_odd_characters_in_tables(tmp_path, name, changes):
    text = TEXTS[name]
    for at, length, piece in changes:
        at %= len(text) + 1
        text = text[:at] + piece + text[at + length :]
    (tmp_path / name).write_text(text, newline="")
    read_write_read(tmp_path / name)
