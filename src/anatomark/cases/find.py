"""The one grammar of paths: manifests, images and folders of them, DICOM series, landmark files, predictions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from anatomark.cases.case import Case, in_plane
from anatomark.cases.manifest import SPLITS, read_manifest
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, listed
from anatomark.io.atomic import read_json
from anatomark.io.images import find_images
from anatomark.io.landmarks import load_landmarks, read_landmarks, split_observer
from anatomark.io.sheets import read_sheet
from anatomark.io.slicer import is_markups
from anatomark.io.tables import read_table

PREDICTION_ENDINGS = (".json", ".mrk.json", ".fcsv", ".csv")  # the first holds scores and radii beside positions
ENDINGS = (*PREDICTION_ENDINGS, ".tsv")
AT_ONCE = 1000  # landmark files of a folder
NOBODY = Case("")  # of whose image nothing is known
T = TypeVar("T")
Where = str | os.PathLike[str]
Spacing = tuple[float, ...] | float | None


def find_images_as_cases(
    paths: Sequence[Where],
    *,
    spacing: Spacing = None,
    form: str | None = None,
    split: str | None = None,
    need_landmarks: bool = False,
) -> list[Case]:
    """The cases that ``paths`` name: manifests (.csv), images, folders of images, DICOM series.

    ``spacing``: for those that say nothing of it. ``form``: ``sform`` or ``qform`` of NIfTI files that hold both, where
    a manifest's row does not say. ``split``: these rows of manifests only. Raises InputError where
    there is no image, and where two cases share a name.
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"`split` {split!r}: is not train, val or test")
    cases: list[Case] = []
    for path in map(Path, paths):
        if path.suffix.lower() == ".csv":
            manifest = read_manifest(path, need_landmarks=need_landmarks, check_images=False)
            rows = manifest.split(split) if split else manifest.cases
            cases += [_told(c, spacing, form) for c in rows]
        elif split is not None:
            raise InputError(f"{path}: `split` {split} needs a manifest")
        else:
            cases += [Case(image_stem(file), file, spacing=_tuple(spacing), form=form) for file in find_images([path])]
    if not cases:
        raise InputError("no image and no manifest was given")
    check_names(cases)
    return [replace(c, apart=len(cases) > 1) for c in cases]


def find_cases(
    paths: Sequence[Where],
    landmarks: Where | None = None,
    *,
    spacing: Spacing = None,
    form: str | None = None,
    split: str | None = None,
) -> list[Case]:
    """As :func:`find_images_as_cases`, with landmarks.

    ``landmarks``: a landmark file (for one image), or a folder of files named after case or image, such as ``predict``
    writes; by default those of the manifest. Raises InputError, for all missing files at once.
    """
    cases = find_images_as_cases(paths, spacing=spacing, form=form, split=split, need_landmarks=landmarks is None)
    if landmarks is None:
        if bare := next((c for c in cases if c.source is None), None):
            raise InputError(f"{bare.path}: give its landmarks, `landmarks` FILE, or the folder that predict wrote")
        return cases
    given = Path(landmarks)
    if given.is_file() and len(cases) > 1 and given.suffix.lower() != ".csv":
        raise InputError(f"{given}: holds the landmarks of one image, but there are {len(cases)}; give a folder")
    files = _files_of(cases, given)
    return [_with_landmarks_of(c, files[c.id]) for c in cases]


def find_landmarks(
    paths: Sequence[Where],
    *,
    landmarks: Where | None = None,
    split: str | None = None,
    spacing: Spacing = None,
    form: str | None = None,
    image: Where | None = None,
) -> list[Case]:
    """As :func:`find_cases`, and also landmark files, each a case named after it, tables, each of their cases one, and
    folders of landmark files: for work that needs no image. ``image``: that of a single landmark file."""
    told = Case("", None if image is None else Path(image), spacing=_tuple(spacing), form=form)
    cases = [case for some in landmarks_in_parts(paths, landmarks=landmarks, split=split, told=told) for case in some]
    if not cases:
        raise InputError("no landmarks were given")
    check_names(cases)
    return cases


def landmarks_in_parts(
    paths: Sequence[Where],
    *,
    landmarks: Where | None = None,
    split: str | None = None,
    told: Case = NOBODY,
) -> Iterator[list[Case]]:
    """The cases of :func:`find_landmarks`, at most ``AT_ONCE`` at a time where they lie in a folder, so that not all
    are held at once. ``told``: what is known of their images. Two may share a name."""
    for path in map(Path, paths):
        if landmarks is None and path.is_dir() and (files := landmark_files(path)):
            if split is not None:
                raise InputError(f"{path}: `split` {split} needs a manifest")
            for some in _parts(files):
                yield [case for file in some for case in _alone(file, told)]
        elif landmarks is None and path.name.endswith(ENDINGS) and not _is_manifest(path):
            if split is not None:
                raise InputError(f"{path}: `split` {split} needs a manifest")
            yield _alone(path, told)
        elif landmarks is not None and Path(landmarks).is_dir():
            cases = find_images_as_cases([path], spacing=told.spacing, form=told.form, split=split)
            files_of = _files_of(cases, Path(landmarks))
            for part in _parts(cases):
                yield [_with_landmarks_of(case, files_of[case.id]) for case in part]
        else:
            yield find_cases([path], landmarks, split=split, spacing=told.spacing, form=told.form)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[k : k + AT_ONCE] for k in range(0, len(items), AT_ONCE))


def _files_of(cases: Sequence[Case], given: Path) -> dict[str, Path | None]:
    """The landmark file of each case: ``given``, or in the folder ``given``. Raises InputError for all missing ones."""
    files = {c.id: given if given.is_file() else landmark_file(given, stems_of(c)) for c in cases}
    if missing := [c.id for c in cases if files[c.id] is None]:
        raise InputError(f"{given}: has no landmarks of {listed(missing)} (such as {missing[0]}.mrk.json)")
    return files


