"""Bad input at the command line: exit code 2, one clear line, nothing half-written."""

from __future__ import annotations

import csv
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from anatomark.cli import app as cli
from anatomark.core.image import Image
from anatomark.io.images import read_image, write_image
from anatomark.training import loop

tiny.register()


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0), capsys.readouterr().err


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _one_line(err: str, *words: object) -> None:
    """The last line is the error, the only one, and says ``words``; a Traceback is nowhere."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert err.rstrip().endswith(lines[0]), err
    assert "Traceback" not in err
    assert "our fault" not in err
    for word in words:
        assert str(word) in lines[0], lines[0]


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in 3D, one in 2D, and a model."""
    folder = tmp_path_factory.mktemp("master")
    tiny.write_study(folder / "data", 3, size=16)
    tiny.write_study(folder / "flat", 3, ndim=2, size=16)
    with pytest.raises(SystemExit):
        cli.main(["fit", str(folder / "data" / "cases.csv"), "--out", str(folder / "model"), "--method", "tiny",
                  "--steps", "2", "--json"])  # fmt: skip
    return folder


@pytest.fixture
def home(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "home"))


def _cells(path: Path, change: Callable[[list[dict[str, str]]], Any]) -> None:
    rows = list(csv.DictReader(path.open(newline="")))
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _rewrite(path: Path, change: Callable[[Image], Image]) -> None:
    write_image(change(read_image(path)), path)


def _with_infinity(image: Image) -> Image:
    array = image.array.astype(np.float32)
    array[0, 3, 3] = np.inf
    return replace(image, array=array)


DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing image": (lambda d: (d / "case1.nii.gz").unlink(), ["row 3", "case1.nii.gz", "no such file"]),
    "missing landmark file": (lambda d: (d / "case1.mrk.json").unlink(), ["row 3", "case1.mrk.json", "no such file"]),
    "truncated NIfTI": (
        lambda d: (d / "case1.nii.gz").write_bytes((d / "case1.nii.gz").read_bytes()[:-2000]),
        ["case1.nii.gz"],
    ),
    "text called .nii.gz": (lambda d: (d / "case1.nii.gz").write_text("hello " * 500), ["case1.nii.gz"]),
    "empty image file": (lambda d: (d / "case1.nii.gz").write_bytes(b""), ["case1.nii.gz", "empty"]),
    "infinite image": (lambda d: _rewrite(d / "case1.nii.gz", _with_infinity), ["case1.nii.gz", "infinite"]),
    "constant image": (
        lambda d: _rewrite(d / "case1.nii.gz", lambda i: replace(i, array=np.full_like(i.array, 3))),
        ["case1.nii.gz"],
    ),
    "another name set": (
        lambda d: (d / "case1.mrk.json").write_text(
            (d / "case1.mrk.json").read_text().replace('"a"', '"x"').replace('"b"', '"y"').replace('"c"', '"z"')
        ),
        ["case1.mrk.json", "'x'", "'a'"],
    ),
    "one other name": (
        lambda d: (d / "case1.mrk.json").write_text((d / "case1.mrk.json").read_text().replace('"b"', '"B"')),
        ["case1", "'B'"],
    ),
    "duplicate names": (
        lambda d: (d / "case1.mrk.json").write_text((d / "case1.mrk.json").read_text().replace('"b"', '"a"')),
        ["case1.mrk.json", "'a'", "more than once"],
    ),
    "damaged landmark file": (lambda d: (d / "case1.mrk.json").write_text("{"), ["case1.mrk.json", "JSON"]),
    "missing column": (
        lambda d: (d / "cases.csv").write_text((d / "cases.csv").read_text().replace("landmarks", "points", 1)),
        ["cases.csv", "landmarks"],
    ),
    "unknown split": (
        lambda d: _cells(d / "cases.csv", lambda r: r[1].update(split="trian")),
        ["row 3", "trian", "train"],
    ),
    "a case twice": (
        lambda d: _cells(d / "cases.csv", lambda r: r[1].update(case="case0")),
        ["row 3", "case0", "row 2"],
    ),
    "no training case": (
        lambda d: _cells(d / "cases.csv", lambda r: [x.update(split="test") for x in r]),
        ["cases.csv", "'train'"],
    ),
    "2D landmarks with a 3D image": (
        lambda d: (
            (d / "flat.csv").write_text("# frame=image unit=mm\nlabel,x,y\na,1,2\nb,3,4\nc,5,6\n"),
            _cells(d / "cases.csv", lambda r: [x.update(landmarks="flat.csv") for x in r]),
        ),
        ["flat.csv", "2D"],
    ),
    "frame not stated": (
        lambda d: (
            (d / "case1.csv").write_text("label,x,y,z\na,1,2,3\nb,3,4,5\nc,5,6,7\n"),
            _cells(d / "cases.csv", lambda r: r[1].update(landmarks="case1.csv")),
        ),
        ["case1.csv", "frame"],
    ),
    "not a number": (
        lambda d: (
            (d / "case1.csv").write_text("# frame=LPS unit=mm\nlabel,x,y,z\na,1,two,3\nb,3,4,5\nc,5,6,7\n"),
            _cells(d / "cases.csv", lambda r: r[1].update(landmarks="case1.csv")),
        ),
        ["case1.csv", "two"],
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_fit_refuses(home: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    damage, words = DAMAGE[what]
    damage(home / "data")
    out = home / "deep" / "out"
    code, err = _run(capsys, "fit", home / "data" / "cases.csv", "--out", out, "--method", "tiny", "--steps", 2)
    if what in ("2D landmarks with a 3D image", "missing column"):  # every row, or every problem, has its line
        assert code == 2 and all(w in err for w in words) and "Traceback" not in err
    else:
        assert code == 2, err
        _one_line(err, *words)
    assert not (home / "deep").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "tiyn"], ["tiyn", "'tiny'"]),
        (["--method", "tiny", "--preset", "smal"], ["smal", "'small'"]),
        (["--method", "tiny", "--set", "method.widht=3"], ["widht", "'width'"]),
        (["--method", "tiny", "--set", "sede=3"], ["sede", "'seed'"]),
        (["--method", "tiny", "--steps", "2", "--minutes", "1"], ["steps", "minutes"]),
        (["--method", "tiny", "--steps", "0"], ["steps", "0"]),
        (["--method", "tiny", "--config", "none.yaml"], ["none.yaml", "no such file"]),
        (["--method", "tiny", "--init", "no-model"], ["no-model"]),
        (["--method", "tiny", "--device", "gpu"], ["gpu", "cpu"]),
        (["--method", "tiny", "--folds", "9"], ["--folds 9", "3 training cases"]),
        (["--method", "tiny", "--set", "landmarks=[a, q]"], ["'q'"]),
    ],
)
def test_fit_refuses_options(
    home: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    code, err = _run(capsys, "fit", home / "data" / "cases.csv", "--out", home / "out", *options)
    assert code == 2, err
    _one_line(err, *words)
    assert not (home / "out").exists()


def test_a_config_with_an_unknown_key(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "c.yaml").write_text("method: {name: tiny}\nstep: 3\n")
    arguments = ("fit", home / "data" / "cases.csv", "--out", home / "out", "--config", home / "c.yaml")
    code, err = _run(capsys, *arguments)
    assert code == 2
    _one_line(err, home / "c.yaml", "'step'", "'steps'")
    assert not (home / "out").exists()


def test_no_spacing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _cells(home / "flat" / "cases.csv", lambda rows: rows[1].update(spacing=""))
    code, err = _run(capsys, "fit", home / "flat" / "cases.csv", "--out", home / "out", "--method", "tiny")
    assert code == 2
    _one_line(err, "row 3", "case1.png", "spacing")
    assert not (home / "out").exists()
    code, err = _run(capsys, "predict", home / "model", home / "flat" / "case0.png", "--out", home / "out")
    assert code == 2
    _one_line(err, "case0.png", "--spacing")
    assert not list((home / "out").glob("*"))


def test_a_failing_fold_leaves_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DAMAGE["infinite image"][0](home / "data")
    code, err = _run(
        capsys,
        "fit",
        home / "data" / "cases.csv",
        "--out",
        home / "out",
        "--method",
        "tiny",
        "--steps",
        2,
        "--folds",
        3,
    )
    assert code == 2
    _one_line(err, "case1.nii.gz", "infinite")
    assert not (home / "out").exists()


PREDICT = {
    k: DAMAGE[k]
    for k in ("truncated NIfTI", "text called .nii.gz", "empty image file", "infinite image", "constant image")
}
PREDICT["missing image"] = (DAMAGE["missing image"][0], ["case1.nii.gz", "no such file"])


@pytest.mark.parametrize("what", PREDICT)
def test_predict_refuses(home: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    damage, words = PREDICT[what]
    damage(home / "data")
    code, err = _run(capsys, "predict", home / "model", home / "data" / "case1.nii.gz", "--out", home / "out")
    assert code == 2
    assert "Traceback" not in err
    assert all(w in err for w in words), err
    assert not list((home / "out").glob("*"))


def test_two_inputs_with_one_stem(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "more").mkdir()
    shutil.copy(home / "data" / "case0.nii.gz", home / "more")
    images = (home / "data" / "case0.nii.gz", home / "more" / "case0.nii.gz")
    code, err = _run(capsys, "predict", home / "model", *images, "--out", home / "out")
    assert code == 2
    _one_line(err, *images, "'case0'")
    assert not (home / "out").exists()


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_a_malicious_pickle_in_place_of_weights(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "model" / "weights.safetensors").write_bytes(pickle.dumps(Evil(home / "trapped")))
    for command in ("predict", "evaluate"):
        target = home / "data" / ("case0.nii.gz" if command == "predict" else "cases.csv")
        split = ["--split", "train"] if command == "evaluate" else []
        code, err = _run(capsys, command, home / "model", target, "--out", home / "out", *split)
        assert code == 2
        _one_line(err, "weights.safetensors", "pickle")
    assert not (home / "trapped").exists()
    assert not list((home / "out").rglob("*"))


def test_a_folder_without_a_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = _run(capsys, "predict", home / "data", home / "data" / "case0.nii.gz", "--out", home / "out")
    assert code == 2
    _one_line(err, home / "data", "weights.safetensors", "config.yaml", "plan.json")
    code, err = _run(capsys, "predict", "brain-afid", home / "data" / "case0.nii.gz", "--out", home / "out")
    assert code == 2
    _one_line(err, "brain-afid")
    assert not (home / "out").exists()


def test_an_empty_split(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = _run(
        capsys, "evaluate", home / "model", home / "data" / "cases.csv", "--out", home / "out", "--split", "test"
    )
    assert code == 2
    _one_line(err, "cases.csv", "'test'")
    assert not list((home / "out").rglob("*"))


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_unwritable_output(home: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (home / "file").write_text("mine")
    out = home / "file" / "out"  # no folder can be made there, whoever asks
    if command == "fit":
        code, err = _run(capsys, "fit", home / "data" / "cases.csv", "--out", out, "--method", "tiny", "--steps", 2)
    else:
        code, err = _run(capsys, "predict", home / "model", home / "data" / "case0.nii.gz", "--out", out)
    assert code == 2, err
    _one_line(err, home / "file", "cannot be written")
    assert (home / "file").read_text() == "mine"


def test_an_output_that_is_something_else(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _tree(home / "flat")
    code, err = _run(
        capsys, "fit", home / "data" / "cases.csv", "--out", home / "flat", "--method", "tiny", "--steps", 2
    )
    assert code == 2
    _one_line(err, home / "flat", "--out")
    assert _tree(home / "flat") == before


@contextmanager
def _limited(largest: int) -> Iterator[None]:
    """No file can grow beyond ``largest`` bytes: writing fails midway, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("largest", "where"),
    [(3_000, "cache"), (40_000, "last.ckpt")],  # a volume has 4 kB, a checkpoint some hundred, the weights 70
)
def test_disk_full_in_the_middle_of_training(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, largest: int, where: str
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    arguments = ("fit", home / "data" / "cases.csv", "--out", home / "out", "--method", "tiny", "--steps", 20,
                 "--set", "val_fraction=0")  # fmt: skip
    with _limited(largest):
        code, err = _run(capsys, *arguments)
    assert code == 2, err
    _one_line(err, home / "out", "cannot be written")
    if where == "cache":
        assert not (home / "out").exists()
        return
    assert where in err
    assert not (home / "out" / where).exists()
    assert not list((home / "out").rglob(".tmp-*"))
    assert _run(capsys, *arguments, "--resume")[0] == 0  # with room again


def test_disk_full_in_the_middle_of_predicting(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with _limited(1_000):
        code, err = _run(capsys, "predict", home / "model", home / "data" / "case0.nii.gz", "--out", home / "out")
    assert code == 2, err
    assert "cannot be written" in err and "Traceback" not in err
    assert _tree(home / "out") == {}


def test_convert_refuses(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "x.csv").write_text("label,x,y,z\na,1,2,3\n")
    (home / "empty.mrk.json").write_text("")
    for source, target, words in (
        (home / "x.csv", home / "y.fcsv", ["x.csv", "frame"]),
        (home / "none.fcsv", home / "y.csv", ["none.fcsv", "no such file"]),
        (home / "empty.mrk.json", home / "y.csv", ["empty.mrk.json"]),
        (home / "data" / "case0.mrk.json", home / "y.docx", ["y.docx"]),
        (home / "data" / "case0.nii.gz", home / "y.csv", ["case0.nii.gz"]),
    ):
        code, err = _run(capsys, "convert", source, target)
        assert code == 2, err
        _one_line(err, *words)
        assert not target.exists()
