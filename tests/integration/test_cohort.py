"""Many images: shards, workers and kills give the files that one process gives, and a row for each case."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import service
import tiny
from anatomark.cli import app as cli
from anatomark.engine.local import Processes
from anatomark.errors import InputError
from anatomark.io.claim import LOCK, PARTS
from anatomark.io.images import write_image
from anatomark.model.predict import load, predict
from anatomark.scale.cohort import Cohort, predict_cohort
from anatomark.scale.journal import FAILED, Journal, Row, journals, read_journal
from anatomark.scale.shard import Shard
from anatomark.scale.status import status

IMAGES, DAMAGED, DEADLY = 40, "case16", 20  # pixels of an image that kills; one more is our fault, two more kills once
SECONDS = re.compile(rb'"seconds": [^,\n]*')
KILLER = f"""
import os, pathlib, signal, tiny
class Tiny(tiny.Tiny):
    def locate(self, image, start=None):
        killed = pathlib.Path(__file__).with_name("killed")
        once = image.array.shape[-1] == {DEADLY + 2} and not killed.exists()
        if once or image.array.shape[-1] == {DEADLY}:
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if image.array.shape[-1] == {DEADLY + 1}:
            raise ZeroDivisionError("by zero")
        return super().locate(image, start)
"""


class Home:
    """A model, its images of which one is damaged, and the folder ``one`` that one process predicted."""

    def __init__(self, folder: Path):
        self.folder, self.run = folder, service.trained(folder, 2, cases=4, steps=4)
        self.images, self.one = folder / "images", folder / "one"
        self.images.mkdir()
        for k in range(IMAGES):
            write_image(tiny.blobs(k, 2, 16)[0], self.images / f"case{k}.png")
        damaged = self.images / f"{DAMAGED}.png"
        damaged.write_bytes(damaged.read_bytes()[:60])
        assert {row.state for row in predict(load(self.run), [self.images], self.one, spacing=2)} == {
            "written", "failed",
        }  # fmt: skip

    def cohort(self, out: Path, **how: Any) -> Cohort:
        return predict_cohort(self.run, [self.images], out, spacing=2, **{"engine": here, **how})


class Here:
    """An engine that needs no process."""

    workers = 1

    def __call__(self, start: Callable[[], Any], items: Iterable[Any], threads: int = 1) -> Iterator[tuple[Any, Any]]:
        worker = start()
        try:
            for item in items:
                yield item, worker(item)
        finally:
            worker.close()


here = Here()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("cohort")
    service.environment(folder)
    (folder / "killer.py").write_text(KILLER)
    points = folder / "tiny_method-1.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("tiny:Tiny", "killer:Tiny"))
    sys.path.insert(0, str(folder))  # worker processes find the method there
    yield Home(folder)
    sys.path.remove(str(folder))


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    return int(exit.value.code or 0)


def _files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for seconds and what is hidden."""
    return {p.name: SECONDS.sub(b"", p.read_bytes()) for p in folder.iterdir() if not p.name.startswith(".")}


def _rows(out: Path) -> list[Row]:
    return [entry for path in journals(out) for entry in read_journal(path) if isinstance(entry, Row)]


def _command(home: Home, out: Path, *more: object) -> tuple[object, ...]:
    return ("predict", home.run, home.images, "--spacing", 2, "--out", out, *more)


