"""Several manifests as one: what counts where two say something of one case, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.cases.division import read_division
from anatomark.cases.manifests import read_manifests
from anatomark.core.landmarks import Status
from anatomark.errors import InputError, ManyInputErrors

HEAD = "case,image,landmarks,split,spacing"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Three pictures, each with landmarks a, b, c at (k, 1), (k, 2), (k, 3); the last is held out."""
    rows, lines = [HEAD], ["# frame=image unit=mm", "case,label,x,y"]
    for k in range(3):
        sitk.WriteImage(sitk.GetImageFromArray(np.full((9, 9), k, np.uint8)), str(tmp_path / f"k{k}.png"))
        rows.append(f"k{k},k{k}.png,marks.csv,{'test' if k == 2 else 'train'},0.5")
        lines += [f"k{k},{n},{k},{i}" for i, n in enumerate("abc", 1)]
    (tmp_path / "marks.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "cases.csv"


def later(first: Path, *rows: str, points: str = "a,7,7,\nb,,,absent\nc,,,") -> Path:
    """A second manifest in a folder beside the first's images, with one file of landmarks for all its cases."""
    folder = first.parent / "corrected"
    folder.mkdir(exist_ok=True)
    (folder / "t.csv").write_text(f"# frame=image unit=mm\nlabel,x,y,status\n{points}\n")
    (folder / "cases.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    return folder / "cases.csv"


def refused(*paths: Path) -> str:
    with pytest.raises(ManyInputErrors) as caught:
        read_manifests(paths)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_one_manifest_is_read_as_ever(first: Path) -> None:
    assert [c.id for c in read_manifests(first).cases] == [c.id for c in read_manifests([first]).cases]
    assert read_manifests([first]).name == str(first)


def test_the_later_counts_where_it_says_anything(first: Path) -> None:
    made = read_manifests([first, later(first, "k1,../k1.png,t.csv,train,0.5")])
    assert [c.id for c in made.cases] == ["k0", "k1", "k2"]
    merged = made.cases[1].landmarks
    np.testing.assert_array_equal(merged.points, [[7, 7], [np.nan, np.nan], [1, 3]])
    assert merged.status == (Status.DEFINED, Status.ABSENT, Status.DEFINED)
    np.testing.assert_array_equal(made.cases[0].landmarks.points, [[0, 1], [0, 2], [0, 3]])
    assert any("2 of their points are as it says, 1 as" in note for note in made.notes)


def test_a_landmark_that_is_not_annotated_yet_is_learned(first: Path) -> None:
    marks = first.parent / "marks.csv"
    marks.write_text(marks.read_text().replace("k1,b,1,2", "k1,b,,"))
    division = read_division([first, later(first, "k1,../k1.png,t.csv,train,0.5", points="b,4,5,")])
    np.testing.assert_array_equal(division.train[1].landmarks["b"], [4, 5])


@pytest.mark.parametrize("row", ["k2,../k2.png,t.csv,train,0.5", "k2,../k2.png,t.csv,test,0.5"])
def test_a_case_that_one_of_them_holds_out_is_not_trained_on(first: Path, row: str) -> None:
    made = read_manifests([first, later(first, row)])
    assert made.cases[2].split == "test"
    assert [c.id for c in read_division([first, first.parent / "corrected/cases.csv"]).train] == ["k0", "k1"]
    assert any("k2 (test)" in note for note in made.notes) == ("train" in row)
    np.testing.assert_array_equal(made.cases[2].landmarks["a"], [7, 7])  # what is measured against is corrected


def test_a_row_with_a_blank_split_says_nothing(first: Path) -> None:
    made = read_manifests([first, later(first, "k1,../k1.png,t.csv,,0.5")])
    np.testing.assert_array_equal(made.cases[1].landmarks.points, [[1, 1], [1, 2], [1, 3]])
    first.write_text(first.read_text().replace("k1.png,marks.csv,train", "k1.png,,"))
    made = read_manifests([first, later(first, "k1,../k1.png,t.csv,train,0.5")])
    assert made.cases[1].split == "train" and made.cases[1].landmarks.status[2] is Status.UNANNOTATED


def test_new_cases_are_added(first: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.full((9, 9), 9, np.uint8)), str(first.parent / "new.png"))
    made = read_manifests([first, later(first, "new,../new.png,t.csv,train,0.5")])
    assert [c.id for c in made.split("train")] == ["k0", "k1", "new"] and made.paths[1].parent.name == "corrected"


def test_the_same_bytes_elsewhere_are_the_same_image(first: Path) -> None:
    (first.parent / "corrected").mkdir()
    (first.parent / "corrected" / "copy.png").write_bytes((first.parent / "k1.png").read_bytes())
    made = read_manifests([first, later(first, "k1,copy.png,t.csv,train,0.5")])
    np.testing.assert_array_equal(made.cases[1].landmarks["a"], [7, 7])


def test_what_contradicts_the_first_is_refused_with_its_row(first: Path) -> None:
    assert "row 2: case 'k1' has image" in refused(first, later(first, "k1,../k0.png,t.csv,train,0.5"))
    assert "has the image of case 'k1' (row 3)" in refused(first, later(first, "x,../k1.png,t.csv,train,0.5"))
    assert "has spacing 0.4, but 0.5" in refused(first, later(first, "k1,../k1.png,t.csv,train,0.4"))
    spelt = later(first, "k1,../k1.png,t.csv,train,0.5", points="A,7,7,\nb,1,1,")
    assert "has 'A'; did you mean 'a'" in refused(first, spelt)


def test_problems_of_all_are_said_at_once(first: Path) -> None:
    other = later(first, "k1,../gone.png,t.csv,train,0.5")
    first.write_text(first.read_text().replace("k0.png", "lost.png"))
    with pytest.raises(ManyInputErrors) as caught:
        read_manifests([first, other])
    assert [w in line for w, line in zip(("lost", "gone"), caught.value.problems, strict=True)] == [True, True]
    with pytest.raises(InputError, match="given twice"):
        read_manifests([first, first])
