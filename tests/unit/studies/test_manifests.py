"""Manifests of the studies' data, and the suites that read them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import manifests
from anatomark.benchmark.suite import Suite
from anatomark.errors import InputError
from anatomark.model.config import checked, read_yaml

SUITES = Path(__file__).resolve().parents[3] / "studies" / "suites"
ROWS = "case,image,landmarks,split,spacing\n"


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("cephalogram", {}, "names.txt: no such file"),
        ("cephalogram", {"names.txt": "A\nB", "senior_mm.csv": "001,1,2,3"}, "case '001' has 3 coordinates"),
        ("brain", {"X_afids.fcsv": ""}, "brain: holds X_afids.fcsv, but no image X_*.nii.gz"),
        ("brain", {}, "brain: holds no landmarks"),
        ("mouse_skull", {"cases.csv": ROWS + "a,a.nii,a.csv,tset"}, "row 2: split 'tset'; it is train or val"),
        ("spine", {"cases.csv": ROWS + "a,a.jpg,a.csv,train"}, "row 2: has no spacing"),
    ],
)
def test_incomplete_data_are_refused(tmp_path: Path, name: str, files: dict[str, str], message: str) -> None:
    data = tmp_path / name
    data.mkdir()
    for file, text in files.items():
        (data / file).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        manifests.SETS[name](data, tmp_path)


def test_manifests_are_written_of_the_data_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANATOMARK_DATA", str(tmp_path / "data"))
    for name, image in (("mouse_skull", "a.nii"), ("cephalogram", None)):
        (tmp_path / "data" / name).mkdir(parents=True)
        if image:
            (tmp_path / "data" / name / "cases.csv").write_text(f"case,image,landmarks,split\na,{image},a.json,val\n")
    ceph = tmp_path / "data" / "cephalogram"
    (ceph / "names.txt").write_text("sella\nnasion\n")
    for observer in ("senior", "junior"):
        (ceph / f"{observer}_mm.csv").write_text("150,1,2,3,4\n151,5,6,7,8\n")
    manifests.main(["--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert re.findall(r"^skipped (\w+): .* \(set ANATOMARK_DATA\)$", printed, flags=re.M) == ["brain", "spine"]
    data = (tmp_path / "data").resolve()
    skull = data / "mouse_skull"
    assert (tmp_path / "out" / "mouse_skull.csv").read_text() == (
        f"case,image,landmarks,split\na,{skull / 'a.nii'},{skull / 'a.json'},test\n"
    )
    assert (tmp_path / "out" / "cephalogram.csv").read_text() == (
        "case,image,landmarks,split,spacing\n"
        f"150,{data / 'cephalogram/images/150.jpg'},cephalogram_landmarks.csv#senior,train,0.1\n"
        f"151,{data / 'cephalogram/images/151.jpg'},cephalogram_landmarks.csv#senior,test,0.1\n"
    )
    lines = (tmp_path / "out" / "cephalogram_landmarks.csv").read_text().splitlines()
    assert lines[:3] == ["# frame=image unit=mm", "case,label,x,y,observer", "150,sella,1,2,senior"]
    with pytest.raises(SystemExit):
        manifests.main(["--out", str(tmp_path / "data" / "out")])
    assert "lies inside the data folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["all", "cephalogram", "mouse_skull", "brain", "short"])
def test_the_suites_are_valid_and_alike(name: str) -> None:
    suite, whole = (checked(Suite, read_yaml(SUITES / f"{n}.yaml"), n) for n in (name, "all"))
    if name != "short":
        assert suite.model_copy(update={"data": whole.data}) == whole
    assert all(whole.data[n] == entry for n, entry in suite.data.items())
    for data, entry in suite.data.items():
        assert data in manifests.SETS and entry.manifest == f"../../manifests/{data}.csv"
