"""Images with their landmarks, as the commands that use landmarks are given them: files, predictions, manifests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anatomark.cases.manifest import SPLITS, Case, read_manifest
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.atomic import read_json
from anatomark.io.images import find_images, image_grid, read_image, squeeze_to_2d
from anatomark.io.landmarks import in_mm, read_landmarks
from anatomark.io.sheets import read_sheet
from anatomark.io.tables import read_table
from anatomark.model.model import image_stem

PREDICTION_ENDINGS = (".json", ".mrk.json", ".fcsv", ".csv")  # the first holds scores and radii beside positions
ENDINGS = (*PREDICTION_ENDINGS, ".tsv")


@dataclass(frozen=True)
class Marked:
    """A case: its name, its landmarks in world mm and where its image is (None where only landmarks were given)."""

    case: str
    landmarks: Landmarks
    path: Path | None = None
    spacing: tuple[float, ...] | None = None

    def image(self) -> Image:
        """The image, 2D where the landmarks are 2D. Raises InputError where there is none or it does not fit them."""
        if self.path is None:
            raise InputError(f"case {self.case!r}: only landmarks were given, an image is needed")
        image = read_image(self.path, self.spacing)
        if image.ndim == 3 and image.grid.shape[0] == 1 and self.landmarks.ndim == 2:
            image = squeeze_to_2d(image)
        if image.ndim != self.landmarks.ndim:
            raise InputError(f"{self.path}: is {image.ndim}D, but its landmarks are {self.landmarks.ndim}D")
        return image


def find_marked(
    paths: Sequence[Path],
    landmarks: Path | None = None,
    *,
    spacing: tuple[float, ...] | None = None,
    split: str | None = None,
) -> list[Marked]:
    """The cases that ``paths`` name: a manifest (.csv), or images, or folders of images.

    ``landmarks``: a landmark file (for one image), or a folder of files named after case or image, such as ``predict``
    writes; by default those of the manifest. ``split``: these rows of a manifest only. Raises InputError, for all
    missing files at once, and where two cases share a name.
    """
    found: list[tuple[str, Path, tuple[float, ...] | None, Case | None]] = []
    if split is not None and split not in SPLITS:
        raise InputError(f"--split {split!r}: is not train, val or test")
    for path in paths:
        if path.suffix.lower() == ".csv":
            manifest = read_manifest(path, need_landmarks=landmarks is None)
            chosen = manifest.split(split) if split else manifest.cases
            found += [(c.id, c.image, c.spacing if c.spacing is not None else spacing, c) for c in chosen]
        elif split is not None:
            raise InputError(f"{path}: --split {split} needs a manifest")
        else:
            found += [(image_stem(file), file, spacing, None) for file in find_images([path])]
    if not found:
        raise InputError("no image and no manifest was given")
    names = [name for name, *_ in found]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise InputError(f"two of the cases are called {twice!r}; rename one or take them apart")
    if landmarks is None and any(case is None for *_, case in found):
        raise InputError(f"{found[0][1]}: give its landmarks, --landmarks FILE, or the folder that predict wrote")
    if landmarks is not None and landmarks.is_file() and len(found) > 1 and landmarks.suffix.lower() != ".csv":
        raise InputError(f"{landmarks}: holds the landmarks of one image, but there are {len(found)}; give a folder")
    missing = [name for name, path, *_ in found if landmarks is not None and not _file(landmarks, name, path)]
    if missing:
        raise InputError(f"{landmarks}: has no landmarks of {', '.join(missing[:8])} (such as {missing[0]}.mrk.json)")
    return [Marked(name, _landmarks(landmarks, name, path, mm, case), path, mm) for name, path, mm, case in found]


def find_landmarks(
    paths: Sequence[Path],
    *,
    landmarks: Path | None = None,
    split: str | None = None,
    spacing: tuple[float, ...] | None = None,
) -> list[Marked]:
    """As :func:`find_marked`, and also landmark files, each a case named after it, tables, each of their cases one, and
    folders of landmark files: for work that needs no image."""
    out: list[Marked] = []
    for path in paths:
        alone: list[Marked] | None = None
        if landmarks is None and path.is_dir():
            alone = [m for f in landmark_files(path) for m in _alone(f, spacing)] or None
        elif landmarks is None and path.name.endswith(ENDINGS) and not _is_manifest(path):
            alone = _alone(path, spacing)
        if alone is None:
            out += find_marked([path], landmarks, split=split, spacing=spacing)
            continue
        if split is not None:
            raise InputError(f"{path}: --split {split} needs a manifest")
        out += alone
    if not out:
        raise InputError("no landmarks were given")
    names = [m.case for m in out]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise InputError(f"two of the cases are called {twice!r}; rename one or take them apart")
    return out


def landmark_files(folder: Path) -> list[Path]:
    """The landmark files in a folder, one for each stem, the one that holds covariances first."""
    stems = {_stem(f) for f in sorted(folder.iterdir()) if f.name.endswith(ENDINGS) and f.is_file()}
    found = (landmark_file(folder, (stem,)) for stem in sorted(stems))
    return [f for f in found if f is not None and not _is_manifest(f)]


def landmark_file(folder: Path, stems: Iterable[str]) -> Path | None:
    """The landmark file in a folder with the first of ``stems`` that has one."""
    files = (folder / f"{s}{e}" for s in stems for e in PREDICTION_ENDINGS)
    return next((f for f in files if f.is_file() and _holds_landmarks(f)), None)


def _holds_landmarks(path: Path) -> bool:
    """Whether a JSON file is ours; others stand beside images too, such as those of BIDS."""
    if not path.name.endswith(".json") or path.name.endswith(".mrk.json"):
        return True
    try:
        document = read_json(path)
    except InputError:
        return False
    return isinstance(document, dict) and "landmarks" in document


def _is_manifest(path: Path) -> bool:
    if not path.name.endswith((".csv", ".tsv")):
        return False
    sheet = read_sheet(path)
    return "image" in sheet.columns or not {"label", "frame"} & {*sheet.columns, *sheet.facts}


def _stem(path: Path) -> str:
    name = path.name
    return name.removesuffix(next(e for e in sorted(ENDINGS, key=len, reverse=True) if name.endswith(e)))


def _alone(path: Path, spacing: tuple[float, ...] | None) -> list[Marked]:
    """A landmark file as a case of its own, a table as its cases."""
    if path.name.endswith((".csv", ".tsv")):
        table = read_table(path)
        cases = list(table.cases) if "" not in table.cases else [""]
        return [Marked(c or _stem(path), in_mm(table.pick(c or None), spacing, str(path))) for c in cases]
    found = read_landmarks(path)
    ours = landmark_file(path.parent, (_stem(path),))
    # Slicer's files know no 2D points; ours beside them, where there is one, does
    if ours is not None and ours != path and ours.suffix == ".json" and read_landmarks(ours).ndim == 2:
        found = flat(found)
    return [Marked(_stem(path), found)]


def _file(landmarks: Path, name: str, image: Path) -> Path | None:
    if landmarks.is_file():
        return landmarks
    return landmark_file(landmarks, dict.fromkeys((name, image_stem(image))))


def _landmarks(
    source: Path | None, name: str, image: Path, spacing: tuple[float, ...] | None, case: Case | None
) -> Landmarks:
    if source is None:
        assert case is not None
        return case.read_landmarks()
    file = _file(source, name, image)
    assert file is not None
    found = read_landmarks(file, case=name if file.suffix.lower() == ".csv" else None, spacing=spacing)
    return flat(found) if found.ndim == 3 and _is_flat(image, spacing) else found


def _is_flat(image: Path, spacing: tuple[float, ...] | None) -> bool:
    """Whether an image is 2D, or a single slice; also where it cannot be read, which is said when it is."""
    try:
        grid = image_grid(image, spacing)
    except InputError:
        return True
    return grid.ndim == 2 or grid.shape[0] == 1


def flat(landmarks: Landmarks) -> Landmarks:
    """2D landmarks of a 3D Slicer file, which knows no 2D points: all z are 0."""
    if landmarks.ndim == 3 and landmarks.defined.any() and not landmarks.points[landmarks.defined, 2].any():
        return replace(landmarks, points=landmarks.points[:, :2], covariance=None)
    return landmarks
