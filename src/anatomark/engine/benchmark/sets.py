"""Manifests of the data sets that the project is measured on, made from the folders in which they lie.

Each function takes a data set's own folder and the folder for the manifest, which it returns. Splits:

- ``cephalogram.csv``: 001-150 train, 151-300 test, 0.1 mm per pixel, truth ``senior``; both observers stand in
  ``cephalogram_landmarks.csv``, and ``anatomark evaluate`` measures against the others and their mean too;
- ``brain.csv``: the population templates train, Colin27, one real person, is the test;
- ``mouse_skull.csv``: the 16 train; the 6 called ``val`` in the data's own table are the test.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import anatomark

VARIABLE = "ANATOMARK_DATA"
SPACING_MM = "0.1"
TEST_BRAIN = "Colin27"


def data_folder() -> Path:
    """Where the data are: the environment variable ``ANATOMARK_DATA``, else ``../shared/data`` beside the checkout."""
    checkout = Path(anatomark.__file__).resolve().parents[2]
    return Path(os.environ.get(VARIABLE) or checkout.parent / "shared" / "data").resolve()


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
