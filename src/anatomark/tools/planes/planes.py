"""``anatomark planes``: standard scan planes of images with landmarks, as slices, pictures and numbers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.find import Marked, find_marked
from anatomark.core.image import Image
from anatomark.core.landmarks import common_names
from anatomark.errors import InputError
from anatomark.io.atomic import write_bytes
from anatomark.io.images import write_image
from anatomark.progress import Reporter
from anatomark.tools.definitions import read_definition
from anatomark.tools.outputs import check_files, check_folder, remove, write_record
from anatomark.tools.planes.geometry import NotDefined, Plane, find_planes
from anatomark.tools.planes.schema import PlaneSet

RECORD, SLICE, PICTURE = "planes.json", ".nii.gz", ".png"
Where = str | os.PathLike[str]


@dataclass(frozen=True)
class CasePlanes:
    """One case: for each plane of the definition what ``planes.json`` says of it; ``failed``: why the image could not
    be used."""

    case: str
    image: Path | None
    planes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: str = ""

    @property
    def missing(self) -> dict[str, str]:
        """Reason by plane that is not defined."""
        return {name: facts["reason"] for name, facts in self.planes.items() if not facts["defined"]}


@dataclass(frozen=True)
class PlanesResult:
    """All cases, and the folder that their files are in."""

    definition: str
    out: Path
    cases: Sequence[CasePlanes]

    @property
    def failed(self) -> list[CasePlanes]:
        """Cases whose image could not be used."""
        return [c for c in self.cases if c.failed]

    @property
    def slices(self) -> int:
        """How many were written."""
        return sum(len(c.planes) - len(c.missing) for c in self.cases)

    def summary(self) -> dict[str, Any]:
        """``planes.json``: plain data."""
        cases = []
        for c in self.cases:
            facts: dict[str, Any] = {"case": c.case, "image": str(c.image)}
            cases.append({**facts, "failed": c.failed} if c.failed else {**facts, "planes": c.planes})
        return {"schema": 1, "definition": self.definition, "frame": "LPS", "unit": "mm", "cases": cases}

    def lines(self) -> list[str]:
        """The same as text, one line a case and one for each plane that is not defined."""
        lines = []
        for c in self.cases:
            there = [n for n in c.planes if n not in c.missing]
            if c.failed:
                lines += [f"{c.case}: failed: {c.failed}"] if len(self.cases) > 1 else []  # else it is the error
                continue
            lines.append(f"{c.case}: {', '.join(there) or 'none'}")
            lines += [f"{c.case}: {name} is not defined: {reason}" for name, reason in c.missing.items()]
        return [*lines, f"{self.slices} slices of {len(self.cases)} cases: {self.out}"]


def cut_planes(
    definition: Where,
    paths: Sequence[Where],
    out: Where,
    *,
    landmarks: Where | None = None,
    split: str | None = None,
    spacing: tuple[float, ...] | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> PlanesResult:
    """Cut the planes of ``definition`` (a YAML file, or a ready one's name) out of images and write them into ``out``.

    ``paths``: a manifest, images or folders of images; ``landmarks``, ``split`` and ``spacing`` as for
    :func:`~anatomark.cases.find.find_marked`. Per case and plane ``<case>_<plane>.nii.gz``, a slice of one voxel's
    thickness at its place in the volume, and ``<case>_<plane>.png``; last, where there is a
    slice, ``planes.json``. A plane whose landmarks are
    absent or degenerate is recorded with the reason, and an image that cannot be read is, while the others go on.
    Raises InputError before any work: a faulty definition, a label that no case has, 2D landmarks, files that are there
    (without ``overwrite``).
    """
    out, report = Path(out), report or Reporter(quiet=True)
    check_folder(out)
    wanted = read_definition(definition, PlaneSet, "planes")
    found = find_marked([Path(p) for p in paths], Path(landmarks) if landmarks else None, spacing=spacing, split=split)
    wanted.check_labels(common_names(one.landmarks for one in found), str(definition))
    planes = {one.case: find_planes(wanted, one.landmarks) for one in found}
    _check_files(out, found, wanted, overwrite)
    cases = []
    with report.bar("planes", len(found)) as bar:
        for i, one in enumerate(found):
            cases.append(_case(one, planes[one.case], out))
            bar.update(i + 1, one.case)
    result = PlanesResult(str(definition), out, cases)
    write_record(out / RECORD, result.summary(), result.slices > 0)
    return result


def _check_files(out: Path, found: Sequence[Marked], wanted: PlaneSet, overwrite: bool) -> None:
    stems = Counter(_stem(one.case, name) for one in found for name in wanted.planes)
    stem, times = stems.most_common(1)[0]
    if times > 1:
        raise InputError(f"two slices would be written as {stem!r}; rename a case or a plane")
    files = [out / RECORD, *(f for one in found for name in wanted.planes for f in _files(one, name, out))]
    check_files(files, (one.path for one in found if one.path is not None), "cut", overwrite)


def _files(one: Marked, plane: str, out: Path) -> list[Path]:
    return [out / f"{_stem(one.case, plane)}{ending}" for ending in (SLICE, PICTURE)]


def _case(one: Marked, planes: dict[str, Plane | str], out: Path) -> CasePlanes:
    try:
        image = one.image()
    except InputError as error:
        remove(f for name in planes for f in _files(one, name, out))
        return CasePlanes(one.case, one.path, failed=str(error))
    return CasePlanes(one.case, one.path, {n: _plane(one, image, n, plane, out) for n, plane in planes.items()})


def _plane(one: Marked, image: Image, name: str, plane: Plane | str, out: Path) -> dict[str, Any]:
    """Write slice and picture: what ``planes.json`` says of them."""
    from anatomark.tools.planes.picture import plane_picture  # loads matplotlib

    files = _files(one, name, out)
    try:
        if isinstance(plane, str):
            raise NotDefined(plane)
        cut = plane.cut(image)
    except NotDefined as reason:
        remove(files)
        return {"defined": False, "reason": str(reason)}
    write_image(cut, files[0])
    write_bytes(files[1], plane_picture(cut, plane, one.landmarks, f"{one.case}  {name}"))
    return {"defined": True, **plane_facts(plane), "spacing_mm": _rounded(cut.grid.spacing[2]),
            "files": [f.name for f in files]}  # fmt: skip


def plane_facts(plane: Plane) -> dict[str, Any]:
    """A plane as plain data, LPS mm: where it lies, and how far the points it was laid through are from it."""
    return {
        **{key: _rounded(getattr(plane, key)) for key in ("origin", "normal", "right", "up")},
        "corners": _rounded(plane.corners()),
        "size_mm": list(plane.size_mm),
        "slab_mm": plane.definition.slab_mm,
        "mode": plane.definition.mode,
        "residuals_mm": {name: _rounded(value) for name, value in plane.residuals.items()},
        "left_out": list(plane.left_out),
    }


def _stem(case: str, plane: str) -> str:
    return f"{case}_{plane}"


def _rounded(values: Any) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), 6).tolist()
