import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.io.landmarks import convert, read_landmarks, write_landmarks
from anatomark.io.other_tables import case_names
from anatomark.io.sheets import write_csv
from anatomark.io.tables import read_table, write_table

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAME = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6)
LABELS = st.lists(
    st.text("abcXYZ_-.,;\"' é1", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=1, unique=True
)


@st.composite
def landmark_sets(draw, ndim=None, names=None):
    names = names or draw(LABELS)
    d = ndim or draw(st.sampled_from([2, 3]))
    points = draw(st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * d), min_size=len(names), max_size=len(names)))
    status = tuple(draw(st.sampled_from(list(Status))) for _ in names)
    return Landmarks(tuple(names), points, status)


@st.composite
def tables(draw):
    names, d = draw(LABELS), draw(st.sampled_from([2, 3]))
    observers = draw(st.sampled_from([("",), ("senior", "junior")]))
    cases = draw(
        st.lists(
            st.text("ab01 é", min_size=1, max_size=4).map(str.strip).filter(bool), min_size=1, max_size=3, unique=True
        )
    )
    return {c: {o: draw(landmark_sets(d, names)) for o in observers} for c in cases}


def write(cases, path, wide, unit="mm"):
    """A table as people write them: many cases, several observers, tidy or wide."""
    some = next(iter(next(iter(cases.values())).values()))
    axes, frame = "xyz"[: some.ndim], "LPS" if some.ndim == 3 else "image"
    rows = []
    for case, found in cases.items():
        for observer, one in found.items():
            keys = {"case": case, **({"observer": observer} if observer else {})}
            cells = [dict.fromkeys(axes, "") if s is not Status.DEFINED else dict(zip(axes, p, strict=True))
                     for p, s in zip(one.points, one.status, strict=True)]  # fmt: skip
            if wide:
                for c, s in zip(cells, one.status, strict=True):
                    c["x"] = "absent" if s is Status.ABSENT else c["x"] if s is Status.DEFINED else "nan"
                places = zip(one.names, cells, strict=True)
                rows.append(keys | {f"{n}_{a}": c[a] for n, c in places for a in axes})
            else:
                pairs = zip(one.names, one.status, cells, strict=True)
                rows += [keys | {"label": n, **c, "status": str(s)} for n, s, c in pairs]
    write_csv(path, rows, head=f"# frame={frame} unit={unit}\n")


def same(a, b, atol=0.0):
    assert a.names == b.names
    assert a.status == b.status
    np.testing.assert_allclose(a.points, b.points, atol=atol, rtol=0)


@QUICK
@given(tables(), st.booleans(), st.sampled_from(["csv", "tsv"]))
def test_table_write_read(tmp_path, cases, wide, ending):
    write(cases, tmp_path / f"t.{ending}", wide)
    back = read_table(tmp_path / f"t.{ending}")
    assert list(back.cases) == list(cases)
    for case, found in cases.items():
        assert list(back.cases[case]) == list(found)
        for observer, landmarks in found.items():
            same(back.pick(case, observer or None), landmarks)


@QUICK
@given(landmark_sets(), st.sampled_from(["csv", "tsv", "json", "mrk.json", "fcsv"]))
def test_front_door_write_read(tmp_path, landmarks, ending):
    if landmarks.names[0].startswith("#") and ending == "fcsv":
        return
    write_landmarks(landmarks, tmp_path / f"a.{ending}")
    same(read_landmarks(tmp_path / f"a.{ending}"), landmarks)


@QUICK
@given(landmark_sets(2), st.floats(0.01, 10), st.floats(0.01, 10), st.booleans())
def test_px_mm(tmp_path, landmarks, x, y, wide):
    path = tmp_path / "a.csv"
    grid = Grid.from_axes((9, 9), [[0, x], [y, 0]], (0, 0))
    if wide:
        pixels = [[float("nan")] * 2 if s is not Status.DEFINED else grid.to_index(p)[::-1]
                  for p, s in zip(landmarks.points, landmarks.status, strict=True)]  # fmt: skip
        write({"c": {"": Landmarks(landmarks.names, pixels, landmarks.status)}}, path, True, "px")
    else:
        write_table(landmarks, path, unit="px", grid=grid)
    same(read_landmarks(path, spacing=(x, y)), landmarks, atol=1e-8)
    same(read_landmarks(path, spacing=grid), landmarks, atol=1e-8)
    raw = read_table(path).pick()
    np.testing.assert_allclose(raw.points * [x, y], landmarks.points, atol=1e-8)