def sources_of(cases: Sequence[Case], paths: Iterable[Where] = ()) -> Iterator[Path]:
    """Every file that the ``cases`` are read from: images, landmarks, those of ``paths`` that are files, and in their
    folders what is named after a case as landmarks are."""
    for case in cases:
        if case.path is not None:
            yield case.path
        if case.source is not None:
            with suppress(InputError):  # a name that cannot be one, which is said when it is read
                yield split_observer(case.source)[0]
    stems = {stem for case in cases for stem in stems_of(case)}
    for path in map(Path, paths):
        if path.is_dir():
            yield from (f for f in path.iterdir() if f.name.endswith(ENDINGS) and landmark_stem(f) in stems)
        else:
            yield split_observer(path)[0]


def image_stem(path: Where) -> str:
    """A file's name without its ending (``.nii.gz`` is one); a DICOM folder's name."""
    path = Path(path)
    return path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem


def stems_of(case: Case) -> list[str]:
    """The names that a case's files may have: the case's, then its image's."""
    return list(dict.fromkeys([case.id, *([image_stem(case.path)] if case.path is not None else [])]))


def landmark_files(folder: Path) -> list[Path]:
    """The landmark files in a folder, one for each stem, the one that holds covariances first."""
    shown = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".")]
    stems = {landmark_stem(f) for f in shown if f.name.endswith(ENDINGS) and f.is_file()}
    files = (landmark_file(folder, (stem,)) for stem in sorted(stems))
    return [f for f in files if f is not None and not _is_manifest(f)]


def landmark_file(folder: Path, stems: Iterable[str]) -> Path | None:
    """The landmark file in a folder with the first of ``stems`` that has one."""
    files = (folder / f"{s}{e}" for s in stems for e in PREDICTION_ENDINGS)
    return next((f for f in files if f.is_file() and _holds_landmarks(f)), None)


def read_landmarks_of(case: Case, file: Path) -> Landmarks:
    """A case's landmarks in ``file``, which may be a table of many cases; 2D where the case's own are, or its image is.
    Raises InputError."""
    landmarks = load_landmarks(file, case=case.id if file.suffix.lower() == ".csv" else None)
    if landmarks.ndim == 2:
        return case.in_mm(landmarks, str(file))
    flat = case.landmarks.ndim == 2 if case.has_landmarks else _is_flat(case)
    return in_plane(landmarks) if flat else landmarks


def _with_landmarks_of(case: Case, file: Path | None) -> Case:
    assert file is not None
    return replace(case, source=None, given=read_landmarks_of(replace(case, source=None), file))


def _is_flat(case: Case) -> bool:
    """Whether the image is 2D, or a single slice; also where it cannot be read, which is said when it is."""
    assert case.path is not None
    try:
        grid = case.header
    except InputError:
        return True
    return grid.ndim == 2 or grid.shape[0] == 1


def _alone(path: Path, told: Case) -> list[Case]:
    """A landmark file as a case of its own, a table as its cases, with what was ``told`` of the image."""
    if path.name.endswith((".csv", ".tsv")):
        table = read_table(path)
        names = list(table.cases) if "" not in table.cases else [""]
        return [
            replace(told, id=n or landmark_stem(path), given=told.in_mm(table.pick(n or None), str(path)))
            for n in names
        ]
    landmarks = told.in_mm(load_landmarks(path), str(path))
    ours = landmark_file(path.parent, (landmark_stem(path),))
    if ours is not None and ours != path and ours.suffix == ".json":
        theirs = read_landmarks(ours)  # knows what other formats do not: 2D points, and what the model said of the case
        landmarks = in_plane(landmarks) if theirs.ndim == 2 else landmarks
        landmarks = replace(landmarks, meta={**landmarks.meta, "json": theirs.meta.get("json", {})})
    return [replace(told, id=landmark_stem(path), given=landmarks)]


def check_names(cases: Sequence[Case]) -> None:
    """Raises InputError where two cases share a name."""
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.id, case)
        if other is not case:
            pair = (
                f"{other.path} and {case.path} would both be written as" if case.path else "two of the cases are called"
            )
            raise InputError(f"{pair} {case.id!r}; rename one or take them apart")


def _holds_landmarks(path: Path) -> bool:
    """Whether a JSON file is ours; others stand beside images too, such as those of BIDS."""
    if not path.name.endswith(".json") or path.name.endswith(".mrk.json"):
        return True
    try:
        document = read_json(path)
    except InputError:
        return False
    return isinstance(document, dict) and ("landmarks" in document or is_markups(document))


def _is_manifest(path: Path) -> bool:
    if not path.name.endswith((".csv", ".tsv")):
        return False
    sheet = read_sheet(path)
    return "image" in sheet.columns or not {"label", "frame"} & {*sheet.columns, *sheet.facts}


def landmark_stem(path: Path) -> str:
    """A landmark file's name without its ending."""
    name = path.name
    return name.removesuffix(next(e for e in sorted(ENDINGS, key=len, reverse=True) if name.endswith(e)))


def _told(case: Case, spacing: Spacing, form: str | None) -> Case:
    """A row of a manifest with what it leaves open."""
    if spacing is None and form is None:
        return case
    return replace(case, spacing=case.spacing or _tuple(spacing), form=case.form or form)


def _tuple(spacing: Spacing) -> tuple[float, ...] | None:
    if spacing is None:
        return None
    return (float(spacing),) if isinstance(spacing, int | float) else tuple(spacing)
