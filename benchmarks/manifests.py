"""Manifests for the benchmark data, written outside the data folder.

    python benchmarks/manifests.py --out manifests

The data folder is the environment variable ANATOMARK_DATA, by default ``../shared/data`` beside the repository. A data
set that is not there is skipped with a line that says so. Splits:

- ``cephalogram.csv``: 001-150 train, 151-300 test, 0.1 mm per pixel, truth ``senior``; both observers stand in
  ``cephalogram_landmarks.csv``, and ``anatomark evaluate`` measures against the others and their mean too;
- ``brain.csv``: the population templates train, Colin27, one real person, is the test;
- ``mouse_skull.csv``: the 16 train; the 6 called ``val`` in the data's own table are the test.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPACING_MM = "0.1"
TEST_BRAIN = "Colin27"


def data_folder() -> Path:
    """Where the data are: ``ANATOMARK_DATA``, else ``../shared/data`` beside the repository."""
    return Path(os.environ.get("ANATOMARK_DATA") or ROOT.parent / "shared" / "data").resolve()


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], first_line: str = "") -> Path:
    """A CSV file, written under a temporary name and then moved to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        file.write(first_line)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(draft, path)
    return path


def cephalogram(data: Path, out: Path) -> Path:
    """300 radiographs, 19 landmarks, two observers in one tidy table."""
    names = [line.strip() for line in (data / "names.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    points = []
    for observer in ("senior", "junior"):
        with (data / f"{observer}_mm.csv").open(newline="", encoding="utf-8") as file:
            for case, *values in csv.reader(file):
                pairs = zip(names, values[0::2], values[1::2], strict=True)
                points += [(case, name, x, y, observer) for name, x, y in pairs]
    table = write_table(
        out / "cephalogram_landmarks.csv", ("case", "label", "x", "y", "observer"), points, "# frame=image unit=mm\n"
    )
    cases = sorted({row[0] for row in points})
    rows = [
        (c, str(data / "images" / f"{c}.jpg"), f"{table.name}#senior", "train" if int(c) <= 150 else "test", SPACING_MM)
        for c in cases
    ]
    return write_table(out / "cephalogram.csv", ("case", "image", "landmarks", "split", "spacing"), rows)


def brain(data: Path, out: Path) -> Path:
    """Six T1 volumes with 32 fiducials."""
    rows = []
    for landmarks in sorted(data.glob("*_afids.fcsv")):
        case = landmarks.name.removesuffix("_afids.fcsv")
        image = next(p for p in sorted(data.glob(f"{case}_*.nii*")))
        rows.append((case, str(image), str(landmarks), "test" if case == TEST_BRAIN else "train"))
    # a model's landmark order comes from its first training case; the sharp 1 mm template leads
    rows.sort(key=lambda row: (row[3] != "train", row[0] != "MNI152NLin2009cAsym", row[0]))
    return write_table(out / "brain.csv", ("case", "image", "landmarks", "split"), rows)


def mouse_skull(data: Path, out: Path) -> Path:
    """22 micro-CT skulls in arbitrary poses, 45 landmarks."""
    with (data / "cases.csv").open(newline="", encoding="utf-8-sig") as file:
        cases = list(csv.DictReader(file))
    split = {"train": "train", "val": "test"}
    rows = [(c["case"], str(data / c["image"]), str(data / c["landmarks"]), split[c["split"]]) for c in cases]
    return write_table(out / "mouse_skull.csv", ("case", "image", "landmarks", "split"), rows)


SETS: dict[str, Callable[[Path, Path], Path]] = {"cephalogram": cephalogram, "brain": brain, "mouse_skull": mouse_skull}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write every manifest whose data are there; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the manifests")
    out = parser.parse_args(arguments).out.resolve()
    data = data_folder()
    if out == data or data in out.parents:
        parser.error(f"--out {out} lies inside the data folder {data}; choose a folder outside it")
    for name, write in SETS.items():
        if (data / name).is_dir():
            print(f"wrote {write(data / name, out)}")
        else:
            print(f"skipped {name}: there is no folder {data / name} (set ANATOMARK_DATA)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
