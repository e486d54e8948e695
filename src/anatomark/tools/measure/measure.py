"""``anatomark measure``: what a definition asks for, in the landmarks of a cohort, as a tidy table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.cases.find import find_cases, find_landmarks
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.atomic import write_text
from anatomark.tools.definitions import read_definition
from anatomark.tools.measure.agreement import Agreement, compare
from anatomark.tools.measure.measured import COLUMNS, Measured
from anatomark.tools.measure.measured import measure as take
from anatomark.tools.measure.schema import Measurements
from anatomark.tools.outputs import check_folder, remove


@dataclass(frozen=True, eq=False)
class MeasureResult:
    """What :func:`measure` found and wrote; ``agreement`` holds nothing where it was not asked to compare."""

    measured: Measured
    table: Path
    agreement: tuple[Agreement, ...] = ()
    agreement_table: Path | None = None
    confusion_table: Path | None = None

    def summary(self) -> dict[str, Any]:
        """Plain JSON."""
        files = {k: str(v) for k in ("table", "agreement_table", "confusion_table") if (v := getattr(self, k))}
        compared = {a.measurement: a.figures() | {"confusion": _counted(a)} for a in self.agreement}
        facts = {"cases": len(self.measured.cases), "measurements": self.measured.summary(), **files}
        return facts | ({"agreement": compared} if compared else {})

    def lines(self) -> list[str]:
        """The same as text."""
        width = max(12, *(len(n) for n in self.measured.names))
        out = [f"{'':<{width}}     n      mean        sd  unit"]
        for name, one in self.measured.summary().items():
            shares = ", ".join(f"{c} {n}" for c, n in one["classes"].items())
            figures = f"{one['n']:>5} {_figure(one['mean'])} {_figure(one['sd'])}  {one['unit']}"
            out.append(f"{name:<{width}} {figures}{'    ' + shares if shares else ''}")
        told = np.array(self.measured.reasons) != ""
        blank = np.isnan(self.measured.values)
        for count, what in ((blank & told, "values"), (~blank & told, "intervals")):
            out += [f"{count.sum()} {what} are blank; the column reason says why"] if count.any() else []
        if self.agreement:
            out += ["", f"{'found - truth':<{width}}     n  mean abs      bias        sd  in 90 %  same class"]
        for a in self.agreement:
            figures = " ".join(_figure(v) for v in (a.mean_absolute, a.bias, a.sd))
            rates = f"{_share(a.coverage90):>7} {_share(a.success):>11}"
            out.append(f"{a.measurement:<{width}} {a.n:>5} {figures} {rates}")
        files = [f for f in (self.table, self.agreement_table, self.confusion_table) if f]
        return [*out, f"{len(self.measured.cases)} cases: {', '.join(str(f) for f in files)}"]


def measure(
    definition: str | os.PathLike[str] | Measurements,
    paths: Sequence[Path],
    out: str | os.PathLike[str],
    *,
    landmarks: Path | None = None,
    split: str | None = None,
    truth: bool = False,
    overwrite: bool = False,
) -> MeasureResult:
    """Measure what ``definition`` (a file, a ready definition's name) says in cases, and write the table ``out`` (CSV).

    ``paths``: manifests, landmark files, folders that ``predict`` wrote; ``landmarks``: a folder of predictions for the
    cases of a manifest, instead of its own. ``truth``: compare these with the manifest's own, in
    ``<out>_agreement.csv`` and, where there are classes, ``<out>_confusion.csv``; without, these are removed. Raises
    InputError, and then has written nothing.
    """
    out = Path(out)
    if out.suffix.lower() != ".csv":
        raise InputError(f"{out}: --out is a table; name it .csv")
    check_folder(out.parent)
    tables = [out, *(out.with_name(f"{out.stem}_{what}.csv") for what in ("agreement", "confusion"))]
    if not overwrite and (there := next((f for f in tables if f.exists()), None)):
        raise InputError(f"{there}: exists already; add --overwrite to replace it")
    if truth and landmarks is None:
        raise InputError(
            "--truth compares predictions with the manifest's landmarks; give them, --landmarks PREDICTIONS"
        )
    where = definition if not isinstance(definition, Measurements) else "definition"
    asked = (
        definition
        if isinstance(definition, Measurements)
        else read_definition(definition, Measurements, "measurements")
    )
    found = _landmarks(paths, landmarks, split)
    measured = _taken(found, asked, where)
    texts = [_csv(COLUMNS, measured.rows())]
    compared: tuple[Agreement, ...] = ()
    if truth:
        own = {m.id: m.landmarks for m in find_cases(paths, split=split)}
        compared = tuple(compare(measured, _taken({c: own[c] for c in found}, asked, where)))
        texts.append(_csv(tuple(compared[0].figures()), [a.figures() for a in compared]))
        confusion = [{"measurement": a.measurement} | row for a in compared for row in _counted(a)]
        texts += [_csv(tuple(confusion[0]), confusion)] if confusion else []
    remove(tables[len(texts) :])
    for file, text in zip(tables, texts, strict=False):
        write_text(file, text)
    return MeasureResult(measured, out, compared, *tables[1 : len(texts)])


def _landmarks(paths: Sequence[Path], landmarks: Path | None, split: str | None) -> dict[str, Landmarks]:
    cases = find_landmarks(paths, landmarks=landmarks, split=split)
    names = [one.id for one in cases]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise InputError(f"two of the cases are called {twice!r}; rename one or take them apart")
    if not any(len(one.landmarks) for one in cases):
        raise InputError(f"{paths[0]}: holds no landmarks")
    return {one.id: one.landmarks for one in cases}


def _taken(cases: dict[str, Landmarks], definition: Measurements, where: str | os.PathLike[str]) -> Measured:
    try:
        return take(cases, definition)
    except InputError as error:  # the mathematics does not know the file
        raise InputError(f"{where}: {error}") from None


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _counted(a: Agreement) -> list[dict[str, Any]]:
    return [{"truth": t, "found": f, "cases": n} for (t, f), n in a.confusion.items()]


def _figure(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>9}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
