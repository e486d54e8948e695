"""``observers=combined``: what training cases learn from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.cases.division import combined_truth, read_division
from anatomark.errors import InputError

SLIP = 4.0


def study(folder: Path, observer: str = "#senior", alone: str = "") -> Path:
    """Six pictures to train and one to validate on. The junior marks 3 mm to the right, in k0 SLIP more; ``alone`` is a
    case that he did not mark."""
    lines, rows = ["# frame=image unit=mm", "case,label,x,y,observer"], ["case,image,landmarks,split,spacing"]
    for k in range(7):
        sitk.WriteImage(sitk.GetImageFromArray(np.full((40, 50), 9 + k, np.uint8)), str(folder / f"k{k}.png"))
        for who, off in (("senior", 0.0), ("junior", 3.0 + SLIP * (k == 0))):
            if who == "senior" or f"k{k}" != alone:
                lines += [f"k{k},a,{5 + k + off},8,{who}", f"k{k},b,{9 - k / 2 + off},{3 + k},{who}"]
        rows.append(f"k{k},k{k}.png,marks.csv{observer},{'val' if k == 6 else 'train'},0.5")
    (folder / "marks.csv").write_text("\n".join(lines) + "\n")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


def test_training_cases_average_both_and_validation_cases_keep_the_named_one(tmp_path: Path) -> None:
    named = read_division(study(tmp_path))
    made = combined_truth(named)
    moved = [m.landmarks.points - n.landmarks.points for m, n in zip(made.train, named.train, strict=True)]
    np.testing.assert_allclose(moved[0], [[SLIP / 2, 0], [SLIP / 2, 0]], atol=1e-9)
    np.testing.assert_allclose(moved[1:], 0, atol=1e-9)
    assert [s.id for s in made.val] == ["k6"] and made.val == named.val


@pytest.mark.parametrize(
    ("observer", "alone", "words"),
    [
        ("#mean", "", ["case 'k0'", "marks.csv#mean", "table.csv#name", "found: senior, junior"]),
        ("#senior", "k3", ["case 'k3'", "marks.csv#senior", "two or more observers", "found: senior"]),
    ],
)
def test_cases_without_two_observers_or_a_named_one_are_refused(
    tmp_path: Path, observer: str, alone: str, words: list[str]
) -> None:
    division = read_division(study(tmp_path, observer, alone))
    with pytest.raises(InputError) as error:
        combined_truth(division)
    message = str(error.value)
    assert all(w in message for w in words) and "observers=combined" in message and "\n" not in message


def test_a_file_without_observers_is_refused(tmp_path: Path) -> None:
    manifest = study(tmp_path, "")
    plain = [
        ",".join(x.split(",")[:-1]) for x in (tmp_path / "marks.csv").read_text().splitlines()[1:] if "junior" not in x
    ]
    (tmp_path / "marks.csv").write_text("\n".join(["# frame=image unit=mm", *plain]) + "\n")
    with pytest.raises(InputError, match=r"case 'k0'.*two or more observers.*found: none"):
        combined_truth(read_division(manifest))


def test_a_corrected_point_is_not_averaged(tmp_path: Path) -> None:
    """Of a case that a later manifest corrects the corrected point counts; one that it adds needs no two observers."""
    first = study(tmp_path)
    (tmp_path / "c").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.full((40, 50), 77, np.uint8)), str(tmp_path / "new.png"))
    head = "# frame=image unit=mm\nlabel,x,y,observer\n"
    (tmp_path / "c" / "k0.csv").write_text(f"{head}a,11,12,corrected\nb,,,corrected\n")
    (tmp_path / "c" / "new.csv").write_text(f"{head}a,1,2,corrected\nb,3,4,corrected\n")
    rows = [f"{c},../{c}.png,{c}.csv#corrected,train,0.5" for c in ("k0", "new")]
    (tmp_path / "c" / "cases.csv").write_text("\n".join(["case,image,landmarks,split,spacing", *rows]) + "\n")
    made = {c.id: c.landmarks for c in combined_truth(read_division([first, tmp_path / "c" / "cases.csv"])).train}
    alone = {c.id: c.landmarks for c in combined_truth(read_division(first)).train}
    np.testing.assert_allclose(made["k0"]["a"], [11, 12])
    np.testing.assert_allclose(made["k0"]["b"], alone["k0"]["b"])
    np.testing.assert_allclose(made["new"].points, [[1, 2], [3, 4]])
    np.testing.assert_allclose(made["k1"].points, alone["k1"].points)
