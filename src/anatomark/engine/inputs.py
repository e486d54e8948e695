"""Images with their landmarks, as the commands that use landmarks are given them: files, predictions, manifests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.engine.model import image_stem
from anatomark.errors import InputError
from anatomark.io.images import find_images, read_image, squeeze_to_2d
from anatomark.io.landmarks import read_landmarks
from anatomark.io.manifest import SPLITS, Case, read_manifest

PREDICTION_ENDINGS = (".json", ".mrk.json", ".fcsv", ".csv")  # the first holds scores and radii beside positions


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
    """As :func:`find_marked`, and also landmark files, each a case named after it, and folders that ``predict`` wrote:
    for work that needs no image."""
    out: list[Marked] = []
    for path in paths:
        files = sorted(path.glob("*.mrk.json")) if path.is_dir() and landmarks is None else []
        if files:
            out += [_alone(f.with_name(f.name.removesuffix(".mrk.json") + ".json"), f) for f in files]
        elif path.is_file() and landmarks is None and path.name.endswith((".json", ".fcsv")):
            out.append(_alone(path, path))
        else:
            out += find_marked([path], landmarks, split=split, spacing=spacing)
    if not out:
        raise InputError("no landmarks were given")
    return out


def _alone(first: Path, second: Path) -> Marked:
    """A landmark file as a case; beside a prediction's Slicer file lies the one that holds covariances."""
    path = first if first.is_file() else second
    stem = path.name.removesuffix(".json").removesuffix(".mrk").removesuffix(".fcsv")
    return Marked(stem, flat(read_landmarks(path)))


def _file(landmarks: Path, name: str, image: Path) -> Path | None:
    if landmarks.is_file():
        return landmarks
    stems = dict.fromkeys((name, image_stem(image)))
    return next((f for s in stems for e in PREDICTION_ENDINGS if (f := landmarks / f"{s}{e}").is_file()), None)


def _landmarks(
    source: Path | None, name: str, image: Path, spacing: tuple[float, ...] | None, case: Case | None
) -> Landmarks:
    if source is None:
        assert case is not None
        return case.read_landmarks()
    file = _file(source, name, image)
    assert file is not None
    found = read_landmarks(file, case=name if file.suffix.lower() == ".csv" else None, spacing=spacing)
    return flat(found)


def flat(landmarks: Landmarks) -> Landmarks:
    """2D landmarks of a 3D Slicer file, which knows no 2D points: all z are 0."""
    if landmarks.ndim == 3 and landmarks.defined.any() and not landmarks.points[landmarks.defined, 2].any():
        return replace(landmarks, points=landmarks.points[:, :2], covariance=None)
    return landmarks