def test_2d_with_spacing_has_both_units(tmp_path):
    path = tmp_path / "a.csv"
    landmarks = Landmarks(("S", "N"), [[1.0, 2.0], [3.0, 4.0]])
    write_landmarks(landmarks, path, spacing=(0.5, 0.25), case="7")
    lines = path.read_text().splitlines()
    assert lines[:3] == ["# frame=image unit=mm", "case,label,x_mm,y_mm,x_px,y_px", "7,S,1.0,2.0,2.0,8.0"]
    same(read_landmarks(path), landmarks)
    write_landmarks(landmarks, path, spacing=(0.5, 0.25), unit="px")
    assert path.read_text().splitlines()[2] == "S,2.0,8.0"
    with pytest.raises(InputError, match="need the spacing"):
        write_landmarks(landmarks, path, unit="px")
    with pytest.raises(InputError, match=r"px; give mm per pixel"):
        read_landmarks(path)


@pytest.mark.parametrize("direction", [0.0, 20.0])
@pytest.mark.parametrize(("column", "row"), [(3, 2), (4, 5), (1, 3), (2, 4)])
def test_a_place_that_was_corrected_in_one_of_two_units(tmp_path, direction, column, row):
    """As one does who corrects x_px of a prediction in Excel; where axes are turned, nothing can be said."""
    turn = np.radians(direction)
    axes = [[-0.4 * np.sin(turn), 0.4 * np.cos(turn)], [0.4 * np.cos(turn), 0.4 * np.sin(turn)]]
    grid = Grid.from_axes((300, 300), axes, (3.0, -7.0))
    points = np.random.default_rng(0).uniform(0, 90, (5, 2))
    write_landmarks(Landmarks(tuple("abcde"), points), tmp_path / "a.csv", spacing=grid)
    np.testing.assert_array_equal(read_landmarks(tmp_path / "a.csv").points, points)
    lines = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()]
    lines[row][column] = str(float(lines[row][column]) + 4)
    (tmp_path / "a.csv").write_text("\n".join(map(",".join, lines)) + "\n")
    if direction:
        read_landmarks(tmp_path / "a.csv")
        return
    with pytest.raises(InputError, match=f"row {row + 1}: [xy]_mm .* and [xy]_px .* are not the same place"):
        read_landmarks(tmp_path / "a.csv")


def test_json_keeps_everything(tmp_path):
    covariance = np.array([np.diag([1.0, 2, 3]), np.full((3, 3), np.nan)])
    landmarks = Landmarks(
        ("a", "b"), [[1, 2, 3], [np.nan] * 3], (Status.DEFINED, Status.ABSENT), np.array([0.9, 0.1]), covariance,
        np.array([1.5, np.nan]), ("A", ""), {"json": {"model": "abc"}},
    )  # fmt: skip
    write_landmarks(landmarks, tmp_path / "a.json")
    back = read_landmarks(tmp_path / "a.json")
    same(back, landmarks)
    np.testing.assert_array_equal(back.score, landmarks.score)
    np.testing.assert_array_equal(back.covariance, covariance)
    np.testing.assert_array_equal(back.radius90, landmarks.radius90)
    assert back.descriptions == ("A", "")
    assert back.meta["json"]["model"] == "abc"


