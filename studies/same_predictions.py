"""Are the predictions of the three trained models those of another version? Predicts, and compares two such folders.

    python studies/same_predictions.py --out NEW [--against OLD] [--json FILE.json]

Predicts with the command line program: ``brain-afids`` on the 6 brains, ``zoo-research/mouse-skull`` on the 22 skulls,
``zoo-research/cephalogram-isbi2015`` on 40 cephalograms (every seventh, from 001 on), into ``brain``, ``mouse_skull``
and ``cephalogram`` of NEW; what is there already is not predicted again, so a new version needs a new folder. With
``--against`` each model's predictions are compared, case by case and landmark by landmark: positions, radii and
suspicion may differ by 1e-9, statuses and flags not at all. The exit code is 1 where anything differs.

The package that runs is the one that Python finds (``PYTHONPATH``), the models are those of its checkout: so one script
serves the version before a change and the one after it. The data are those of ANATOMARK_DATA.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anatomark
from data import data_folder

TOLERANCE = 1e-9
CEPHALOGRAMS, EVERY = 40, 7
Facts = dict[str, Any]  # what a case's JSON file holds


# ---------------------------------------------------------------------- predicting


def tasks() -> dict[str, tuple[str, list[Path], list[str]]]:
    """By folder: the model, its images, and further options."""
    data, research = data_folder(), Path(anatomark.__file__).resolve().parents[2] / "zoo-research"
    xrays = sorted((data / "cephalogram" / "images").glob("*.jpg"))[::EVERY][:CEPHALOGRAMS]
    return {
        "brain": ("brain-afids", sorted((data / "brain").glob("*.nii*")), []),
        "mouse_skull": (str(research / "mouse-skull"), sorted((data / "mouse_skull").glob("*.nii.gz")), []),
        "cephalogram": (str(research / "cephalogram-isbi2015"), xrays, ["--spacing", "0.1"]),
    }


def predict_all(out: Path) -> None:
    """Predict what is not there; ends with a line where a model fails."""
    for name, (model, images, options) in tasks().items():
        if (out / name).exists():
            print(f"{name}: {out / name} is there, not predicted again")
            continue
        if not images:
            sys.exit(f"error: {name}: there are no images in {data_folder() / name} (set ANATOMARK_DATA)")
        draft = out / f"{name}.part"  # so that what is there is complete
        paths = [model, *map(str, images), "--out", str(draft), "--overwrite"]
        if code := subprocess.run([sys.executable, "-m", "anatomark", "predict", *paths, *options]).returncode:
            sys.exit(f"error: {name}: predict ended with code {code}")
        draft.rename(out / name)


# ---------------------------------------------------------------------- comparing


@dataclass
class Difference:
    """How far two folders of predictions of one model are apart; positions and radii in mm. ``differ``: what differs
    otherwise, or by more than is allowed, as ``case: what``."""

    cases: int = 0
    landmarks: int = 0
    position: float = 0.0
    radius: float = 0.0
    suspicion: float = 0.0
    differ: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The figures, and what differs."""
        shown = "; ".join(self.differ[:5]) + (f" and {len(self.differ) - 5} more" if len(self.differ) > 5 else "")
        return (
            f"{self.cases} cases, {self.landmarks} landmarks; largest difference of a position {self.position:.3g} mm, "
            f"of a radius {self.radius:.3g} mm, of suspicion {self.suspicion:.3g}; "
            + (f"DIFFERENT: {shown}" if self.differ else "statuses and flags equal")
        )

    def add_case(self, case: str, new: Facts, old: Facts) -> None:
        """Compare one case."""
        self.cases += 1
        if new.get("flags") != old.get("flags"):
            self.differ.append(f"{case}: flags {new.get('flags')}, were {old.get('flags')}")
        self.suspicion = max(self.suspicion, self._apart(case, "suspicion", new, old))
        ours, theirs = ({one["label"]: one for one in facts["landmarks"]} for facts in (new, old))
        if list(ours) != list(theirs):
            self.differ.append(f"{case}: its landmarks are others, or in another order")
        for label in (name for name in ours if name in theirs):
            self.landmarks += 1
            where, one, other = f"{case}, landmark {label}", ours[label], theirs[label]
            if one["status"] != other["status"]:
                self.differ.append(f"{where}: status {one['status']}, was {other['status']}")
            self.radius = max(self.radius, self._apart(where, "radius90", one, other))
            self.position = max(self.position, self._apart(where, "position", one, other))

    def _apart(self, where: str, key: str, new: Facts, old: Facts) -> float:
        """The distance between two numbers or points, 0 where both lack it; what only one has differs."""
        ours, theirs = new.get(key), old.get(key)
        if ours is None or theirs is None:
            apart = 0.0
            if (ours is None) != (theirs is None):
                self.differ.append(f"{where}: {key} {ours}, was {theirs}")
        else:
            a, b = (value if isinstance(value, list) else [value] for value in (ours, theirs))
            apart = math.dist(a, b) if len(a) == len(b) else math.inf
        if not apart <= TOLERANCE:
            self.differ.append(f"{where}: {key} differs by {apart:.3g}")
        return apart


def read_folder(folder: Path) -> dict[str, Facts]:
    """What ``predict`` wrote, by case."""
    files = [p for p in sorted(folder.glob("*.json")) if not p.name.endswith(".mrk.json")]
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in files}


def compared(new: Path, old: Path) -> Difference:
    """All cases of two folders; a case that only one has differs, and so does an empty folder."""
    ours, theirs = read_folder(new), read_folder(old)
    difference = Difference()
    for case in sorted(ours.keys() | theirs.keys()):
        if case in ours and case in theirs:
            difference.add_case(case, ours[case], theirs[case])
        else:
            difference.differ.append(f"{case}: only in {new if case in ours else old}")
    if not difference.cases:
        difference.differ.append(f"no case is both in {new} and {old}")
    return difference


def main(given: Sequence[str] | None = None) -> None:
    """Predict, compare, print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="NEW")
    parser.add_argument("--against", type=Path, metavar="OLD")
    parser.add_argument("--json", type=Path, metavar="FILE.json")
    args = parser.parse_args(given)
    predict_all(args.out)
    if args.against is None:
        return
    differences = {name: compared(args.out / name, args.against / name) for name in tasks()}
    for name, difference in differences.items():
        print(f"{name}: {difference.line()}")
    if args.json is not None:
        facts = {name: asdict(difference) for name, difference in differences.items()}
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if any(d.differ for d in differences.values()) else 0)


if __name__ == "__main__":
    main()
