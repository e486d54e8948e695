"""Damaged, hostile and doubled inputs that once ended in a crash, an endless run or a silent loss: which end well now?

    python studies/faults.py FOLDER --out FILE.json [--only 01]

FOLDER holds ``base`` (tiny phantoms with manifests and a small trained model ``run3``) and ``faults`` with a folder for
each fault, of which some files are read; the rest is made here. Each is right if every command ends with the exit code
and the words that it should, in time, without a traceback. Figures: ``right``, ``wrong``.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture

import common

SECONDS = 60.0
REPOSITORY = Path(__file__).resolve().parents[1]
NOBODY = 65534


class Trial:
    """Where one fault is tried: its ``folder``, the ``base`` beside it, and an empty folder ``out``."""

    def __init__(self, folder: Path, base: Path, out: Path):
        self.folder, self.base, self.out = folder, base, out
        self.model, self.image, self.cases = base / "run3", base / "p3_7.nii.gz", base / "cases3.csv"

    def start(self, *words: object, user: int | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "anatomark", *map(os.fsdecode, map(_fs, words))]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, text=True, errors="replace", cwd=self.out, user=user, **pipes)  # type: ignore

    def run(
        self, *words: object, code: int | Sequence[int] = 2, says: str = "", user: int | None = None, lines: int = 4
    ) -> str:
        """Empty where the command ends with one of the codes and says the words, else what is wrong."""
        return self.judged(self.start(*words, user=user), code, says, lines)

    def judged(self, process: subprocess.Popen[str], code: int | Sequence[int], says: str = "", lines: int = 4) -> str:
        began = time.monotonic()
        try:
            text, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"not done after {time.monotonic() - began:.0f} s"
        wanted = [code] if isinstance(code, int) else list(code)
        last = " ".join(text.split())[-200:]
        if process.returncode not in wanted:
            return f"exit {process.returncode}: {last}"
        if "our fault" in text or "Traceback" in text:
            return f"our fault: {last}"
        if not re.search(says, text):
            return f"does not say {says!r}: {last}"
        if process.returncode == 2 and len([line for line in text.splitlines() if line.startswith("error")]) > lines:
            return f"many lines: {last}"
        return ""


def _fs(word: object) -> bytes:
    return word if isinstance(word, bytes) else os.fsencode(str(word))


def refused(*names: str, says: str = "") -> Callable[[Trial], Iterator[str]]:
    """``predict`` of files of the folder is refused."""

    def tried(t: Trial) -> Iterator[str]:
        for name in names:
            yield t.run("predict", t.model, t.folder / name, "--out", t.out / "o", says=f"{re.escape(name)}.*{says}")

    return tried


def odd_name(t: Trial) -> Iterator[str]:
    odd = os.fsencode(t.out) + b"/\xff\xfe.nii.gz"
    shutil.copyfile(t.image, odd)
    yield t.run("predict", t.model, odd, t.base / "p3_0.nii.gz", "--out", t.out / "o", code=(0, 2))


def half_written(t: Trial) -> Iterator[str]:
    shutil.copytree(t.folder / "out", t.out / "o")
    yield t.run("predict", t.model, t.image, "--out", t.out / "o", code=0)
    if not (t.out / "o" / "p3_7.json").exists():
        yield "p3_7.json was not written"


def json_values(t: Trial) -> Iterator[str]:
    for file in sorted(t.folder.glob("*.mrk.json")):
        target = t.out / f"{file.name.split('.')[0]}{'.mrk.json' if 'nan' in file.name else '.csv'}"
        yield t.run("convert", file, target, code=(0, 2) if "frame" in file.name or "nan" in file.name else 2)


def yaml_values(t: Trial) -> Iterator[str]:
    for file in sorted(t.folder.glob("*.yaml")):
        for words in (("fit", t.cases, "--config", file), ("benchmark", file), ("planes", file, t.cases),
                      ("measure", file, t.cases)):  # fmt: skip
            out = t.out / ("o.csv" if words[0] == "measure" else "o")
            yield t.run(*words, "--out", out, says=re.escape(file.name))


def no_files(t: Trial) -> Iterator[str]:
    os.mkfifo(t.out / "x.nii")
    yield t.run("predict", t.model, t.out / "x.nii", "--out", t.out / "o", says="x.nii")
    for name in ("plan.json", "config.yaml", "calibration.json", "weights.safetensors"):
        for kind in ("fifo", "zero"):
            model = t.out / f"{kind}-{name}"
            shutil.copytree(t.model, model)
            (model / name).unlink(missing_ok=True)
            os.mkfifo(model / name) if kind == "fifo" else (model / name).symlink_to("/dev/zero")
            yield t.run("predict", model, t.image, "--out", t.out / "o", says=re.escape(name))


def out_names(t: Trial) -> Iterator[str]:
    (t.out / "loop").symlink_to(t.out / "loop")
    (t.out / "file").write_text("mine")
    commands: dict[str, tuple[object, ...]] = {
        "crop": (t.cases, "--margin-mm", 2), "fit": (t.cases, "--steps", 2), "predict": (t.model, t.image),
        "evaluate": (t.model, t.cases), "simulate": (t.cases, "--count", 1), "calibrate": (t.model, t.cases),
    }  # fmt: skip
    for out in ("x" * 300, t.out / "loop", "/proc/o", t.out / "file" / "o", t.out / "file"):
        for command, words in commands.items():
            yield t.run(command, *words, "--out", out)
    if (t.out / "file").read_text() != "mine":
        yield "the user's file is gone"


def two_writers(t: Trial) -> Iterator[str]:
    fits = [t.start("fit", t.cases, "--out", t.out / "f", "--method", "pin", "--steps", 60, "--set", f"seed={s}")
            for s in (0, 1)]  # fmt: skip
    outcomes = [t.judged(p, (0, 2)) for p in fits]
    yield from (o for o in outcomes if o)
    if sorted(p.returncode for p in fits) != [0, 2]:
        yield f"two fits ended with {[p.returncode for p in fits]}"


def damaged_plan(t: Trial) -> Iterator[str]:
    shutil.copytree(t.model, t.out / "m")
    os.chmod(t.out / "m", 0o755)
    (t.out / "m" / "plan.json").unlink()
    shutil.copyfile(t.folder / "plan.json", t.out / "m" / "plan.json")
    yield t.run("predict", t.out / "m", t.image, "--out", t.out / "o", says=r"plan\.json")


def sizes(t: Trial) -> Iterator[str]:
    model = REPOSITORY / "zoo-research" / "cephalogram-isbi2015"
    grey = (np.random.default_rng(0).random((2400, 1935)) * 255).astype(np.uint8)
    Picture.fromarray(grey).save(t.out / "x.jpg")
    for spacing in ("10", "1000;1000", "1;1e9"):
        yield t.run("predict", model, t.out / "x.jpg", "--spacing", spacing, "--out", t.out / "o", says="spacing")


def options(t: Trial) -> Iterator[str]:
    huge = "99999999999999999999"
    yield t.run("fit", t.cases, "--out", t.out / "f", "--method", "pin", "--steps", huge, says="steps")
    for threads in ("100000", huge, "0", "-1", "nan"):
        yield t.run("predict", t.model, t.image, "--out", t.out / "o", "--threads", threads, says="threads")


def bomb(t: Trial) -> Iterator[str]:
    head = gzip.decompress(t.image.read_bytes())[:352]
    chunk = gzip.compress(bytes(64 << 20))
    (t.out / "x.nii.gz").write_bytes(gzip.compress(head + bytes(64)) + 160 * chunk)
    began = time.monotonic()
    yield t.run("predict", t.model, t.out / "x.nii.gz", "--out", t.out / "o", code=(0, 2))
    if time.monotonic() - began > 30:
        yield f"took {time.monotonic() - began:.0f} s"


def unreadable(t: Trial) -> Iterator[str]:
    shutil.copyfile(t.image, t.out / "a.nii.gz")
    for name in ("zz", "zz.txt"):
        (t.out / name).write_text("secret")
        os.chmod(t.out / name, 0)
    (t.out / "closed").mkdir(mode=0)
    (t.out / "o").mkdir()
    for path in (t.out, t.out / "o"):
        os.chmod(path, 0o777)
    user = NOBODY if os.geteuid() == 0 else None  # nothing is closed to root
    try:
        yield t.run("predict", t.model, t.out, "--out", t.out / "o", code=0, says="a", user=user)
    except PermissionError:
        print("not tried: another user than root may not run this Python", file=sys.stderr)


TRIALS: dict[str, Callable[[Trial], Iterator[str]]] = {
    "01": refused("x.nrrd"), "02": odd_name, "03": refused("x.nii.gz"), "04": half_written,
    "05": refused("zero.nii", "nan.nii", says="spacing"), "06": refused("cut.nii"), "07": refused("x.nii"),
    "09": json_values, "11": yaml_values, "12": yaml_values, "13": no_files, "14": out_names, "16": two_writers,
    "18": refused("x.mha", "y.mha"), "19": damaged_plan, "20": sizes, "21": options, "24": bomb, "25": unreadable,
}  # fmt: skip


def main(given: list[str] | None = None) -> None:
    """Every fault, in order."""
    parser = common.arguments(__doc__, "folder")
    parser.add_argument("--only", default="", help="faults whose name begins with this")
    args = parser.parse_args(given)
    rows = {}
    for folder in sorted(f.resolve() for f in (args.folder / "faults").iterdir() if f.name.startswith(args.only)):
        with tempfile.TemporaryDirectory() as out:
            os.chmod(out, 0o755)
            try:
                wrong = [w for w in TRIALS[folder.name[:2]](Trial(folder, folder.parents[1] / "base", Path(out))) if w]
            finally:
                subprocess.run(["chmod", "-R", "u+rwX", out], check=False)
        rows[folder.name] = {"right": not wrong, "seen": wrong}
        print(f"{'WRONG' if wrong else 'right'}  {folder.name}{': ' if wrong else ''}{' | '.join(wrong)}", flush=True)
    count = sum(row["right"] for row in rows.values())
    common.record(args.out, {"right": count, "wrong": len(rows) - count}, folders=rows)


if __name__ == "__main__":
    common.run(main)