def test_frame_from_the_file_or_the_user(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label,x,y,z\na,1,2,3\n")
    np.testing.assert_array_equal(read_landmarks(path, frame="RAS", unit="mm")["a"], [-1, -2, 3])
    path.write_text("# frame=RAS unit=mm\nlabel,x,y,z\na,1,2,3\n")
    np.testing.assert_array_equal(read_landmarks(path)["a"], [-1, -2, 3])
    with pytest.raises(InputError, match="says frame RAS, but LPS was given"):
        read_landmarks(path, frame="LPS")


TWO = """# frame=image unit=mm
case,label,x,y,observer
1,S,1,2,senior
1,N,3,4,senior
1,N,5,8,junior
1,S,1,4,junior
2,S,0,0,senior
"""


def test_cases_and_observers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(TWO)
    np.testing.assert_array_equal(read_landmarks(f"{path}#senior", case="1")["N"], [3, 4])
    mean = read_landmarks(f"{path}#mean", case="1")
    np.testing.assert_array_equal([mean["S"], mean["N"]], [[1, 3], [4, 6]])
    np.testing.assert_array_equal(read_landmarks(path, case="2")["S"], [0, 0])
    for given_path, case, words in (
        (path, "1", "holds observers senior, junior; choose one, e.g. t.csv#senior"),
        (path, None, "holds 2 cases"),
        (path, "3", "no rows for case '3'"),
        (f"{path}#seniors", "1", "did you mean 'senior'"),
        (f"{tmp_path}/a.fcsv#senior", "1", "only tables have observers"),
    ):
        with pytest.raises(InputError, match=words):
            read_landmarks(given_path, case=case)


def test_mean_over_those_who_defined_it(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "# frame=image unit=mm\nlabel,x,y,observer,status\n"
        "a,1,1,A,\na,,,B,absent\nb,,,A,absent\nb,,,B,\nc,,,A,\nc,,,B,\n"
    )
    mean = read_landmarks(f"{path}#mean")
    assert mean.status == (Status.DEFINED, Status.ABSENT, Status.UNANNOTATED)
    np.testing.assert_array_equal(mean["a"], [1, 1])


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "t.csv"
    for x in (1, 222):
        path.write_text(f"# frame=image unit=mm\nlabel,x,y\na,{x},2\n")
        assert read_landmarks(path)["a"][0] == x


def test_separators(tmp_path):
    for name, sep in (("a.csv", ";"), ("a.tsv", "\t"), ("b.csv", "\t")):
        text = "# frame=LPS unit=mm\nlabel,x,y,z\na,1,2,3\n\n".replace(",", sep)
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        np.testing.assert_array_equal(read_landmarks(tmp_path / name)["a"], [1, 2, 3])


HEAD = "# frame=LPS unit=mm\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,x,y,z\na,1,2,3\n", "frame is not stated; add a first line"),
        ("# frame=LPS\nlabel,x,y,z\na,1,2,3\n", "unit is not stated"),
        ("# frame=XYZ unit=mm\nlabel,x,y,z\na,1,2,3\n", "frame 'XYZ' is not known"),
        ("# frame=LPS unit=inch\nlabel,x,y,z\na,1,2,3\n", "unit 'inch' is not known"),
        ("# frame=LPS unit=px\nlabel,x,y,z\na,1,2,3\n", "unit 'px' is not known here"),
        ("# frame=LPS unit=mm\nlabel,x,y\na,1,2\n", "frame LPS for 2D positions; it must be image"),
        ("# frame=image unit=mm\nlabel,x,y,z\na,1,2,3\n", "must be LPS or RAS"),
        (HEAD + "label,x,y,z\na,1,2,3\na,1,2,3\n", "row 4: label 'a' is already in row 3"),
        (HEAD + "case,label,x,y,z\nk,a,1,2,3\nk,a,1,2,3\n", "row 4: label 'a' of case 'k'"),
        (HEAD + "label,x,y,z\na,1,two,3\n", "row 3: position '1, two, 3' is not 3 numbers"),
        (HEAD + "label,x,y,z\na,1,,3\n", "row 3: position"),
        (HEAD + "label,x,y,z\na,1,inf,3\n", "row 3: position"),
        (HEAD + "label,x,y,z\n,1,2,3\n", "row 3: the label is blank"),
        (HEAD + "case,label,x,y,z\n,a,1,2,3\n", "row 3: the case is blank"),
        (HEAD + "label,x,y,z,status\na,1,2,3,gone\n", "row 3: status 'gone' is not known"),
        (HEAD + "label,x,y,z,status\na,,,,abscent\n", "'abscent' is not known .did you mean 'absent'"),
        (HEAD + "label,x,y,z,status\na,,,,defined\n", "row 3: status is defined, but there is no position"),
        (HEAD + "label,x,y,z,staus\na,1,2,3,absent\n", "column 'staus' is not known .did you mean 'status'"),
        (HEAD + "label,x,z\na,1,2\n", "no column 'y'"),
        (HEAD + "label,x,x,y\na,1,1,2\n", "column 'x' appears twice"),
        (HEAD + "labels,x,y,z\na,1,2,3\n", "neither a column 'label' .did you mean 'labels'"),
        (HEAD + "case,a_x,a_y,a_z,b_x,b_y\n1,1,2,3,4,5\n", "column 'b_z' does not go with the others"),
        (HEAD + "case,a_x,a_y,a_z\n1,1,2,oh\n", "row 3, a: position"),
        (HEAD + "label,x,y,z\na,1,2,3,4\n", "row 3: has 5 cells for 4 columns"),
        (HEAD + "label,x,y,z\n", "header but no rows"),
        ("", "no rows"),
        (HEAD + "label,x,y,z,score\na,1,2,3,high\n", "column 'score' holds something that is not a number"),
    ],
)
def test_bad_tables(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_landmarks(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)
    assert "a.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no list"),
        ('{"landmarks": [{"label": "a", "position": [1,2,3]}], "unit": "mm"}', "frame is not stated"),
        ('{"landmarks": [{"label": "a", "position": [1,2]}], "unit": "mm", "frame": "LPS"}', "not 3 numbers"),
        ('{"landmarks": [{"label": "a"}, {"label": "a"}], "unit": "mm", "frame": "LPS"}', "more than once"),
        ('{"landmarks": [{"label": "a", "score": [1, 2]}], "unit": "mm", "frame": "LPS"}', "score"),
        ('{"landmarks": [', "not valid JSON"),
    ],
)
def test_bad_json(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_landmarks(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    assert "a.json" in str(caught.value)


def test_front_door_refuses(tmp_path):
    with pytest.raises(InputError, match="known endings"):
        read_landmarks(tmp_path / "a.doc")
    with pytest.raises(InputError, match="is a folder; give one landmark file"):
        read_landmarks(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_landmarks(tmp_path / "a.mrk.json")
    with pytest.raises(InputError, match="only CSV and TSV hold positions in px"):
        write_landmarks(Landmarks(("a",), [[1, 2]]), tmp_path / "a.json", unit="px")


def test_convert_and_label_from_description(tmp_path):
    text = "# CoordinateSystem = 0\n# columns = label,x,y,z,desc\n1,1,2,3,AC\n2,4,5,6,PC\n"
    (tmp_path / "a.fcsv").write_text(text)
    convert(tmp_path / "a.fcsv", tmp_path / "b.mrk.json", label_from="description")
    back = read_landmarks(tmp_path / "b.mrk.json")
    assert (back.names, back.descriptions) == (("AC", "PC"), ("1", "2"))
    np.testing.assert_array_equal(back["PC"], [-4, -5, 6])
    convert(tmp_path / "b.mrk.json", tmp_path / "c.csv")
    same(read_landmarks(tmp_path / "c.csv"), back)
    (tmp_path / "a.fcsv").write_text(text.replace("PC", "AC"))
    with pytest.raises(InputError, match="'AC' appears more than once"):
        read_landmarks(tmp_path / "a.fcsv", label_from="description")
    (tmp_path / "a.fcsv").write_text(text.replace("PC", ""))
    with pytest.raises(InputError, match="'2' has no description"):
        read_landmarks(tmp_path / "a.fcsv", label_from="description")


def test_images_are_called_by_their_stem_or_where_two_are_alike_by_their_path() -> None:
    assert case_names(["a/x.png", "b/y.png"]) == ["x", "y"]
    assert case_names(["a/x.png", "b\\x.png"]) == ["a/x", "b/x"]
    assert case_names([".", ".", "z.png"]) == [".", ".", "z"]  # no names at all


def test_a_mean_of_observers_is_cleared_where_none_placed_it(tmp_path):
    rows = "a,S,,,,x,cleared\na,S,4,5,6,y,\na,N,1,2,3,x,\na,N,1,2,3,y,"
    (tmp_path / "t.csv").write_text(f"# frame=LPS unit=mm\ncase,label,x,y,z,observer,status\n{rows}\n")
    assert read_landmarks(f"{tmp_path / 't.csv'}#x").meta["cleared"] == ("S",)
    mean = read_landmarks(f"{tmp_path / 't.csv'}#mean")
    write_table(mean, tmp_path / "o.csv")
    assert read_landmarks(tmp_path / "o.csv")["S"].tolist() == [4, 5, 6]
