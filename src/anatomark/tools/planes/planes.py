"""``anatomark planes``: standard scan planes of images with landmarks, as slices, pictures and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.find import find_cases, sources_of
from anatomark.core.landmarks import common_names
from anatomark.errors import InputError, counted
from anatomark.io.atomic import Where, write_bytes
from anatomark.io.claim import claimed
from anatomark.io.images import write_image
from anatomark.progress import Reporter
from anatomark.tools.definitions import read_definition, taken_for, unconfirmed
from anatomark.tools.outputs import CaseResults, Row, check_files, each_case, remove
from anatomark.tools.planes.geometry import NotDefined, Plane, find_planes
from anatomark.tools.planes.schema import PlaneSet

ENDINGS = (".nii.gz", ".png")  # of slice and picture


@dataclass(frozen=True)
class PlanesResult(CaseResults):
    """What :func:`planes` wrote. A row's ``planes`` holds, by name, what ``planes.json`` says of each plane: where it
    lies, or ``defined`` false and the ``reason``."""

    definition: str
    taken: str = ""  # what labels are taken for, where the files do not say
    record, done, undone = "planes.json", "cut", "failed"

    @property
    def slices(self) -> int:
        return sum(facts["defined"] for row in self.rows for facts in row.get("planes", {}).values())

    def summary(self) -> Row:
        cases = []
        for row in self.rows:
            one = {"failed": row["reason"]} if row["state"] == "failed" else {k: row[k] for k in ("planes", "notes")}
            cases.append({"case": row["case"], "image": row["image"], **one})
        return {"schema": 1, "definition": self.definition, "frame": "LPS", "unit": "mm", "cases": cases}

    def case_lines(self, row: Row) -> list[str]:
        missing = {name: facts["reason"] for name, facts in row["planes"].items() if not facts["defined"]}
        names = ", ".join(n for n in row["planes"] if n not in missing)
        reasons = (f"{row['case']}: {name} is not defined: {reason}" for name, reason in missing.items())
        return [f"{row['case']}: {names or 'none'}", *reasons]

    def total(self) -> str:
        return f"{counted(self.slices, 'slice')} of {counted(len(self.rows), 'case')}: {self.out}"

    def lines(self) -> list[str]:
        return [*([self.taken] if self.taken else []), *super().lines()]


def planes(
    definition: Where,
    paths: Sequence[Where],
    out: Where,
    *,
    landmarks: Where | None = None,
    split: str | None = None,
    spacing: tuple[float, ...] | None = None,
    form: str | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> PlanesResult:
    """Cut the scan planes of ``definition`` (a YAML file, or a ready one's name) out of images, into a folder.

    ``paths``: a manifest, images or folders of images; ``landmarks``: the landmark file of one image, or a folder of
    files named after the images, such as ``predict`` writes (default: the manifest's own); ``split``: these rows of a
    manifest only; ``spacing``: mm along x, y[, z] of images that state none; ``form``: ``sform`` or ``qform`` of NIfTI
    files that hold both.

    Per case and plane ``<case>_<plane>.nii.gz``, a slice of one voxel's thickness at its place in the volume, and
    ``<case>_<plane>.png``; last, where there is a slice, ``planes.json``. A plane whose landmarks are absent or
    degenerate is recorded with the reason, and so is an image that cannot be read, while the others go on. Raises
    InputError before any work: a faulty definition, a label that no case has, 2D landmarks, files that are there
    (without ``overwrite``).
    """
    out, report = Path(out), report or Reporter(quiet=True)
    with claimed(out) as claim:
        wanted = read_definition(definition, PlaneSet, "planes")
        given, source = [Path(p) for p in paths], Path(landmarks) if landmarks else None
        cases = find_cases(given, source, spacing=spacing, form=form, split=split)
        wanted.check_labels(common_names(case.landmarks for case in cases), str(definition))
        by_case = {case.id: find_planes(wanted, case.landmarks) for case in cases}
        stem, times = Counter(f"{case}_{name}" for case in by_case for name in wanted.planes).most_common(1)[0]
        if times > 1:
            raise InputError(f"two slices would be written as {stem!r}; rename a case or a plane")

        def files(case: str) -> list[Path]:
            return [file for name in wanted.planes for file in _files(out, case, name)]

        taken = [out / PlanesResult.record, *(f for case in by_case for f in files(case))]
        read = [*(p for p in (*given, Path(definition)) if p.is_file()), *([] if source is None else [source])]
        check_files(taken, sources_of(cases, read), "cut", claim, overwrite)
        rows = each_case("planes", cases, lambda case: _cut(case, by_case[case.id], out), files, report)
        other = {k: v for case in cases for k, v in unconfirmed(wanted.stands_for, case.landmarks).items()}
        result = PlanesResult(out, rows, str(definition), taken_for(wanted.stands_for, other))
        result.write_record(result.slices > 0)
    return result


def _files(out: Path, case: str, plane: str) -> list[Path]:
    return [out / f"{case}_{plane}{ending}" for ending in ENDINGS]


def _cut(case: Case, each: dict[str, Plane | str], out: Path) -> Row:
    """Write the slice and picture of each plane: what ``planes.json`` says of them."""
    from anatomark.tools.planes.picture import plane_picture  # loads matplotlib

    image = case.image()
    facts: Row = {}
    for name, plane in each.items():
        files = _files(out, case.id, name)
        try:
            if isinstance(plane, str):
                raise NotDefined(plane)
            cut = plane.cut(image)
        except NotDefined as reason:
            remove(files)
            facts[name] = {"defined": False, "reason": str(reason)}
            continue
        write_image(cut, files[0])
        write_bytes(files[1], plane_picture(cut, plane, case.landmarks, f"{case.id}  {name}"))
        spacing = _rounded(cut.grid.spacing[2])
        facts[name] = {"defined": True, **_facts(plane), "spacing_mm": spacing, "files": [f.name for f in files]}
    return {"planes": facts, "notes": list(image.notes)}


def _facts(plane: Plane) -> Row:
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


def _rounded(values: Any) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), 6).tolist()