def _killed(at: int, *arguments: object) -> None:
    """Run a command in a process that is killed before the row of the ``at``-th case."""
    if (pid := os.fork()) == 0:
        add, count = Journal.add, iter(range(1, 1000))

        def kill_or_add(journal: Journal, row: Row) -> None:
            if next(count) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            add(journal, row)

        Journal.add = kill_or_add  # type: ignore[method-assign]
        cli.main([str(a) for a in arguments])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_shards_one_of_them_killed_equal_one_process(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert home.cohort(out, shard=Shard(1, 3)).written == 14
    _killed(5, *_command(home, out, "--shard", "2/3"))
    capsys.readouterr()
    assert _run("status", out) == 3
    said = capsys.readouterr().out
    assert "18 done, 0 failed, 22 left" in said
    assert "1 of 3 ended; stopped: 2; missing: 3" in said
    codes = [_run(*_command(home, out, "--shard", f"{k}/3")) for k in (2, 3)]
    assert codes == [0, 2]
    told = capsys.readouterr()
    assert f"of 13 are flagged for review\nnext: anatomark status {out}\n" in told.out
    error = told.err.splitlines()[-1]
    assert f"1 of 13 images failed: {DAMAGED}; the first: {home.images / DAMAGED}.png" in error
    assert _files(out) == _files(home.one)
    assert Counter(row.case for row in _rows(out)) == Counter(f"case{k}" for k in range(IMAGES))
    assert not (out / LOCK).exists() and not [*(out / PARTS).glob("*.lock")]

    assert _run("status", out, "--json") == 3
    facts = json.loads(capsys.readouterr().out)
    assert (facts["done"], facts["left"], facts["cases"], facts["complete"]) == (39, 0, 40, False)
    assert [f["case"] for f in facts["failed"]] == [DAMAGED] and DAMAGED in facts["failed"][0]["reason"]
    assert facts["shards"] == {"ended": [1, 2, 3], "running": [], "stopped": [], "missing": []}
    assert _run("status", out, "--accept-failed") == 0
    assert f"{DAMAGED}  {home.images / DAMAGED}.png" in capsys.readouterr().out

    before = {p: p.stat().st_mtime_ns for p in out.iterdir() if p.is_file()}
    assert _run(*_command(home, out)) == 2  # without shards: what is finished is skipped
    assert "case0: finished before" in capsys.readouterr().out
    monkeypatch.setattr("anatomark.model.predict.read_json", None)
    assert _run(*_command(home, out, "--workers", 2)) == 2  # nothing to do: no worker, no result is opened
    said = capsys.readouterr().out
    assert "39 of 40 predicted, 39 of them finished before" in said and "of 39 are flagged for review" in said
    given = f"{home.images} --spacing 2 --model {home.run}"
    assert said.splitlines()[-1] == f"next: anatomark review {out} {given} --out CORRECTED"
    assert {p: p.stat().st_mtime_ns for p in out.iterdir() if p.is_file()} == before


def test_many_images_are_predicted_by_workers_of_themselves(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anatomark.model.worker.MANY", IMAGES)
    monkeypatch.setattr("anatomark.model.worker.cores", lambda: 2)
    out = tmp_path / "out"
    assert _run(*_command(home, out)) == 2
    said = capsys.readouterr()
    assert "40 images: 2 workers" in said.err and "39 of 40 predicted" in said.out and "case0: 0." in said.out
    assert _files(out) == _files(home.one) and not (out / PARTS).exists() and not (out / LOCK).exists()
    (out / "case3.json").unlink()
    assert _run(*_command(home, out)) == 2  # few are left
    said = capsys.readouterr()
    assert "workers" not in said.err and _files(out) == _files(home.one)


def test_a_case_that_kills_its_workers_is_a_failed_row(home: Home, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for k, side in enumerate((16, 16, DEADLY, 16, DEADLY + 1, 16, DEADLY + 2)):
        write_image(tiny.blobs(k, 2, side)[0], images / f"case{k}.png")
    (home.folder / "killed").unlink(missing_ok=True)
    made = predict_cohort(home.run, [images], out, spacing=2, workers=2)
    assert (made.written, made.cases) == (5, 7)
    reasons = dict(made.failed)
    assert "case2.png: twice ended the process that predicts it (SIGKILL)" in reasons["case2"]
    assert "ZeroDivisionError: by zero" in reasons["case4"]
    assert {r.case for r in _rows(out) if r.state == FAILED} == {"case2", "case4"}
    good = ("case0", "case1", "case3", "case5")
    files = _files(out)
    assert {n.split(".")[0] for n in files} == {*good, "case6"}
    assert all(files[f"{case}.mrk.json"] == _files(home.one)[f"{case}.mrk.json"] for case in good)


def test_ray_gives_the_files_of_one_process(home: Home, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'anatomark[ray]'")
    out, deadly, once = tmp_path / "out", tmp_path / "deadly.png", tmp_path / "once.png"
    write_image(tiny.blobs(0, 2, DEADLY)[0], deadly)
    write_image(tiny.blobs(0, 2, DEADLY + 2)[0], once)
    (home.folder / "killed").unlink(missing_ok=True)
    assert _run(*_command(home, out, deadly, once, "--engine", "ray", "--workers", 2)) == 2
    said = capfd.readouterr()
    assert said.out.splitlines() == [f"40 of 42 predicted: {out}"] or "flagged" in said.out
    known = ("failed: ", "error: 2 of 42 images failed: ", "predict  ")  # nothing of Ray's own
    late = "Failed to push error to driver"  # of Ray's core, now and then, when a worker dies as it ends
    assert [line for line in said.err.splitlines() if not line.startswith(known) and late not in line] == []
    assert f"{deadly}: twice ended the process that predicts it (its Ray actor died)" in said.err
    files = {name: content for name, content in _files(out).items() if not name.startswith("once")}
    assert files == _files(home.one) and (out / "once.json").exists()
    assert Counter(row.case for row in _rows(out)) == Counter({*(f"case{k}" for k in range(IMAGES)), "deadly", "once"})


def test_failed_cases_are_tried_again_when_asked_or_when_the_image_is_another(home: Home, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    images.mkdir()
    for k in range(3):
        shutil.copy(home.images / f"case{k}.png", images)
    (images / "case1.png").write_bytes(b"nothing")
    here_ = {"spacing": 2, "engine": here}
    assert [c for c, _ in predict_cohort(home.run, [images], out, **here_).failed] == ["case1"]
    assert len(_rows(out)) == 3
    again = predict_cohort(home.run, [images], out, **here_)
    assert [c for c, _ in again.failed] == ["case1"] and again.skipped == 2 and len(_rows(out)) == 3
    predict_cohort(home.run, [images], out, retry_failed=True, **here_)
    assert [r.case for r in _rows(out)].count("case1") == 2
    shutil.copy(home.images / "case1.png", images)
    mended = predict_cohort(home.run, [images], out, **here_)
    assert (mended.written, mended.skipped, mended.failed) == (1, 2, [])
    assert status(out).complete


def test_a_row_whose_files_are_gone_is_not_trusted(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    home.cohort(out, shard=Shard(1, 2))
    (out / "case0.mrk.json").unlink()
    (out / "case10.json").unlink()
    (out / "case12.csv").unlink()
    assert status(out).left == IMAGES - 19
    again = home.cohort(out, shard=Shard(1, 2))
    assert (again.written, again.skipped) == (3, 17 - len(again.failed))
    for name in ("case0.mrk.json", "case10.json", "case12.csv"):
        assert (out / name).exists()


def test_a_folder_without_a_journal_is_skipped_or_refused(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(home.one, out)
    for number, file in enumerate(f for f in sorted(out.glob("*.json")) if not f.name.endswith(".mrk.json")):
        facts = json.loads(file.read_text())
        file.write_text(json.dumps(facts | {"flagged": number < 3}))
    (out / "dataset_description.json").write_text("[1]")
    seen = f"holds {IMAGES - 1} predictions, 3 flagged for review; there is nothing to follow: only the command predict"
    with pytest.raises(InputError, match=seen):
        status(out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: there is nothing to follow"):
        status(tmp_path / "empty")
    (out / "dataset_description.json").unlink()
    shutil.rmtree(out)
    shutil.copytree(home.one, out)
    (out / "case3.json").unlink()
    made = home.cohort(out, shard=Shard(1, 1))
    assert (made.written, made.skipped, len(made.failed)) == (1, IMAGES - 2, 1)
    assert _files(out) == _files(home.one)
    before = _files(out)

    record = out / "case5.json"
    record.write_text(record.read_text().replace(load(home.run).hash, "another"))
    shutil.rmtree(out / PARTS)
    with pytest.raises(InputError, match=r"case5\.mrk\.json: is a result of another model or image; add `overwrite`"):
        home.cohort(out)
    assert not (out / PARTS).exists()
    assert {**_files(out), "case5.json": b""} == {**before, "case5.json": b""}


def test_a_file_of_the_users_fails_its_case_alone(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mine = out / "case5.csv"
    mine.write_text("my notes")
    made = home.cohort(out)
    assert made.written == IMAGES - 2 and dict(made.failed)["case5"].startswith(f"{mine}: is a result of another")
    assert mine.read_text() == "my notes" and not (out / "case5.json").exists()


def test_another_division_counts_what_was_done_before(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    home.cohort(out, shard=Shard(1, 3))
    made = home.cohort(out, shard=Shard(1, 2))
    assert made.skipped and made.written + made.skipped + len(made.failed) == IMAGES / 2
    assert status(out).of_state("missing") == [2]
    home.cohort(out, shard=Shard(2, 2))
    assert status(out, accept_failed=True).complete
    (home.images / "late.png").write_bytes((home.images / "case0.png").read_bytes())
    try:
        home.cohort(out, shard=Shard(1, 2))
        assert status(out).of_state("missing") == [2]  # it knows nothing of the new image
    finally:
        (home.images / "late.png").unlink()


def test_a_large_prediction_anew_replaces_all(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(home.one, out)
    record = out / "case5.json"
    record.write_text(record.read_text().replace(load(home.run).hash, "another"))
    made = home.cohort(out, overwrite=True)
    assert made.written == IMAGES - 1 and _files(out) == _files(home.one)


def test_a_worker_that_cannot_load_the_model_ends_the_run(home: Home, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(home.run, run)

    class Removed(Processes):
        def __call__(self, *what: Any) -> Any:
            shutil.rmtree(run)
            return super().__call__(*what)

    with pytest.raises(InputError, match="run"):
        predict_cohort(run, [home.images], tmp_path / "out", spacing=2, engine=Removed(1))
    assert status(tmp_path / "out").of_state("stopped") == [1]


@pytest.mark.parametrize("options", [("--shard", "4/3"), ("--shard", "x"), ("--workers", "0")])
def test_wrong_options_are_one_line(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    assert _run(*_command(home, tmp_path / "out", *options)) == 2
    assert options[0] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_empty_shard_comes_to_its_end(home: Home, tmp_path: Path) -> None:
    made = predict_cohort(
        home.run, [home.images / "case0.png"], tmp_path, spacing=2, shard=Shard(2, 2), engine=here
    )  # fmt: skip
    assert made.cases == 0 and status(tmp_path).of_state("ended") == [2]
    assert np.isclose(status(tmp_path).left, 1)


def test_status_counts_the_last_list_of_images_alone(home: Home, tmp_path: Path) -> None:
    """Results of images that are there no more do not stand in for those that are missing."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for k in range(4):
        shutil.copy(home.images / f"case{k}.png", images)
    for gone in ((), (0, 1)):
        for k in gone:
            (images / f"case{k}.png").unlink()
        predict_cohort(home.run, [images], out, spacing=2, engine=here)
        assert status(out).complete
    (out / "case3.json").unlink()
    found = status(out)
    assert (found.cases, found.done, found.left, found.complete) == (2, 1, 1, False)
