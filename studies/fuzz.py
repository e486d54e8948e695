"""Does any file end the program, hold it up, fill the memory, or put an image elsewhere without a word?

    python studies/fuzz.py --out FILE.json [--count 5000] [--seed 0] [--commands 40] [--only KIND]

Each input is a sound file of one kind, made up from the seed and its number, and mostly damaged: extreme header fields,
bytes flipped, cut off or appended, wrong endings, files that unpack without end. It goes through the public functions
in a process that tries many; it must be read or be refused by one line, within 20 s of processor time and 2 GB, and
where it is read the image's corners must lie within 0.001 mm of where another reading (nibabel, pydicom, a few lines
of our own) puts them. ``--commands`` of them also go through ``python -m anatomark``: exit code 0 or 2. Figures:
``inputs``, ``read``, ``checked`` (against the other reading), ``refused``, ``faults``, ``killed``, ``slow``,
``greedy``, ``silent_geometry``, ``commands``, ``command_faults``. ``--keep FOLDER`` keeps the inputs at fault.
"""

from __future__ import annotations

import json
import selectors
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import common
from fuzzing import damage, images, texts

MAKERS = {**images.MAKERS, **texts.MAKERS}
SHARES = {"nifti": 5, "nrrd": 4, "metaimage": 4, "dicom": 4, "dicom series": 2, "dicom frames": 2, "picture": 5,
          "mgh": 1, "other image": 2, "bomb": 0.2, "landmarks": 6, "manifest": 1, "definition": 2, "settings": 2,
          "options": 1}  # fmt: skip
CHILD = "import sys; sys.path[:] = {!r}; from fuzzing.child import main; main()"
SECONDS, GB, WALL = 20.0, 2.0, 120.0
SOUND = 0.15  # share of inputs that are left as they were made
COLUMNS = ("inputs", "read", "checked", "refused", "faults", "killed", "slow", "greedy", "silent_geometry")


@dataclass(frozen=True)
class Input:
    number: int
    kind: str
    path: Path
    apart: bool


def made(number: int, seed: int, folder: Path, only: str = "") -> Input:
    """The input of that number, in an empty folder."""
    rng = np.random.default_rng([seed, number])
    kinds = [k for k in MAKERS if k.startswith(only)]
    shares = np.array([SHARES[k] for k in kinds])
    kind = str(rng.choice(kinds, p=shares / shares.sum()))
    path = MAKERS[kind](texts.clear(folder), rng)
    if kind != "bomb" and rng.random() > SOUND:
        path = damage.damaged(path, kind, rng)
    return Input(number, kind, path, bool(rng.random() < 0.5))


class Child:
    """The process that tries inputs; a new one where it ended."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CHILD.format(sys.path)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        if self.process.stdout is None or self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the process that tries inputs does not start")
        self.late = False

    def ask(self, one: Input) -> dict[str, Any] | None:
        """What it gave; None where the process ended or took too long, which ends it."""
        source, sink = self.process.stdout, self.process.stdin
        assert source is not None and sink is not None
        sink.write(json.dumps({"kind": one.kind, "path": str(one.path), "apart": one.apart}) + "\n")
        sink.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            self.late = not selector.select(WALL)
            line = "" if self.late else source.readline()
        return json.loads(line) if line else None

    def end(self) -> int:
        self.process.kill()
        return self.process.wait()


def outcomes(inputs: Iterator[Input]) -> Iterator[tuple[Input, list[str], str]]:
    """For each input what it counts as (:data:`COLUMNS`), and what was said."""
    child = Child()
    try:
        for one in inputs:
            answer = child.ask(one)
            if answer is None:
                code = child.end()
                yield one, ["faults", "slow" if child.late else "killed"], f"process ended: {code}"
                child = Child()
                continue
            counts = {"read": ["read"], "refused": ["refused"], "fault": ["faults"]}[answer["state"]]
            said = answer["said"]
            counts += ["checked"] * (said == "checked") + ["silent_geometry"] * said.startswith("silent geometry")
            over = ["slow"] * (answer["cpu"] > SECONDS) + ["greedy"] * (answer["gb"] > GB)
            if over:
                child.end()  # its peak would be held against the next
                child = Child()
                said = f"{answer['cpu']:.1f} s, {answer['gb']:.2f} GB: {said}"
                counts = ["faults", *over]
            yield one, counts, said
    finally:
        child.end()


def command_of(one: Input, folder: Path) -> list[str]:
    """A command line that reads the input."""
    path = str(one.path)
    if one.kind == "landmarks":
        return ["convert", path, str(folder / "written.fcsv"), "--overwrite"]
    if one.kind == "manifest":
        return ["plan", path]
    if one.kind == "options":
        return list(json.loads(one.path.read_text()))
    (folder / "m.fcsv").write_text("# CoordinateSystem = LPS\n# columns = label,x,y,z\na,0,0,0\n")
    return ["crop", path, "--landmarks", str(folder / "m.fcsv"), "--out", str(folder / "out"), "--pad", "0"]


def command_fault(one: Input, folder: Path) -> str:
    """What is wrong with how the command ended; blank where nothing is."""
    arguments = [a for a in command_of(one, folder) if "\0" not in a]
    done = subprocess.run(
        [sys.executable, "-m", "anatomark", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        errors="replace",
        cwd=folder,
    )
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return "" if done.returncode in (0, 2) else f"exit {done.returncode}: {last[0][-300:]}"


def main(given: list[str] | None = None) -> None:
    """All inputs, the table by kind, and what was at fault."""
    parser = common.arguments(__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=40, help="so many also go through the command line")
    parser.add_argument("--only", default="", help="kinds that begin with this")
    parser.add_argument("--keep", type=Path, help="folder for the inputs at fault")
    args = parser.parse_args(given)
    warnings.simplefilter("ignore")
    table: dict[str, Counter[str]] = {kind: Counter() for kind in MAKERS if kind.startswith(args.only)}
    faults: list[dict[str, Any]] = []
    every = max(1, args.count // max(1, args.commands))
    commands: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "input"
        inputs = (made(n, args.seed, folder, args.only) for n in range(args.count))
        for one, counts, said in outcomes(inputs):
            table[one.kind].update(["inputs", *counts])
            if args.commands and one.number % every == 0 and one.kind not in ("definition", "settings", "bomb"):
                commands["commands"] += 1
                if wrong := command_fault(one, folder):
                    commands["command_faults"] += 1
                    counts, said = [*counts, "faults"], wrong
            if "faults" in counts:
                faults.append({"number": one.number, "kind": one.kind, "file": one.path.name, "said": said})
                print(f"FAULT {one.number} {one.kind} {one.path.name}: {said}", flush=True)
                if args.keep is not None:
                    shutil.copytree(folder, args.keep / str(one.number), dirs_exist_ok=True)
            if one.number % 500 == 499:
                print(f"{one.number + 1} of {args.count}", flush=True)
    print(_text(table))
    figures = {name: sum(row[name] for row in table.values()) for name in COLUMNS}
    figures |= {name: commands[name] for name in ("commands", "command_faults")}
    rows = {kind: {name: row[name] for name in COLUMNS} for kind, row in table.items()}
    common.record(args.out, figures, seed=args.seed, table=rows, faults=faults)


def _text(table: dict[str, Counter[str]]) -> str:
    lines = [f"{'':14}" + "".join(f"{name.replace('_', ' '):>10.9}" for name in COLUMNS)]
    lines += [f"{kind:14}" + "".join(f"{row[name]:>10}" for name in COLUMNS) for kind, row in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    common.run(main)
