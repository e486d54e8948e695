"""Landmark files as Excel saves them again, and damaged ones: read as they were meant, or refused with their row."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomark.core.landmarks import Status
from anatomark.errors import InputError
from anatomark.io.landmarks import read_landmarks
from anatomark.io.sheets import read_sheet, write_csv

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLAIN = "# frame=LPS unit=mm\nlabel,x,y,z,description\nnasion,1.5,-92.25,-18.0,front\nsella,-0.75,-21.5,30.125,\n"
AS_COLUMNS = PLAIN.replace(",", ";")
FCSV = """# Markups fiducial file version = 4.10
# CoordinateSystem = 0
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
a,-1.5,92.25,-18.0,0,0,0,1,1,1,0,nasion,front,
b,0.75,21.5,30.125,0,0,0,1,1,1,0,sella,,vtkMRMLScalarVolumeNode1
"""
WIDE_HEAD = "# frame=LPS unit=mm\ncase,nasion_X,nasion_Y,nasion_Z,sella_X,sella_Y,sella_Z\n"
WIDE = f"{WIDE_HEAD}c,1.5,-92.25,-18,-0.75,-21.5,30.125\n"
HABITS = {
    "commas behind the first line": ("csv", PLAIN.replace("mm\n", "mm,,,,\n")),
    "the first line in quotes": ("csv", PLAIN.replace("# frame=LPS unit=mm", '"# frame=LPS unit=mm",,,,')),
    "semicolons behind the first line": ("csv", AS_COLUMNS.replace("mm\n", "mm;;;;\n")),
    "a comma between the facts": ("csv", PLAIN.replace("LPS unit", "LPS, unit")),
    "capitals in the facts": ("csv", PLAIN.replace("frame=LPS unit=mm", "Frame = lps Unit = MM")),
    "the unit in full": ("csv", PLAIN.replace("unit=mm", "unit=Millimeters")),
    "a blank row of delimiters on top": ("csv", ",,,,\n" + PLAIN),
    "capitals in the header": ("csv", PLAIN.replace("label,x,y,z,description", "Label,X,Y,Z,DESCRIPTION")),
    "capitals of axes in a wide table": ("csv", WIDE),
    "blank columns behind the header": ("csv", PLAIN.replace("description\n", "description,,\n")),
    "blank cells behind the rows": ("csv", PLAIN.replace("front\n", "front,,\n").replace("125,\n", "125,,,\n")),
    "rows of commas": ("csv", PLAIN + ",,,,\n,,,,\n"),
    "sep=;": ("csv", "sep=;\n" + AS_COLUMNS),
    "sep=; in quotes, behind the facts": ("csv", AS_COLUMNS.replace("mm\n", 'mm\n"SEP=;"\n')),
    "sep=,": ("csv", "sep=,\n" + PLAIN),
    "sep=|": ("csv", "sep=|\n" + PLAIN.replace(",", "|")),
    "decimal commas": ("csv", AS_COLUMNS.replace(".", ",")),
    "decimal commas in a wide table": ("csv", WIDE.replace(",", ";").replace(".", ",")),
    "decimal commas between tabs": ("tsv", PLAIN.replace(",", "\t").replace(".", ",")),
    "old Mac's ends of lines": ("csv", PLAIN.replace("\n", "\r")),
    "cells in quotes": ("csv", PLAIN.replace("nasion,1.5", '"nasion","1.5"')),
    "Slicer's table, LPS": (
        "csv",
        "label,l,p,s,defined,selected,visible,locked,description\n"
        "nasion,1.5,-92.25,-18.0,1,1,1,0,front\nsella,-0.75,-21.5,30.125,1,1,1,0,\n",
    ),
    "Slicer's table, RAS": (
        "csv",
        "label,r,a,s,defined,selected,visible,locked,description\n"
        "nasion,-1.5,92.25,-18.0,1,1,1,0,front\nsella,0.75,21.5,30.125,1,1,1,0,\n",
    ),
    "Slicer's table, in capitals, with tabs": (
        "tsv", "Label\tL\tP\tS\nnasion\t1.5\t-92.25\t-18.0\nsella\t-0.75\t-21.5\t30.125\n",
    ),
    "fcsv": ("fcsv", FCSV),
    "fcsv, commas behind its first lines": (
        "fcsv", FCSV.replace("4.10\n", f"4.10{',' * 13}\n").replace("= 0\n", "= 0,,,\n"),
    ),
    "fcsv, its first lines in quotes": (
        "fcsv", FCSV.replace("# columns = id", '"# columns = id').replace("NodeID\n", 'NodeID"\n', 1),
    ),
    "fcsv, blank cells behind the rows": ("fcsv", FCSV.replace("front,\n", "front,,,\n")),
    "fcsv of Excel where the comma is decimal": (
        "fcsv", FCSV.partition("\na,")[0] + ";;;;\na;" + FCSV.partition("\na,")[2].replace(",", ";").replace(".", ","),
    ),
    "fcsv with tabs": ("fcsv", FCSV.replace(",", "\t")),
    "fcsv with semicolons": ("fcsv", FCSV.replace(",", ";")),
    "fcsv with an unquoted comma in a description": ("fcsv", FCSV.replace("front,", "front, upper,")),
    "fcsv with two, and a status": ("fcsv", FCSV.replace("front,\n", "front, upper, left,,2,0\n")),
    "fcsv with one, and a volume": ("fcsv", FCSV.replace("sella,,", "sella,deep, dark,")),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "crlf"])
@pytest.mark.parametrize("habit", HABITS)
def test_read_as_it_was(tmp_path, habit, encoding):
    ending, text = HABITS[habit]
    text, encoding = (text.replace("\n", "\r\n"), "utf-8") if encoding == "crlf" else (text, encoding)
    (tmp_path / f"a.{ending}").write_bytes(text.encode(encoding))
    landmarks = read_landmarks(tmp_path / f"a.{ending}", case=None)
    assert landmarks.names == ("nasion", "sella")
    assert landmarks.status == (Status.DEFINED,) * 2
    np.testing.assert_array_equal(landmarks.points, [[1.5, -92.25, -18], [-0.75, -21.5, 30.125]])
    assert not landmarks.descriptions[0] or landmarks.descriptions[0].startswith("front")


def test_commas_of_a_description_are_kept_and_told(tmp_path):
    (tmp_path / "a.fcsv").write_text(FCSV.replace("front,", "front, upper,"))
    landmarks = read_landmarks(tmp_path / "a.fcsv")
    assert landmarks.descriptions == ("front, upper", "")
    assert "description of nasion are not quoted" in " ".join(landmarks.meta["notes"])
    (tmp_path / "a.fcsv").write_text(FCSV.replace("front,", "front, upper,,0,0"))
    assert read_landmarks(tmp_path / "a.fcsv").status == (Status.UNANNOTATED, Status.DEFINED)


def test_slicers_undefined_points_have_no_position(tmp_path):
    (tmp_path / "a.csv").write_text("label,l,p,s,defined\na,0,0,0,0\nb,1,2,3,1\n")
    assert read_landmarks(tmp_path / "a.csv").status == (Status.UNANNOTATED, Status.DEFINED)
    (tmp_path / "a.csv").write_text("# frame=RAS\nlabel,l,p,s,defined\na,0,0,0,1\n")
    with pytest.raises(InputError, match="says frame RAS, but LPS was given"):
        read_landmarks(tmp_path / "a.csv")


HEAD = "# frame=LPS unit=mm\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('label,x,y,z\na,1,2,3\n"b,4,5,6\nc,7,8,9\n', "row 4: a quote that opens here is never closed"),
        ('label,x,y,z,d\na,1,2,3,"5 mm\n' + "b,1,2,3,k\n" * 20000, "row 3: a quote that opens here is never closed"),
        ('label,x,y,z,d\na,1,2,3,"5 mm\nb,1,2,3,k\nc,1,2,3,6"\nd,1,2,3,\n', "row 3: .* swallows rows"),
        ('label,x,y,z,d\na,1,2,3,"5 mm\nb,1,2,3,"k"\n', "row 3: text stands behind a closing quote"),
        ('"label,x,y,z\na,1,2,3\n', "row 2: a quote that opens here is never closed"),
        ("label;x;y;z\na;1,5;2;3\nb;1.5;2;3\n", "row 3 has decimal commas, row 4 decimal points"),
        ("label;x;y;z\na;1.234,5;2;3\n", "decimal commas, row 3 decimal points"),
        ('label,x,y,z\na,"1,5",2,3\n', "row 3: position '1,5, 2, 3' is not 3 numbers"),
        ("label,x,y,z\na,1_000,2,3\n", "row 3: position"),
        ("label,x,y,z\na,1,2,3,,4\n", "row 3: has 6 cells for 4 columns"),
        ("Label,label,x,y,z\na,b,1,2,3\n", "column 'label' appears twice"),
        ('label,x,y,z\na,"1,5","2,5","3,5"\n', "write decimal points"),
        ("label,x,y,z,description\n,1,2,3,AC\n", "row 3: the label is blank; the descriptions may be names"),
        ("label,x,y,z\n" + "a," * 30000 + "\n", "cells for 4 columns"),
        (",".join(f"c{i}" for i in range(30000)) + "\n1\n", "has 30000 columns; at most 20000"),
        (",".join(f"c{i}" for i in range(20000)) + "\n" + "1\n" * 300, "has more than 250 rows"),
    ],
)
def test_refused_with_its_row(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(HEAD + text)
    with pytest.raises(InputError, match=words) as caught:
        read_landmarks(tmp_path / "a.csv")
    assert "a.csv" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FCSV.replace("front,", '"front,'), "row 4: a quote"),
        (FCSV.replace("nasion,", ","), "row 4: the label is blank; the descriptions may be names"),
        (FCSV.replace("sella,", "nasion ,"), "row 5: label 'nasion' appears more than once .row 4."),
        (FCSV.replace("label,desc,", "desc,label,").replace("front,", "front,a,b,c"), "row 4: has 16 cells for 14"),
    ],
)
def test_fcsv_refused_with_its_row(tmp_path, text, words):
    (tmp_path / "a.fcsv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_landmarks(tmp_path / "a.fcsv")
    with pytest.raises(InputError, match="says unit mm, but px was given"):
        (tmp_path / "b.fcsv").write_text(FCSV)
        read_landmarks(tmp_path / "b.fcsv", unit="px")


@pytest.mark.parametrize("ending", ["fcsv", "csv"])
def test_names_from_descriptions_where_labels_are_blank(tmp_path, ending):
    text = FCSV.replace("nasion,front", ",AC").replace("sella,", ",PC")
    table = HEAD + "label,x,y,z,description\n,1.5,-92.25,-18,AC\n,-0.75,-21.5,30.125,PC\n"
    (tmp_path / f"a.{ending}").write_text(text if ending == "fcsv" else table)
    landmarks = read_landmarks(tmp_path / f"a.{ending}", label_from="description")
    assert (landmarks.names, landmarks.descriptions) == (("AC", "PC"), ("", ""))
    np.testing.assert_array_equal(landmarks["PC"], [-0.75, -21.5, 30.125])


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6).map(str.strip)


@QUICK
@given(st.lists(st.tuples(CELL, CELL, CELL.filter(bool)), min_size=1, max_size=5), st.sampled_from(["csv", "tsv"]))
def test_every_cell_comes_back(tmp_path, rows, ending):
    rows = [dict(zip(("a", "b", "c"), cells, strict=True)) for cells in rows]
    write_csv(tmp_path / f"t.{ending}", rows)
    assert [cells for _, cells in read_sheet(tmp_path / f"t.{ending}").rows] == rows
