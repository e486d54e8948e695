"""Manifests of the data sets that the project is measured on, written outside the folders in which these lie.

    python studies/manifests.py --out manifests

The data folder is the environment variable ANATOMARK_DATA, by default ``../shared/data`` beside the repository. A data
set that is not there is skipped with a line that says so. The suites read what is written here. Splits:

- ``cephalogram.csv``: 001-150 train, 151-300 test, 0.1 mm per pixel, truth ``senior``; both observers stand in
  ``cephalogram_landmarks.csv``, and ``anatomark evaluate`` measures against the others and their mean too;
- ``brain.csv``: the population templates train, Colin27, one real person, is the test;
- ``mouse_skull.csv``: the 16 train; the 6 called ``val`` in the data's own table are the test;
- ``spine.csv``: as the data's own table (481 train, 128 test).
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from anatomark import InputError
from anatomark.io.atomic import read_text
from anatomark.io.sheets import read_sheet, write_csv
from data import data_folder, data_set

SPACING_MM = "0.1"
TEST_BRAIN = "Colin27"
COLUMNS = ("case", "image", "landmarks", "split")


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], first_line: str = "") -> Path:
    """A CSV file, with a line before its header where one is given."""
    write_csv(path, (dict(zip(header, row, strict=True)) for row in rows), header, head=first_line)
    return path


def cephalogram(data: Path, out: Path) -> Path:
    """300 radiographs, 19 landmarks, two observers in one tidy table. Raises InputError."""
    names = [line.strip() for line in read_text(data / "names.txt").splitlines() if line.strip()]
    points = []
    for observer in ("senior", "junior"):
        file = data / f"{observer}_mm.csv"
        for case, *values in filter(None, csv.reader(io.StringIO(read_text(file), newline=""))):
            if len(values) != 2 * len(names) or not case.isdigit():
                raise InputError(
                    f"{file}: case {case!r} has {len(values)} coordinates; expected a number and 2 for each of the "
                    f"{len(names)} names in names.txt"
                )
            points += [(case, *row, observer) for row in zip(names, values[0::2], values[1::2], strict=True)]
    table = write_table(
        out / "cephalogram_landmarks.csv", ("case", "label", "x", "y", "observer"), points, "# frame=image unit=mm\n"
    )
    cases = sorted({row[0] for row in points})
    rows = [
        (c, str(data / "images" / f"{c}.jpg"), f"{table.name}#senior", "train" if int(c) <= 150 else "test", SPACING_MM)
        for c in cases
    ]
    return write_table(out / "cephalogram.csv", (*COLUMNS, "spacing"), rows)


def brain(data: Path, out: Path) -> Path:
    """Six T1 volumes with 32 fiducials. Raises InputError."""
    rows = []
    for landmarks in sorted(data.glob("*_afids.fcsv")):
        case = landmarks.name.removesuffix("_afids.fcsv")
        image = next(iter(sorted(data.glob(f"{case}_*.nii*"))), None)
        if image is None:
            raise InputError(f"{data}: holds {landmarks.name}, but no image {case}_*.nii.gz")
        rows.append((case, str(image), str(landmarks), "test" if case == TEST_BRAIN else "train"))
    if not rows:
        raise InputError(f"{data}: holds no landmarks *_afids.fcsv")
    # a model's landmark order comes from its first training case; the sharp 1 mm template leads
    rows.sort(key=lambda row: (row[3] != "train", row[0] != "MNI152NLin2009cAsym", row[0]))
    return write_table(out / "brain.csv", COLUMNS, rows)


def mouse_skull(data: Path, out: Path) -> Path:
    """22 micro-CT skulls in arbitrary poses, 45 landmarks. Raises InputError."""
    return write_table(out / "mouse_skull.csv", COLUMNS, own_table(data, {"train": "train", "val": "test"}))


def spine(data: Path, out: Path) -> Path:
    """609 antero-posterior radiographs, 68 corners of vertebrae. Raises InputError."""
    rows = own_table(data, {"train": "train", "test": "test"}, "spacing")
    return write_table(out / "spine.csv", (*COLUMNS, "spacing"), rows)


def own_table(data: Path, splits: dict[str, str], *more: str) -> list[list[str]]:
    """The rows of a data set's ``cases.csv`` with absolute paths and other names of the ``splits``; ``more`` columns as
    they are. Raises InputError."""
    table, rows = read_sheet(data / "cases.csv"), []
    for line, c in table.rows:
        if missing := [k for k in (*COLUMNS, *more) if not c.get(k)]:
            raise InputError(f"{table.path}: row {line}: has no {missing[0]}")
        if c["split"] not in splits:
            raise InputError(f"{table.path}: row {line}: split {c['split']!r}; it is {' or '.join(splits)}")
        paths = (str(data / c[k]) for k in ("image", "landmarks"))
        rows.append([c["case"], *paths, splits[c["split"]], *(c[k] for k in more)])
    return rows


SETS: dict[str, Callable[[Path, Path], Path]] = {
    "cephalogram": cephalogram, "brain": brain, "mouse_skull": mouse_skull, "spine": spine,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Write every manifest whose data are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the manifests")
    out = parser.parse_args(arguments).out.resolve()
    if data_folder() in (out, *out.parents):
        parser.error(f"--out {out} lies inside the data folder {data_folder()}; choose a folder outside it")
    for name, write in SETS.items():
        if (folder := data_set(name)) is not None:
            print(f"wrote {write(folder, out)}")


if __name__ == "__main__":
    sys.exit(main())
