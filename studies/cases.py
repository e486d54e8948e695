"""Small inputs that were misread once, each with its right result: which of them come out right now?

    python studies/cases.py FOLDER --out FILE.json [--only 01-2]

FOLDER holds a folder for each input, whose ``README.md`` has a line ``Command: `anatomark ...```. The command runs
inside it; what is right is held here, by the number that the folder's name begins with: a landmark on the brightest
voxel of what ``crop`` wrote (``place``), a refusal of one line that names the fault (``refused``), the words of a
warning (``said``), a box or a grey value. Folders that are decided otherwise are listed as such. Figures: ``right``,
``wrong``, ``not_decided``.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import common
from anatomark import Grid, InputError, read_image, read_landmarks

SECONDS = 120.0


@dataclass(frozen=True)
class Right:
    """What is right: ``place``: the landmark lies on the brightest voxel; ``refused``, ``said``: what the one line of a
    refusal, or the output of a command that succeeds, matches; ``lower``: the box; ``grey``: the brightest value."""

    place: bool = False
    refused: str = ""
    said: str = ""
    lower: tuple[int, ...] = ()
    grey: float | None = None


SPACING = Right(refused="spacing")
EITHER = Right(place=True, refused=".")
RIGHT = {
    "01": EITHER, "03": Right(place=True), "04": EITHER, "06": EITHER, "07": EITHER,
    "08": Right(refused="position.*spacing"), "09": Right(place=True), "10": Right(refused="im003"),
    "11": Right(refused="one place"), "14": Right(refused="orientation"), "15": Right(refused="apart"), "17": EITHER,
    "18": EITHER, "19": EITHER, "20": SPACING, "22": EITHER,
    "23": Right(place=True, said="mm apart", refused="mm apart"),
    "24": Right(place=True, said="mm apart", refused="mm apart"),
    "25": EITHER, "26": EITHER, "28": Right(said="right are unknown", refused="qform"),
    "29": EITHER, "30": SPACING,
    "32": Right(said="Analyze", refused="Analyze"), "33": Right(place=True, refused="gz"), "34": Right(place=True),
    "35": Right(place=True), "36": Right(place=True), "37": SPACING, "38": SPACING, "40": SPACING,
    "41": Right(place=True, refused="micron"), "43": Right(lower=(125, 40)), "44": Right(lower=(95, 10)),
    "46": Right(grey=250),
    "47": Right(place=True), "48": Right(place=True), "49": Right(place=True), "50": Right(place=True, refused="page"),
    "52": Right(refused=r"r08\.raw\.gz"), "53": Right(refused=r"nothere\.raw"),
    "54": Right(refused=r"m08c\.raw is cut off"),
    "55": Right(place=True), "56": Right(place=True), "57": Right(refused="im004.dcm is 22 x 18, the others 24 x 20"),
}  # fmt: skip


def result_of(folder: Path, right: Right) -> tuple[bool, str]:
    """Whether the folder's command gives what is right, and what it gave."""
    command = re.search(r"Command: `anatomark (.*?)`", (folder / "README.md").read_text(encoding="utf-8"))
    if command is None:
        return False, "its README holds no command"
    with tempfile.TemporaryDirectory() as out:
        arguments = [a.replace("OUT", out) for a in shlex.split(command[1])]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "anatomark", *arguments],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return False, f"not done after {SECONDS:g} s"
        text = " ".join((done.stdout + done.stderr).replace(out, "OUT").split())
        if done.returncode == 2:
            return bool(right.refused and re.search(right.refused, text)), f"refused: {text[-160:]}"
        if done.returncode != 0:
            return False, f"exit {done.returncode}: {text[-160:]}"
        if right.said and not re.search(right.said, text):
            return False, "read, nothing is said"
        try:
            return _held(Path(arguments[arguments.index("--out") + 1]), right)
        except InputError as error:
            return False, str(error)


def _held(out: Path, right: Right) -> tuple[bool, str]:
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


def main(given: list[str] | None = None) -> None:
    """Every folder that is decided here, in order."""
    parser = common.arguments(__doc__, "folder")
    parser.add_argument("--only", default="", help="folders whose name begins with this")
    args = parser.parse_args(given)
    rows = {}
    undecided = 0
    for folder in sorted(f for f in args.folder.iterdir() if f.is_dir() and f.name.startswith(args.only)):
        right = RIGHT.get(folder.name[:2])
        if right is None:
            undecided += 1
            print(f"-      {folder.name}: not decided here")
            continue
        fine, seen = result_of(folder, right)
        rows[folder.name] = {"right": fine, "seen": seen}
        print(f"{'right' if fine else 'WRONG'}  {folder.name}: {seen}", flush=True)
    count = sum(row["right"] for row in rows.values())
    figures = {"right": count, "wrong": len(rows) - count, "not_decided": undecided}
    common.record(args.out, figures, folders=rows)


if __name__ == "__main__":
    common.run(main)
