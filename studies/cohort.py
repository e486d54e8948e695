"""Many images in shards and workers that are killed at random: is every case there once, as one process gives it?

    python studies/cohort.py --count 10000 --out cohort.json

`shards`: tiny generated volumes, one in a hundred damaged, in four shards that run at the same time; three of these
processes are killed (-9) at random moments, then the same commands are given again. `ray`: the same by a Ray cluster of
two actors, four of whose processes are killed. `journal`: a finished folder of `--rows` images whose journal is
generated, how long `status` takes there, and a run that finds nothing to do; seconds of processor time, and the
largest resident memory. The model is that of the tests' method `tiny`. Ends with an error where anything is lost,
done twice or other than it should be.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

import common
import kills

SECONDS = re.compile(rb'"seconds": [^,\n]*')
SHARDS, SHARD_KILLS, ACTORS, ACTOR_KILLS = 4, 3, 2, 4
PARTS = ("shards", "ray", "journal")
POLL_S = 0.05


def main(given: list[str] | None = None) -> None:
    """Do the parts one after the other, and record the figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="volumes")
    parser.add_argument("--rows", type=int, default=100_000, help="of the generated journal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args(given)
    out, chance, figures = args.out.resolve(), random.Random(args.seed), {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        kills.prepare(Path())
        if {"shards", "ray"} & {*args.only}:
            figures |= make(args.count, chance)
        if "shards" in args.only:
            figures |= by_shards(chance)
        if "ray" in args.only:
            figures |= by_ray(chance)
        if "journal" in args.only:
            figures |= journal(args.rows)
        os.chdir(before)
    common.record(out, figures, count=args.count, rows=args.rows, seed=args.seed)


def make(count: int, chance: random.Random) -> dict[str, float]:
    """The volumes, one in a hundred cut off, and what one process predicts of them, in ``one``."""
    import tiny
    from anatomark.io.images import write_image
    from anatomark.model.predict import load, predict

    os.mkdir("images")
    for k in range(count):
        write_image(tiny.blobs(k, 3, 16)[0], f"images/case{k}.nii")
    for k in chance.sample(range(count), max(1, count // 100)):
        os.truncate(f"images/case{k}.nii", 1000)
    started = time.perf_counter()
    made = predict(load("model", "cpu", 1), ["images"], "one")
    failed = sum(row.state == "failed" for row in made)
    check(failed == max(1, count // 100), f"{failed} damaged volumes failed in one process")
    return {"damaged": failed, "one_process_per_second": count / (time.perf_counter() - started)}


def by_shards(chance: random.Random) -> dict[str, float]:
    """Shards at the same time, some of them killed, then again."""
    started = time.perf_counter()
    running = [begin("predict", "model", "images", "--out", "out", "--shard", f"{k}/{SHARDS}") for k in numbers()]
    killed = 0
    for _ in struck(Path("out"), SHARD_KILLS, chance, lambda: any(p.poll() is None for p in running)):
        if alive := [p for p in running if p.poll() is None]:
            chance.choice(alive).kill()
            killed += 1
    codes = [p.wait() for p in running]
    check(codes.count(-signal.SIGKILL) == killed and {*codes} <= {-signal.SIGKILL, 0, 2}, f"shards ended with {codes}")
    if killed:
        check(code("status", "out") == 3, "status of stopped shards")
    for k in numbers():
        code("predict", "model", "images", "--out", "out", "--shard", f"{k}/{SHARDS}")
    compare(Path("out"))
    return {"shards_killed": killed, "shards_seconds": time.perf_counter() - started}


def by_ray(chance: random.Random) -> dict[str, float]:
    """A cluster that the command starts, some of its actors killed."""
    started = time.perf_counter()
    driver = begin("predict", "model", "images", "--out", "by_ray", "--engine", "ray", "--workers", ACTORS)
    killed = 0
    for _ in struck(Path("by_ray"), ACTOR_KILLS, chance, lambda: driver.poll() is None):
        children = psutil.Process(driver.pid).children(recursive=True)
        if actors := [p for p in children if p.name().startswith("ray::Worker")]:
            chance.choice(actors).kill()
            killed += 1
    ended = driver.wait()
    check(ended == 2, f"the command ended with {ended}")  # the damaged ones
    compare(Path("by_ray"))
    return {"actors_killed": killed, "ray_seconds": time.perf_counter() - started}


def compare(out: Path) -> None:
    """Every case once, as one process gives it, the damaged ones with their reasons; exit 3 until they are accepted."""
    from anatomark.scale.journal import FAILED, Row, journals, read_journal
    from anatomark.scale.status import status

    rows = [entry for path in journals(out) for entry in read_journal(path) if isinstance(entry, Row)]
    images = {p.stem for p in Path("images").iterdir()}
    check(Counter(row.case for row in rows) == Counter(images), f"{len(rows)} rows of {len(images)} cases")
    damaged = {row.case for row in rows if row.state == FAILED}
    check(damaged == {c for c in images if not Path("one", f"{c}.json").exists()}, f"{len(damaged)} failed")
    check(all(row.reason for row in rows if row.case in damaged), "a failure without a reason")
    check(files(out) == files(Path("one")), "files are other than those of one process")
    check([case for case, _ in status(out).failed] == sorted(damaged), "failures of status")
    check((code("status", out), code("status", out, "--accept-failed")) == (3, 0), "exit codes of status")


def journal(rows: int) -> dict[str, float]:
    """Times and memory where everything is done."""
    from anatomark.cases.case import Case
    from anatomark.evaluation.memory import peak_memory_gb
    from anatomark.io.parts import part_file
    from anatomark.model.predict import key_of, load
    from anatomark.scale.journal import DONE, Journal, Row, Run
    from anatomark.scale.shard import Shard

    os.makedirs("done/.anatomark")
    os.mkdir("many")
    model, lines = load("model", "cpu", 1), Journal(Path("done"), Shard())
    assert lines.path == part_file(Path("done"), 1, 1, "jsonl")
    for k in range(rows):
        if k % 10_000 == 0:  # a file has so many names
            files_of = {e: Path(f"of{k}{e}") for e in (".nii", ".json", ".mrk.json")}
            for ending, file in files_of.items():
                source = "d/case0.nii.gz" if ending == ".nii" else f"predictions/case0{ending}"
                file.write_bytes(Path(source).read_bytes())
        for ending, file in files_of.items():
            os.link(file, f"{'many' if ending == '.nii' else 'done'}/case{k}{ending}")
        path = Path(f"many/case{k}.nii")
        lines.add(Row(path.stem, DONE, "", 0.1, False, model.hash, key_of(Case(path.stem, path)), time.time()))
    lines.begin(Run(1, 1, rows, rows, "generated", model.hash, model.name, "here", 0, 1, time.time()))
    lines.end()
    lines.close()
    figures = {}
    again = ("predict", "model", "many", "--out", "done", "--shard", "1/1")
    for name, command, most in (("status", ("status", "done"), 5), ("rerun", again, 30)):
        began = begin(*command)
        memory, gone = 0.0, 0
        while not gone:
            memory = max(memory, 1000 * (peak_memory_gb(began.pid) or 0))
            time.sleep(POLL_S)
            gone, ended, used = os.wait4(began.pid, os.WNOHANG)
        check(ended == 0, f"{name} ended with {ended}")
        seconds = used.ru_utime + used.ru_stime
        check(seconds < most * max(1, rows / 100_000), f"{name} took {seconds:.0f} s")
        check(memory < 500, f"{name} took {memory:.0f} MB")
        figures |= {f"{name}_cpu_seconds": seconds, f"{name}_mb": memory}
    return figures


def struck(out: Path, count: int, chance: random.Random, running: Callable[[], bool]) -> Iterator[None]:
    """So many moments, each when a random share of the predictions is there."""
    total = len(os.listdir("one"))
    for share in sorted(chance.uniform(0.02, 0.8) for _ in range(count)):
        while running() and not (out.exists() and len(os.listdir(out)) >= share * total):
            time.sleep(POLL_S)
        if running():
            yield


def begin(*words: object) -> subprocess.Popen[bytes]:
    """A command of one thread, in a process of its own."""
    paths = os.pathsep.join(dict.fromkeys(p for p in sys.path if p))
    with open("log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "anatomark", *map(str, words)], stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def code(*words: object) -> int:
    return begin(*words).wait()


def numbers() -> Sequence[int]:
    return range(1, SHARDS + 1)


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for seconds and what is hidden."""
    return {p.name: SECONDS.sub(b"", p.read_bytes()) for p in folder.iterdir() if not p.name.startswith(".")}


def check(right: bool, what: str) -> None:
    """Raises RuntimeError, with the end of what the commands said."""
    if not right:
        raise RuntimeError(f"{what}\n{Path('log').read_text()[-2000:]}")


if __name__ == "__main__":
    main()
