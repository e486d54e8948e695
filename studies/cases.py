"""Small inputs that were misread once, each with its right result: which of them come out right now?

    python studies/cases.py FOLDER --out FILE.json [--only 01-2]

FOLDER holds a folder for each input, whose ``README.md`` has a line ``Command: `anatomark ...```. The command runs
inside it; what is right is held in ``cases_right.py``, by the number that the folder's name begins with: a landmark on
the brightest voxel of what ``crop`` wrote, the landmarks that ``convert`` wrote, a refusal of one line that names the
fault, the words of a warning, a box or a grey value. Of two folders each file counts: 80 holds landmark files of other
programs, 81 manifests for ``plan``. 82 runs a script under a German locale, where ``localedef`` can make one. Folders
that are decided otherwise are listed as such. Figures: ``right``, ``wrong``, ``not_decided``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

import common
from anatomark import Grid, InputError, read_image, read_landmarks
from cases_right import FORMATS, IMAGES, LANDMARKS, MANIFESTS, Plan, Right

SECONDS = 120.0
HOME = ".bughunt_tilde"  # folder of the home directory that a manifest of 81 names


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and all output in one line, of Python with these arguments inside ``folder``."""
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"not done after {SECONDS:g} s"
    return done.returncode, done.stdout, " ".join((done.stdout + done.stderr).split())


def result_of(folder: Path, right: Right, command: str) -> tuple[bool, str]:
    """Whether a command of ``anatomark`` gives what is right, and what it gave."""
    with tempfile.TemporaryDirectory() as out:
        arguments = [a.replace("OUT", out) for a in shlex.split(command)]
        code, _, text = run(["-m", "anatomark", *arguments], folder)
        text = text.replace(out, "OUT")
        if code == 2:
            return bool(right.refused and re.search(right.refused, text)), f"refused: {text[-160:]}"
        if code != 0:
            return False, f"exit {code}: {text[-160:]}"
        if right.said and not re.search(right.said, text):
            return False, "read, nothing is said"
        try:
            if right.points:
                return _landmarks(Path(out) / "o.csv", right)
            return _crop(Path(arguments[arguments.index("--out") + 1]), right)
        except (InputError, ValueError) as error:
            return False, str(error)


def _landmarks(file: Path, right: Right) -> tuple[bool, str]:
    """What ``convert`` wrote, held against what is right."""
    landmarks = read_landmarks(file)
    if set(landmarks.names) != set(right.points):
        return False, f"read {', '.join(landmarks.names)}"
    apart = max(float(np.linalg.norm(landmarks[n] - p)) for n, p in right.points.items())
    return apart < 1e-6, f"{len(landmarks)} landmarks, {apart:.3g} mm off"


def _crop(out: Path, right: Right) -> tuple[bool, str]:
    """What ``crop`` wrote, held against what is right."""
    case = json.loads((out / "crops.json").read_text(encoding="utf-8"))["cases"][0]
    lower = tuple(case["lower"])
    if right.lower:
        return lower == right.lower, f"box from {lower}"
    files = [Path(f) for f in case["files"]]
    image = read_image(files[0])
    array = image.array.astype(float).mean(0)
    if right.grey is not None:
        return bool(array.max() == right.grey), f"brightest value {array.max():g}"
    if not right.place:
        return True, "read"
    index = np.unravel_index(int(array.argmax()), array.shape) + np.array(lower)
    grid = Grid(tuple(case["original"]["shape"]), case["original"]["affine"])
    point = read_landmarks(files[1]).points[0]
    apart = float(np.linalg.norm(grid.to_world(index) - point))
    return apart <= float(grid.spacing.min()) / 2, f"{apart:.3g} mm from the brightest voxel"


def plan_of(folder: Path, name: str, right: Plan) -> tuple[bool, str]:
    """Whether ``plan`` finds in a manifest what is to be found there, and what it found."""
    with tempfile.TemporaryDirectory() as home:
        shutil.copytree(folder / "img", Path(home) / HOME)
        code, out, text = run(["-m", "anatomark", "plan", f"{name}.csv", "--json"], folder, {"HOME": home})
    if code != 0:
        return bool(code == 2 and right.refused and re.search(right.refused, text)), f"exit {code}: {text[-160:]}"
    facts = json.loads(out)
    found = {(s["case"], s["kind"]) for s in facts["suspects"]}
    notes = " ".join(facts["cautions"])
    unknown = sum(row["unannotated"] for row in facts["landmarks"])
    said = bool(re.search(right.note, notes)) if right.note else ".json" not in notes
    seen = ", ".join(f"{case} {kind}" for case, kind in sorted(found)) or "no suspects"
    return not right.refused and found == set(right.suspects) and said and not unknown, f"{seen}; {notes[:100]}"


def under_a_german_locale(folder: Path, right: Right) -> tuple[bool, str] | None:
    """Whether ``read.py`` prints what is right; None where there is no such locale and none can be made."""
    with tempfile.TemporaryDirectory() as out:
        shutil.copytree(folder, Path(out) / "a")
        maker = shutil.which("localedef")
        if maker is None:
            return None
        subprocess.run([maker, "-i", "de_DE", "-f", "UTF-8", f"{out}/de_DE.UTF-8"], capture_output=True, check=False)
        if not Path(out, "de_DE.UTF-8").is_dir():
            return None
        code, text, all_text = run(["read.py"], Path(out) / "a", {"LOCPATH": out})
    return code == 0 and bool(re.search(right.printed, text)), all_text[-160:]


def results_of(folder: Path) -> Iterator[tuple[str, tuple[bool, str] | None]]:
    """The name and the result of each input in a folder; None where it is not decided here."""
    number = folder.name[:2]
    right = {**IMAGES, **LANDMARKS}.get(number)
    if number == "80":
        for file, (given, of_file) in FORMATS.items():
            yield (
                f"{folder.name}/{file}",
                result_of(folder, of_file, shlex.join(["convert", file, "OUT/o.csv", *given])),
            )
    elif number == "81":
        for name, of_manifest in MANIFESTS.items():
            yield f"{folder.name}/{name}", plan_of(folder, name, of_manifest)
    elif right is None:
        yield folder.name, None
    elif right.printed:
        yield folder.name, under_a_german_locale(folder, right)
    else:
        command = re.search(r"Command: `anatomark (.*?)`", (folder / "README.md").read_text(encoding="utf-8"))
        missing = False, "its README holds no command"
        yield folder.name, missing if command is None else result_of(folder, right, command[1])


def main(given: list[str] | None = None) -> None:
    """Every folder that is decided here, in order."""
    parser = common.arguments(__doc__, "folder")
    parser.add_argument("--only", default="", help="folders whose name begins with this")
    args = parser.parse_args(given)
    rows = {}
    undecided = 0
    for folder in sorted(f for f in args.folder.iterdir() if f.is_dir() and f.name.startswith(args.only)):
        for name, result in results_of(folder):
            if result is None:
                undecided += 1
                print(f"-      {name}: not decided here")
                continue
            fine, seen = result
            rows[name] = {"right": fine, "seen": seen}
            print(f"{'right' if fine else 'WRONG'}  {name}: {seen}", flush=True)
    count = sum(row["right"] for row in rows.values())
    figures = {"right": count, "wrong": len(rows) - count, "not_decided": undecided}
    common.record(args.out, figures, folders=rows)


if __name__ == "__main__":
    common.run(main)
