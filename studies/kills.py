"""Kill -9 at random moments: the same command again must end as an undisturbed one, nothing refused, nothing lost.

    python studies/kills.py --kills 100 --seed 0 --out kills.json

Each command runs twice undisturbed on small synthetic data (files that differ between the two, but for seconds and
memory, are compared by their presence alone). Then it is begun, killed one to three times at random moments, and run to
its end. Of `predict` and `evaluate` a file beside the output, and of `predict` a finished prediction that a user
corrects between the kills, must be there untouched. `review` is a person's actions on every case, one after the other:
those that had come to their end before a kill must be in its files. Commands are the tests' method `tiny`; each runs in
a forked process, those of `benchmark` in processes of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import yaml

import common

TESTS = Path(__file__).resolve().parents[1] / "tests"
TIMES = re.compile(
    r'"\d{4}-\d\d-\d\dT[\d:.]+Z"|"[a-z_]*(seconds|memory|peak|commit)[a-z_]*": [^,\n]*,?|'
    r"\d+(\.\d+)? (s|min|GB)\b|\b\d+:\d\d\b"
)
SHARE = {"predict": 25, "fit": 20, "evaluate": 15, "benchmark": 10, "simulate": 10, "review": 15}  # the others: 5
COMMANDS = {
    "fit": "fit d/cases.csv --out out --method tiny --steps 80 --folds 2 --workers 0 --resume --json",
    "predict": "predict model d/cases.csv --out out --pictures",
    "evaluate": "evaluate model d/cases.csv --out out",
    "benchmark": "benchmark suite.yaml --out out",
    "simulate": "simulate d/cases.csv --count 6 --points 5 --include-originals --out out",
    "crop": "crop d/cases.csv --out out",
    "planes": "planes planes.yaml d/cases.csv --out out",
    "measure": "measure measures.yaml d/cases.csv --landmarks predictions --truth --out out/table.csv",
    "register": "register case0 d/cases.csv --out out",
    "review": "review predictions d/cases.csv --out out",
}


def main(argv: list[str] | None = None) -> None:
    """Kill, run again, compare; print and record the table."""
    parser = common.arguments(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS], default=[*COMMANDS])
    args = parser.parse_args(argv)
    out, rng = args.out.resolve(), np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(Path())
        shares = {name: SHARE.get(name, 5) for name in args.only}
        table = {}
        for name, share in shares.items():
            table[name] = trial(name, max(1, round(args.kills * share / sum(shares.values()))), rng)
            print(name, table[name], flush=True)
        os.chdir("/")
    total = sum((Counter(row) for row in table.values()), Counter())
    print(f"{total['kills']} kills, {total['refused']} refused, {total['different']} different, {total['lost']} lost")
    figures = {f"{name}_{key}": value for name, row in table.items() for key, value in row.items()}
    common.record(out, figures, seed=args.seed)


def prepare(folder: Path) -> None:
    """Data, definitions, a model and its predictions; ``tiny`` as another package's method, also in processes."""
    plugin = (folder / "plugin" / "tiny_method-1.dist-info").resolve()
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-method\nVersion: 1\n")
    (plugin / "entry_points.txt").write_text("[anatomark.methods]\ntiny = tiny:Tiny\n")
    sys.path[:0] = [str(plugin.parent), str(TESTS)]
    import tiny

    tiny.write_study(folder / "d", 6, splits=("train", "train", "train", "val", "test", "test"), size=16)
    (folder / "planes.yaml").write_text("planes: {one: {through: [a, b, c], size_mm: 8}}")
    (folder / "measures.yaml").write_text("measurements: {ab: {distance: [a, b]}}")
    suite = {
        "data": {"d": {"manifest": "d/cases.csv"}},
        "methods": {"m": {"method": "tiny"}},
        "steps": 60,
        "threads": 1,
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    for command in ("fit d/cases.csv --out model --method tiny --steps 20 --workers 0 --json",
                    "predict model d/cases.csv --out predictions"):  # fmt: skip
        assert run(command) == 0


def begin(command: str) -> int:
    """Run a command in a process of its own, in a group of its own; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from anatomark.cli.app import main as cli
        from anatomark.training import loop

        loop.SAVE_EVERY_S = 0.1
        if command == COMMANDS["review"]:
            correct(Path("d/cases.csv"), Path("predictions"), Path("out"), Path("journal"))
            code = 0
        else:
            cli(command.split())
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def correct(manifest: Path, predictions: Path, out: Path, journal: Path) -> None:
    """What a person does at the page: every point of every case is moved, each in an action of its own, then the case
    is done; ``journal`` gets a line behind each action."""
    from anatomark.cases.find import find_images_as_cases
    from anatomark.review import Review

    with open(journal, "a", buffering=1) as lines, Review(out, find_images_as_cases([manifest]), predictions) as review:
        for row in review.queue("name"):
            for k, name in enumerate(review.names):
                review.change(row["id"], [{"name": name, "state": "moved", "position": [9.0 + k] * 3}], "Ann")
                lines.write(f"{row['id']} {name}\n")
            review.done(row["id"], "Ann")
            lines.write(f"{row['id']} done\n")


def undone(out: Path, journal: Path) -> list[str]:
    """Actions in the ``journal`` that the files of a review do not hold."""
    lost = []
    for line in journal.read_text().splitlines() if journal.exists() else ():
        case, what = line.split()
        facts = json.loads((out / f"{case}.review.json").read_text())
        there = facts["finished"] if what == "done" else facts["points"][what]["state"] == "moved"
        lost += [] if there else [line]
    return lost


def run(command: str) -> int:
    """The exit code of a command that runs to its end."""
    return os.waitstatus_to_exitcode(os.waitpid(begin(command), 0)[1])


def trial(name: str, kills: int, rng: np.random.Generator) -> dict[str, int]:
    """Kills, those after the first file (``midway``), and what went wrong: reruns ``refused``, results ``different``,
    files ``lost``."""
    command, out = COMMANDS[name], Path("out")
    trees, seconds = [], []
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        began = time.monotonic()
        assert run(command) == 0, Path("log").read_text()
        seconds.append(time.monotonic() - began)
        trees.append(tree(out))
    steady = {f for f in trees[0] if trees[0][f] == trees[1].get(f)}
    inputs, counts = tree(Path("d")) | tree(Path("model")), Counter(kills=0, midway=0, refused=0, different=0, lost=0)
    while counts["kills"] < kills:
        shutil.rmtree(out, ignore_errors=True)
        Path("journal").unlink(missing_ok=True)
        kept = {}
        if name in ("predict", "evaluate"):
            out.mkdir()
            kept[out / "notes.txt"] = "mine"
            (out / "notes.txt").write_text("mine")
        for _ in range(min(int(rng.integers(1, 4)), kills - counts["kills"])):
            pid = begin(command)
            time.sleep(float(rng.uniform(0, min(seconds))))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if not list(out.glob(".anatomark*.lock")) and set(tree(out)) >= set(trees[0]):  # it was faster
                break
            counts["kills"] += 1
            counts["lost"] += len(undone(out, Path("journal")))
            there = {f for f in tree(out) if not f.startswith((".anatomark", "notes"))}
            counts["midway"] += bool(there)
            done = sorted(f for f in there if f.endswith(".mrk.json") and f.replace(".mrk", "") in there)
            if name == "predict" and done and len(kept) == 1:  # a user corrects a finished case
                file = out / done[0]
                kept[file] = file.read_text().replace("p=0.9", "seen, p=0.9", 1)
                file.write_text(kept[file])
        else:
            counts["refused"] += run(command) != 0
        after = tree(out)
        own = {str(f.relative_to(out)) for f in kept}
        wrong = {f for f in steady - own if after.get(f) != trees[0][f]} | (set(after) ^ set(trees[0])) - own
        counts["different"] += bool(wrong)
        if wrong:
            print(name, "differs:", sorted(wrong)[:5], flush=True)
        counts["lost"] += sum(f.read_text() != text for f, text in kept.items())
        counts["lost"] += tree(Path("d")) | tree(Path("model")) != inputs
    return dict(counts)


def tree(folder: Path) -> dict[str, str]:
    """A hash of each file in a folder, without seconds and memory; of logs, which tell of each sitting, none."""
    hashes = {}
    for path in (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".log"):
        data = path.read_bytes()
        if path.name == "cell.json":  # the rest is seconds and memory of the sittings that came to their end
            facts = json.loads(data)
            data = json.dumps({k: facts.get(k) for k in ("key", "inputs", "hash")}).encode()
        elif path.suffix in (".json", ".md", ".yaml"):
            data = TIMES.sub("", data.decode()).encode()
        elif path.suffix == ".csv":
            data = without_times(data.decode()).encode()
        hashes[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return hashes


def without_times(text: str) -> str:
    """A table without its columns of seconds and memory."""
    rows = [line.split(",") for line in text.splitlines()]
    keep = [i for i, cell in enumerate(rows[0]) if not re.search("second|memory", cell)] if rows else []
    return json.dumps([[row[i] for i in keep if i < len(row)] for row in rows])


if __name__ == "__main__":
    main()
