"""``anatomark measure``: what a definition asks for, in the landmarks of a cohort, as a tidy table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.cases.find import check_names, find_cases, landmarks_in_parts, sources_of
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, counted
from anatomark.io.atomic import Where
from anatomark.io.claim import claimed
from anatomark.io.sheets import write_csv
from anatomark.tools.definitions import read_definition, taken_for, unconfirmed
from anatomark.tools.measure.agreement import Agreement, compare
from anatomark.tools.measure.measured import COLUMNS, UNPROVEN, Measured, measure_parts, unproven
from anatomark.tools.measure.schema import Measurements
from anatomark.tools.outputs import check_files, remove


@dataclass(frozen=True, eq=False)
class MeasureResult:
    """What :func:`measure` found and wrote: ``files`` by what they hold, ``table``, and where it was asked to compare
    ``agreement_table`` and ``confusion_table``; of the predictions how many are ``flagged`` for review, and why their
    model is ``unproven``."""

    measured: Measured
    agreement: Sequence[Agreement]
    files: Mapping[str, Path]
    taken: str = ""  # what labels are taken for, where the files do not say
    flagged: int = 0
    unproven: str = ""

    def summary(self) -> dict[str, Any]:
        compared = {a.measurement: a.figures() | {"confusion": _counted(a)} for a in self.agreement}
        facts = {"cases": len(self.measured.cases), "flagged": self.flagged, "measurements": self.measured.summary()}
        facts |= {"unproven": self.unproven} if self.unproven else {}
        files = {what: str(file) for what, file in self.files.items()}
        return facts | files | ({"agreement": compared} if compared else {})

    def lines(self) -> list[str]:
        """Mean and spread of each measurement, and what is blank and why, in words."""
        width = max(12, *(len(n) for n in self.measured.names))
        out = [self.taken] if self.taken else []
        out += [f"{'':<{width}}     n      mean        sd  unit"]
        for name, one in self.measured.summary().items():
            shares = ", ".join(f"{c} {n}" for c, n in one["classes"].items())
            figures = f"{one['n']:>5} {_figure(one['mean'])} {_figure(one['sd'])}  {one['unit']}"
            out.append(f"{name:<{width}} {figures}{'    ' + shares if shares else ''}")
        explained = ~np.isin(self.measured.reasons, ["", UNPROVEN])
        blank = np.isnan(self.measured.values)
        for count, what in ((blank & explained, "values"), (~blank & explained, "intervals")):
            out += [f"{count.sum()} {what} are blank; the column reason says why"] if count.any() else []
        if self.unproven:
            out.append(f"no intervals from an unproven model: {self.unproven}")
        if self.flagged:
            out.append(f"{self.flagged} of {counted(len(self.measured.cases), 'case')} are flagged for review")
        if self.agreement:
            out += ["", f"{'found - truth':<{width}}     n  mean abs      bias        sd  in 90 %  same class"]
        for a in self.agreement:
            figures = " ".join(_figure(v) for v in (a.mean_absolute, a.bias, a.sd))
            rates = f"{_share(a.coverage90):>7} {_share(a.success):>11}"
            out.append(f"{a.measurement:<{width}} {a.n:>5} {figures} {rates}")
        return [*out, f"{counted(len(self.measured.cases), 'case')}: {', '.join(map(str, self.files.values()))}"]


def measure(
    definition: Where | Measurements,
    paths: Sequence[Where],
    out: Where,
    *,
    landmarks: Where | None = None,
    split: str | None = None,
    truth: bool = False,
    overwrite: bool = False,
) -> MeasureResult:
    """Measure what ``definition`` (a YAML file, or a ready one's name) says, and write the table ``out`` (CSV).

    ``paths``: manifests, landmark files, folders that ``predict`` wrote; ``split``: these rows of a manifest only;
    ``landmarks``: a folder of predictions for the cases of a manifest, instead of its own. ``truth``: compare these
    with the manifest's own, in ``<out>_agreement.csv`` and, where there are classes, ``<out>_confusion.csv``; without,
    these are removed. Raises InputError, and then has written nothing.
    """
    out, given = Path(out), [Path(p) for p in paths]
    if out.suffix.lower() != ".csv":
        raise InputError(f"{out}: `out` is a table; name it .csv")
    if truth and landmarks is None:
        raise InputError(
            "`truth` compares predictions with the manifest's landmarks; give them, `landmarks` PREDICTIONS"
        )
    names = {what: out.with_name(f"{out.stem}_{what}.csv") for what in ("agreement", "confusion")}
    files = {"table": out, **{f"{what}_table": file for what, file in names.items()}}
    with claimed(out, beside=True) as claim:
        if not isinstance(definition, Measurements):
            wanted, where = read_definition(definition, Measurements, "measurements"), definition
        else:
            wanted, where = definition, "definition"
        source = Path(landmarks) if landmarks else None
        cases: list[Case] = []  # without their landmarks
        other: dict[str, str] = {}
        flagged: list[bool] = []
        doubts: dict[str, None] = {}  # in the order of the cases

        def parts() -> Iterator[dict[str, Landmarks]]:
            for part in _parts(given, source, split, cases):
                for landmarks in part.values():
                    other.update(unconfirmed(wanted.stands_for, landmarks))
                    flagged.append(_flagged(landmarks))
                    doubts[unproven(landmarks)] = None
                yield part

        measured = _measured(parts(), wanted, where)
        read = sources_of(cases, [*given, *([] if source is None else [source])])
        check_files(files.values(), read, "measure", claim, overwrite)
        agreement: list[Agreement] = []
        if truth:
            own = {case.id: case.landmarks for case in find_cases(given, split=split)}
            agreement = compare(measured, _measured([{name: own[name] for name in measured.cases}], wanted, where))
        tables: dict[str, Iterable[dict[str, Any]]] = {
            "table": measured.rows() if measured.cases and measured.names else (),
            "agreement_table": [a.figures() for a in agreement],
            "confusion_table": [{"measurement": a.measurement} | row for a in agreement for row in _counted(a)],
        }
        remove(files[what] for what, rows in tables.items() if not rows)
        written = {what: files[what] for what, rows in tables.items() if rows}
        for what, file in written.items():
            write_csv(file, tables[what], COLUMNS if what == "table" else None)
    taken, said = taken_for(wanted.stands_for, other), "; ".join(filter(None, doubts))
    return MeasureResult(measured, agreement, written, taken, sum(flagged), said)


def _parts(
    given: Sequence[Path], source: Path | None, split: str | None, cases: list[Case]
) -> Iterator[dict[str, Landmarks]]:
    """The landmarks by case, in parts; the ``cases`` are noted. Raises InputError where there is nothing to measure, or
    two share a name."""
    anything = False
    for part in landmarks_in_parts(given, landmarks=source, split=split):
        cases += [replace(case, given=None) for case in part]
        check_names(cases)
        anything = anything or any(len(case.landmarks) for case in part)
        yield {case.id: case.landmarks for case in part}
    if not cases:
        raise InputError("no landmarks were given")
    if not anything:
        raise InputError(f"{given[0]}: holds no landmarks")


def _measured(parts: Iterable[dict[str, Landmarks]], definition: Measurements, where: Where) -> Measured:
    try:
        return measure_parts(parts, definition)
    except InputError as error:  # the mathematics does not know the file
        raise InputError(f"{where}: {error}") from None


def _flagged(landmarks: Landmarks) -> bool:
    """Whether the file says that the case should be reviewed."""
    facts = landmarks.meta.get("json")
    return isinstance(facts, Mapping) and bool(facts.get("flags"))


def _counted(a: Agreement) -> list[dict[str, Any]]:
    return [{"truth": t, "found": f, "cases": n} for (t, f), n in a.confusion.items()]


def _figure(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>9}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
