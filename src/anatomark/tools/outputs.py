"""What tools share that go through cases: the folder they write into, the loop, the record of what was done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from anatomark.cases.case import Case
from anatomark.errors import InputError, reason_of
from anatomark.io.atomic import write_json
from anatomark.io.claim import Claim, check_sources
from anatomark.progress import Reporter

Row = dict[str, Any]
IMAGE_ENDING, LANDMARKS_ENDING = (
    {2: ".mha", 3: ".nii.gz"},
    {2: ".csv", 3: ".mrk.json"},
)  # of what is written, by dimension


@dataclass(frozen=True)
class CaseResults:
    """What a tool left behind in ``out``: for each case a row of plain data with its name ``case`` and its ``state``,
    written or failed, then with the ``reason``; ``notes``: remarks on how its image was read, and on what was done."""

    out: Path
    rows: Sequence[Row]
    record: ClassVar[str]  # the name of the file that says what was done
    done: ClassVar[str]  # what became of a case that did not fail, "cropped"
    undone: ClassVar[str]  # and of one that did

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Cases that failed, and why."""
        return [(row["case"], row["reason"]) for row in self.rows if row["state"] == "failed"]

    def summary(self) -> Row:
        raise NotImplementedError

    def document(self) -> Row:
        """What the record holds."""
        return self.summary()

    def case_lines(self, row: Row) -> list[str]:
        """What is said of a case that did not fail."""
        raise NotImplementedError

    def total(self) -> str:
        """The last line."""
        written = len(self.rows) - len(self.failed)
        return f"{written} of {len(self.rows)} {self.done}" + (f": {self.out / self.record}" if written else "")

    def lines(self) -> list[str]:
        """The summary as text. The failure of a single case is left to the error that the command ends with."""
        out = []
        for row in self.rows:
            if row["state"] != "failed":
                out += self.case_lines(row) + [f"  note: {note}" for note in row.get("notes", ())]
            elif len(self.rows) > 1:
                out.append(f"{row['case']}: {self.undone}: {row['reason']}")
        return [*out, self.total()]

    def write_record(self, anything: bool) -> None:
        """Write the record, last; of a run that left nothing else there is none, not even one from before."""
        if anything:
            write_json(self.out / self.record, self.document())
        else:
            remove([self.out / self.record])


def each_case(
    work: str,
    cases: Sequence[Case],
    one: Callable[[Case], Row],
    files: Callable[[str], list[Path]],
    report: Reporter,
) -> list[Row]:
    """The rows of :class:`CaseResults`: what ``one`` says of each case. Where it raises InputError, of several
    cases anything, the case has failed, its ``files`` (by its name) are removed, and the others go on."""
    rows = []
    with report.bar(work, len(cases)) as bar:
        for k, case in enumerate(cases):
            row: Row = {"case": case.id, "image": str(case.path)}
            try:
                rows.append({**row, "state": "written", **one(case)})
            except Exception as error:
                remove(files(case.id))
                if len(cases) == 1 and not isinstance(error, InputError):
                    raise
                rows.append({**row, "state": "failed", "reason": reason_of(error)})
            bar.update(k + 1, case.id)
    return rows


def check_files(files: Iterable[Path], sources: Iterable[Path], work: str, claim: Claim, overwrite: bool) -> None:
    """Raises InputError where one of the ``files`` to write is there (without ``overwrite``, and other than a killed
    run left it), or is one of the ``sources`` of the ``work``: these are never replaced."""
    files = list(files)
    there = [f for f in files if os.path.lexists(f) and not claim.unfinished(f)]
    if there and not overwrite:
        raise InputError(f"{there[0]}: exists already; add `overwrite` or choose another `out`")
    check_sources(files, sources, work)


def remove(files: Iterable[Path]) -> None:
    """Remove those that are there: of a run before, which would contradict this one, or of a case that failed."""
    for file in files:
        file.unlink(missing_ok=True)
