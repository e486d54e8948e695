"""Manifests of the data sets that the project is measured on, made from the folders in which they lie.

Each function of ``SETS`` takes a data set's own folder and the folder for the manifest, which it returns. Splits:

- ``cephalogram.csv``: 001-150 train, 151-300 test, 0.1 mm per pixel, truth ``senior``; both observers stand in
  ``cephalogram_landmarks.csv``, and ``anatomark evaluate`` measures against the others and their mean too;
- ``brain.csv``: the population templates train, Colin27, one real person, is the test;
- ``mouse_skull.csv``: the 16 train; the 6 called ``val`` in the data's own table are the test.

They raise InputError where a file is missing or not as expected.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import anatomark
from anatomark.cases.manifest import Manifest
from anatomark.errors import InputError
from anatomark.io.atomic import read_text
from anatomark.io.landmarks import split_observer
from anatomark.io.sheets import read_sheet

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
    return write_table(out / "cephalogram.csv", ("case", "image", "landmarks", "split", "spacing"), rows)


def brain(data: Path, out: Path) -> Path:
    """Six T1 volumes with 32 fiducials."""
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
    return write_table(out / "brain.csv", ("case", "image", "landmarks", "split"), rows)


def mouse_skull(data: Path, out: Path) -> Path:
    """22 micro-CT skulls in arbitrary poses, 45 landmarks."""
    split = {"train": "train", "val": "test"}
    table = read_sheet(data / "cases.csv")
    rows = []
    for line, c in table.rows:
        if missing := [k for k in ("case", "image", "landmarks", "split") if not c.get(k)]:
            raise InputError(f"{table.path}: row {line}: has no {missing[0]}")
        if c["split"] not in split:
            raise InputError(f"{table.path}: row {line}: split {c['split']!r}; it is train or val")
        rows.append((c["case"], str(data / c["image"]), str(data / c["landmarks"]), split[c["split"]]))
    return write_table(out / "mouse_skull.csv", ("case", "image", "landmarks", "split"), rows)


SETS: dict[str, Callable[[Path, Path], Path]] = {"cephalogram": cephalogram, "brain": brain, "mouse_skull": mouse_skull}


def contents(table: Manifest) -> dict[str, dict[str, str]]:
    """What the results on a manifest depend on beside its rows: by case a hash of the ``landmarks`` file and, where the
    manifest gives it, the ``spacing``. Of the cases with a split. Raises InputError where a file cannot be read."""
    used = [c for c in table.cases if c.split]
    files = {c.id: split_observer(c.source)[0] for c in used if c.source is not None}
    try:
        hashes = {f: hashlib.sha256(Path(f).read_bytes()).hexdigest()[:12] for f in dict.fromkeys(files.values())}
    except OSError as error:
        raise InputError(f"{table.path}: {error.filename}: cannot be read: {error.strerror or error}") from error
    return {
        "landmarks": {case: hashes[file] for case, file in files.items()},
        "spacing": {c.id: " ".join(map(repr, c.spacing)) for c in used if c.spacing is not None},
    }
