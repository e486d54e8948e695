"""``--out`` of every command: what can be no output is refused before any work, in one line, and nothing is left."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

import tiny
from anatomark.cli import app as cli
from anatomark.model import model as models

tiny.register()

COMMANDS = {
    "fit": "fit cases.csv --method tiny --steps 2 --json --out",
    "predict": "predict model cases.csv --out",
    "evaluate": "evaluate model cases.csv --split train --out",
    "simulate": "simulate cases.csv --count 1 --out",
    "crop": "crop cases.csv --out",
    "planes": "planes planes.yaml cases.csv --out",
    "register": "register case0 cases.csv --out",
    "calibrate": "calibrate model cases.csv --out",
    "benchmark": "benchmark suite.yaml --out",
    "demo": "demo --out",
    "measure": "measure measures.yaml cases.csv --out",
    "plan": "plan cases.csv --out",
}
NAMES = {
    "long": "x" * 300,
    "deep": "x/" * 3000 + "x",
    "too deep for its files": "/".join(["x" * 250] * 16),
    "loop": "loop",
    "in a loop": "loop/o",
    "nowhere": "dangling",
    "in a file": "cases.csv/o",
    "proc": "/proc/o",
    "device": "/dev/full/o",
    "not UTF-8": os.fsdecode(b"o\xff"),
    "two lines": "a\nb",
}


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0), capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    tiny.write_study(folder, 3, size=16)
    with pytest.raises(SystemExit):
        cli.main(f"fit {folder}/cases.csv --out {folder}/model --method tiny --steps 2 --workers 0 --json".split())
    (folder / "planes.yaml").write_text("planes: {one: {through: [a, b, c], size_mm: 8}}")
    (folder / "measures.yaml").write_text("measurements: {ab: {distance: [a, b]}}")
    (folder / "suite.yaml").write_text("{data: {d: {manifest: cases.csv}}, methods: {m: {method: tiny}}, steps: 2}")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing")
    return folder


def _tree(folder: Path) -> dict[str, Any]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_can_be_no_output(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(made)
    before = _tree(made)
    for what, name in NAMES.items():
        out = f"{name}.csv" if command == "measure" and what not in ("loop", "nowhere") else name
        code, err = _run(capsys, *COMMANDS[command].split(), out)
        assert code == 2, f"{what}: {err}"
        assert err.startswith("error: ") and err.count("\n") == 1 and "our fault" not in err, f"{what}: {err}"
    assert _tree(made) == before


@pytest.mark.parametrize("name", ["blank ", "dot.", "ü", "-o", "a b", "👩"])
def test_odd_names_that_can_be_outputs(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(made)
    code, err = _run(capsys, "predict", "model", "case0.nii.gz", "--out", tmp_path / name)
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["case0.json", "case0.mrk.json"]


def test_names_that_just_fit(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "x" * 246
    (tmp_path / f"{name}.nii.gz").symlink_to(made / "case0.nii.gz")
    code, err = _run(capsys, "predict", made / "model", tmp_path / f"{name}.nii.gz", "--out", tmp_path / ("o" * 255))
    assert code == 0, err


def test_a_full_disk_is_seen_before_any_work(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(made)
    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(models.Model, "predict", lambda *_: pytest.fail("it worked"))
    for command in ("predict", "crop", "simulate"):
        code, err = _run(capsys, *COMMANDS[command].split(), tmp_path / "new" / "out")
        assert code == 2 and "cannot be written into: No space left on device" in err, err
    assert not list(tmp_path.iterdir())


def test_no_input_is_replaced(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the output is the inputs' folder, or holds them."""
    tiny.write_study(tmp_path, 2, 2, size=16)
    tiny.write_study(tmp_path / "case0", 1, size=16)
    before = _tree(tmp_path)
    predict = ("predict", made / "model", "--overwrite", "--out", tmp_path)
    code, err = _run(capsys, *predict, tmp_path / "case0" / "cases.csv", "--format", "csv")
    assert code == 0, err  # beside, and under other names
    for name, data in before.items():
        if name != "case0.csv":
            assert (tmp_path / name).is_dir() if data is None else (tmp_path / name).read_bytes() == data
    for command in (
        f"crop {tmp_path}/case0/cases.csv --overwrite --out {tmp_path}/case0",
        f"predict {made}/model {tmp_path}/case0/cases.csv --overwrite --out {tmp_path}/case0",
        f"measure {made}/measures.yaml {tmp_path}/case0/cases.csv --overwrite --out {tmp_path}/case0/cases.csv",
    ):
        code, err = _run(capsys, *command.split())
        assert code == 2 and "is one of the files to" in err, err


def test_a_fixed_case_of_another_split_is_named_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (made / "cases.csv").read_text().splitlines()
    table[2] = table[2].replace(",train,", ",test,")
    (made / "split.csv").write_text("\n".join(table))
    command = ("register", "case0", made / "split.csv", "--split", "test", "--out", tmp_path / "out")
    code, err = _run(capsys, *command)
    assert code == 2 and "FIXED case0: is of split train, not of --split test" in err
    code, err = _run(capsys, *command[:1], "case9", *command[2:])
    assert code == 2 and "no case" in err and "of split" not in err


def test_what_cannot_be_read_is_called_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and folders that the user may not read; root may, so the system's answers are played."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("case0.nii.gz", "case1.nii.gz"):
        (folder / name).write_bytes((made / name).read_bytes())
    (folder / "closed").mkdir()
    (folder / "notes").write_text("no image")
    (folder / "linked").symlink_to("linked")
    listed, stat, opened = os.listdir, os.stat, io.open

    def refusing(work: Any) -> Any:
        def checked(path: Any, *rest: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and Path(path).name in closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return work(path, *rest, **options)

        return checked

    closed = {"closed", "notes"}
    for module, name, work in ((os, "listdir", listed), (io, "open", opened), (builtins, "open", opened)):
        monkeypatch.setattr(module, name, refusing(work))
    code, err = _run(capsys, "predict", made / "model", folder, "--out", tmp_path / "out")
    assert code == 0, err
    closed = {"case1.nii.gz"}
    code, err = _run(capsys, "predict", made / "model", folder, "--out", tmp_path / "more")
    assert code == 2 and "case1.nii.gz: cannot be read: Permission denied" in err and "written" not in err, err
    assert (tmp_path / "more" / "case0.json").exists()
    closed = {"images"}
    monkeypatch.setattr(os, "stat", refusing(stat))
    code, err = _run(capsys, "predict", made / "model", folder, "--out", tmp_path / "none")
    assert code == 2 and "written" not in err and err.count("\n") == 1, err
