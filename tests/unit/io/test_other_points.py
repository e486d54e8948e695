"""Landmark files of other programs: what they hold, what they state, what must be given; damaged ones are refused."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.landmarks import READ_ONLY, convert, read_landmarks, write_landmarks
from anatomark.io.tables import read_table

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
AMIRA = """# Avizo 3D ASCII 2.0

define Markers {n}

Parameters {{
    NumSets 1,
    ContentType "LandmarkSet"
}}

Markers {{ float[3] Coordinates }} @1
Markers {{ int MarkerType }} @2

# Data section follows
@1
{points}

@2
{types}
"""


def write_points(name, points, folder):
    """``points`` (N, 2 or 3) as the program of ``name`` writes them; the names that come of it."""
    rows = [[repr(float(v)) for v in p] for p in points]
    count, numbers = len(rows), [str(i + 1) for i in range(len(rows))]
    body = "\n".join(map(" ".join, rows))
    texts = {
        "a.landmarkAscii": AMIRA.format(n=count, points=body, types="\n".join("1" * count)),
        "a.pts": "Version 1.0\n" + "\n".join([str(count), *(f"S{i:03} {' '.join(r)}" for i, r in enumerate(rows))]),
        "300w.pts": f"version: 1\nn_points:  {count}\n{{\n{body}\n}}\n",
        "a.tag": "MNI Tag Point File\nVolumes = 1;\n% a remark\n\nPoints =\n"
        + "\n".join(f' {" ".join(r)} 1 1 1 "p {i}"' for i, r in enumerate(rows)) + ";\n",
        "a.tps": f"LM={count}\n{body}\nIMAGE=C:\\scans\\a.jpg\nID=0\n",
        "3d.tps": f"LM3={count}\n{body}\nID=0\n",
        "a.txt": "\n".join(map(",".join, rows)) + "\n",
        "blanks.txt": body,
    }  # fmt: skip
    (folder / name).write_text(texts[name])
    names = {"a.pts": [f"S{i:03}" for i in range(count)], "a.tag": [f"p {i}" for i in range(count)]}
    return tuple(names.get(name, numbers))


FLAT, SOLID = ["300w.pts", "a.tps", "a.txt", "blanks.txt"], ["a.landmarkAscii", "a.pts", "a.tag", "3d.tps", "a.txt"]
NUMBER = st.floats(-1e4, 1e4)


@QUICK
@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=5), st.sampled_from(SOLID), st.booleans())
def test_solid(tmp_path, points, name, ras):
    names = write_points(name, points, tmp_path)
    given_ = {} if name == "a.tag" else {"frame": "RAS" if ras else "LPS", "unit": "mm"}
    signs = [-1, -1, 1] if ras or name == "a.tag" else [1, 1, 1]
    landmarks = read_landmarks(tmp_path / name, **given_)
    assert landmarks.names == names
    np.testing.assert_array_equal(landmarks.points, np.array(points) * signs)
    convert(tmp_path / name, tmp_path / "b.mrk.json", **given_)
    np.testing.assert_array_equal(read_landmarks(tmp_path / "b.mrk.json").points, landmarks.points)


@QUICK
@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=5), st.sampled_from(FLAT))
def test_flat(tmp_path, points, name):
    names = write_points(name, points, tmp_path)
    landmarks = read_landmarks(tmp_path / name, frame="image", unit="px", spacing=0.5)
    assert landmarks.names == names
    np.testing.assert_allclose(landmarks.points, np.array(points) * 0.5)
    assert ("upwards" in " ".join(landmarks.meta["notes"])) == (name == "a.tps")


@pytest.mark.parametrize("name", sorted({*FLAT, *SOLID}))
def test_what_a_file_does_not_state_must_be_given(tmp_path, name):
    points = [[1, 2, 3]] if name in SOLID else [[1, 2]]
    write_points(name, points, tmp_path)
    if name == "a.tag":  # MNI's world is RAS in mm
        np.testing.assert_array_equal(read_landmarks(tmp_path / name).points, [[-1, -2, 3]])
        with pytest.raises(InputError, match="says frame RAS, but LPS was given"):
            read_landmarks(tmp_path / name, frame="LPS")
        return
    words = "put that picture beside the file" if name == "a.tps" else "frame is not stated; give `frame`"
    with pytest.raises(InputError, match=words):
        read_landmarks(tmp_path / name)
    with pytest.raises(InputError, match="unit is not stated; give `unit`"):
        read_landmarks(tmp_path / name, frame="LPS")
    with pytest.raises(InputError, match=r"frame (image|LPS) for .D positions"):
        read_landmarks(tmp_path / name, frame="image" if name in SOLID else "LPS", unit="mm")


def test_microns(tmp_path):
    write_points("a.landmarkAscii", [[1000, 2000, 3000]], tmp_path)
    landmarks = read_landmarks(tmp_path / "a.landmarkAscii", frame="lps", unit="UM")
    np.testing.assert_allclose(landmarks.points, [[1, 2, 3]])
    assert landmarks.meta["unit"] == "mm"


def test_specimens_of_a_tps_are_cases(tmp_path):
    text = "LM=2\n10 20\nNA NA\nIMAGE=a.jpg\nID=0\nSCALE=0.5\nLM=2\n1 2\n3 4\nIMAGE=sub/b.jpg\nID=1\nSCALE=2\n"
    (tmp_path / "a.tps").write_text(text)
    table = read_table(tmp_path / "a.tps", "image", "mm")
    assert list(table.cases) == ["a", "b"]
    assert table.pick("a").status == (Status.DEFINED, Status.UNANNOTATED)
    np.testing.assert_array_equal(table.pick("a")["1"], [5, 10])
    np.testing.assert_array_equal(table.pick("b").points, [[2, 4], [6, 8]])
    pixels = read_table(tmp_path / "a.tps", "image", "px").pick("b")
    np.testing.assert_array_equal(pixels.points, [[1, 2], [3, 4]])
    for old, new, names in (("sub/b", "a", ["0", "1"]), ("ID=1\n", "", ["a", "b"])):
        (tmp_path / "a.tps").write_text(text.replace(old, new))
        assert list(read_table(tmp_path / "a.tps", "image", "px").cases) == names


@pytest.mark.parametrize("image", ["a.png", "D:\\scans\\a.png", "../elsewhere/a.png"])
def test_y_of_tpsdig_is_turned_round_by_the_picture_beside_the_file(tmp_path, image):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[10, 25] = 255
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / "a.png"))
    text = f"LM=3\n25 30\nNA NA\n1.5 40\nIMAGE={image}\nSCALE=0.5\n"
    (tmp_path / "a.tps").write_text(text)
    landmarks = read_landmarks(tmp_path / "a.tps", unit="px", spacing=0.5)
    np.testing.assert_array_equal(landmarks.points, [[12.5, 5], [np.nan, np.nan], [0.75, 0]])
    assert landmarks.meta["frame"] == "image" and "is turned round" in landmarks.meta["notes"][0]
    np.testing.assert_array_equal(read_landmarks(tmp_path / "a.tps", unit="mm").points, landmarks.points)
    as_said = read_landmarks(tmp_path / "a.tps", frame="image", unit="px", spacing=0.5)
    np.testing.assert_array_equal(as_said.points[0], [12.5, 15])
    (tmp_path / "a.tps").write_text(text.replace("IMAGE", "COMMENT"))
    with pytest.raises(InputError, match="a specimen names no IMAGE"):
        read_landmarks(tmp_path / "a.tps", unit="px", spacing=0.5)


def test_points_that_were_not_placed(tmp_path):
    (tmp_path / "a.pts").write_text("Version 1.0\n2\nS0 1 2 3\nS1 9999 9999.0 9999.00\n")
    assert read_landmarks(tmp_path / "a.pts", frame="LPS", unit="mm").status == (Status.DEFINED, Status.UNANNOTATED)


def test_classes_behind_the_points_of_isbi(tmp_path):
    (tmp_path / "a.txt").write_text("835,996\n1473,1029\n1\n3\n")
    landmarks = read_landmarks(tmp_path / "a.txt", frame="image", unit="px", spacing=0.1)
    np.testing.assert_allclose(landmarks.points, [[83.5, 99.6], [147.3, 102.9]])


BAD = {
    "blank.txt": ("\n\n", "holds no landmarks"),
    "words.txt": ("1,2\nhello\n", "row 2: 'hello' is not x,y"),
    "uneven.txt": ("1,2\n1,2,3\n", "row 2: 3 numbers, 2 or 3 are needed"),
    "four.txt": ("1,2,3,4\n", "row 1: 4 numbers"),
    "nan.txt": ("nan,1\n", "row 1: 'nan,1' is not x,y"),
    "no.tps": ("10 20\n", "row 1: .* LM="),
    "few.tps": ("LM=3\n1 2\n3 4\nID=0\n", "row 4: 'ID=0' is no landmark; 3 are announced in row 1"),
    "count.tps": ("LM=many\n", "'many' is not a number of landmarks"),
    "curves.tps": ("LM=1\n1 2\nCURVES=1\nPOINTS=1\n1 2\n", "row 3: CURVES are not read"),
    "scale.tps": ("LM=1\n1 2\nSCALE=0\n", "SCALE is '0'"),
    "no.pts": ("1 2 3\n", "begins neither with"),
    "count.pts": ("Version 1.0\n3\nS0 1 2 3\n", "announces 3 landmarks, holds 1"),
    "cells.pts": ("Version 1.0\n1\nS0 1 2 x\n", "row 3: position '1, 2, x' is not 3 numbers"),
    "count300.pts": ("version: 1\nn_points: 2\n{\n1 2\n}\n", "announces 2 landmarks, holds 1"),
    "twice.pts": ("Version 1.0\n2\nS0 1 2 3\nS0 1 2 3\n", "row 4: label 'S0' is already in row 3"),
    "no.landmarkAscii": ("hello\n", "no landmark file of Amira"),
    "binary.landmarkAscii": ("# AmiraMesh BINARY-LITTLE-ENDIAN 2.1\n", "is binary"),
    "sets.landmarkAscii": (AMIRA.format(n=1, points="1 2 3", types="1").replace("NumSets 1", "NumSets 2"), "2 sets"),
    "count.landmarkAscii": (AMIRA.format(n=2, points="1 2 3", types="1"), "announces 2 landmarks, holds 1"),
    "empty.landmarkAscii": ("# Avizo 3D ASCII 2.0\n", "says nothing of 'Markers'"),
    "no.tag": ("Points = 1 2 3;\n", "no MNI tag point file"),
    "open.tag": ("MNI Tag Point File\nVolumes = 1;\nPoints =\n 1 2 3\n", "no MNI tag point file, or has no"),
    "two.tag": ("MNI Tag Point File\nVolumes = 2;\nPoints =\n 1 2 3 1 2 3;\n", "points of 2 volumes"),
    "cells.tag": ('MNI Tag Point File\nVolumes = 1;\nPoints =\n 1 2 "a";\n', "row 4: '1 2 \"a\"' is not x y z"),
    "long.txt": ("1,2\n" * 500_002, "more than 500000 lines"),
    "label.tag": ('MNI Tag Point File\nVolumes = 1;\nPoints =\n 1 2 3 "a"\n 1 2 3 "";\n', "row 5: the label is blank"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_refused(tmp_path, name):
    text, words = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        solid = name.endswith((".pts", ".landmarkAscii", ".tag"))
        read_landmarks(tmp_path / name, frame="RAS" if solid else "image", unit="mm")
    assert name in str(caught.value) and "\n" not in str(caught.value)


PIECES = [*'31 2{}@".,;#:x=\n', "LM=1\n", "Version 1.0\n1\n", "version: 1\nn_points: 1\n", "1 2 3\n", "SCALE=0.1\n"]
HEADS = ["", "MNI Tag Point File\nVolumes = 1;\nPoints =\n", AMIRA.split("{points}")[0].format(n=1)]


@pytest.mark.parametrize("ending", READ_ONLY)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join), head=st.sampled_from(HEADS))
def test_any_text_is_read_or_refused(tmp_path, ending, text, head):
    (tmp_path / f"a{ending}").write_text(head + text, encoding="utf-8", errors="ignore")
    for kind in (("RAS", "mm"), ("image", "px")):
        try:
            landmarks = read_landmarks(tmp_path / f"a{ending}", frame=kind[0], unit=kind[1], spacing=1)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert len(landmarks) and np.isfinite(landmarks.points[landmarks.defined]).all()


@pytest.mark.parametrize("ending", READ_ONLY)
def test_they_are_not_written(tmp_path, ending):
    with pytest.raises(InputError, match=r"is read, not written; known endings: \.mrk\.json"):
        write_landmarks(Landmarks(("a",), [[1, 2, 3]]), tmp_path / f"a{ending}")


DLC = "scorer,A,A,A,A,A,A\nbodyparts,nose,nose,nose,ear,ear,ear\ncoords,x,y,likelihood,x,y,likelihood\n"


def test_deeplabcut(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(DLC + "img1.png,10,20,0.9,,,\n")
    landmarks = read_landmarks(path, spacing=0.1, case="whatever")
    np.testing.assert_allclose(landmarks["nose"], [1, 2])
    assert landmarks.status == (Status.DEFINED, Status.UNANNOTATED)
    np.testing.assert_array_equal(landmarks.score, [0.9, np.nan])
    path.write_text(DLC + "a/img1.png,10,20,0.9,,,\na/img2.png,1,2,0.5,3,4,0.5\n")
    np.testing.assert_allclose(read_landmarks(path, spacing=1, case="img2").points, [[1, 2], [3, 4]])
    with pytest.raises(InputError, match="positions are in px"):
        read_landmarks(path, case="img2")
    text = "scorer,,,A,A\nbodyparts,,,nose,nose\ncoords,,,x,y\nlabeled-data,one,i.png,1,2\nlabeled-data,two,i.png,3,4\n"
    path.write_text(text)
    assert list(read_table(path).cases) == ["labeled-data/one/i", "labeled-data/two/i"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DLC.replace("bodyparts", "parts") + "i.png,1,2,3,4,5,6\n", "no row 'bodyparts'"),
        (DLC + "i.png,1,2\n", "row 4: has 3 cells for 7 columns"),
        (DLC, "header but no rows"),
        (DLC.replace("bodyparts", "individuals,a,a,a,b,b,b\nbodyparts") + "i,1,2,3,4,5,6\n", "several individuals"),
        (
            DLC.replace("coords,x,y", "coords,u,v").replace("x,y", "u,v").replace("likelihood", "w"),
            "do not go together",
        ),
        (DLC + "i.png,1,two,3,4,5,6\n", "row 4: position '1, two'"),
    ],
)
def test_bad_deeplabcut(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_landmarks(tmp_path / "a.csv", spacing=1)
