"""CSV and TSV files as rows with their line numbers: what tables and manifests stand on."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anatomark.errors import InputError
from anatomark.io.atomic import Where, read_text, write_text


@dataclass(frozen=True)
class Sheet:
    """A CSV or TSV file: facts of its leading comment lines, column names, and (line number, cells) per row."""

    path: Path
    facts: dict[str, str]
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)


def read_sheet(path: Where) -> Sheet:
    """Read a CSV (comma, or semicolon where the header has no comma) or TSV file. ``# key=value ...`` lines before the
    header give ``facts``; cells are stripped; empty rows are skipped. Raises InputError, naming the row."""
    path = Path(path)
    lines = read_text(path).splitlines(keepends=True)
    head = 0
    while head < len(lines) and (lines[head].startswith("#") or not lines[head].strip()):
        head += 1
    facts = dict(re.findall(r"(\w+)\s*=\s*(\S+)", " ".join(lines[:head])))
    if head == len(lines):
        raise InputError(f"{path}: has no rows")
    tab = path.suffix.lower() == ".tsv" or ("\t" in lines[head] and "," not in lines[head])
    delimiter = "\t" if tab else ";" if "," not in lines[head] and ";" in lines[head] else ","
    reader = csv.reader(io.StringIO("".join(lines[head:]), newline=""), delimiter=delimiter)
    columns = [c.strip() for c in next(reader)]
    twice = [c for c in columns if c and columns.count(c) > 1]
    if twice:
        raise InputError(f"{path}: row {head + 1}: column {twice[0]!r} appears twice")
    sheet = Sheet(path, facts, columns)
    for cells in reader:
        row = head + reader.line_num
        if not any(c.strip() for c in cells):
            continue
        if len(cells) > len(columns):
            raise InputError(
                f"{path}: row {row}: has {len(cells)} cells for {len(columns)} columns; quote text with commas"
            )
        sheet.rows.append((row, dict(zip(columns, [c.strip() for c in cells] + [""] * len(columns), strict=False))))
    if not sheet.rows:
        raise InputError(f"{path}: has a header but no rows")
    return sheet


def write_csv(
    path: Where,
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    digits: int | None = None,
    head: str = "",
) -> None:
    """Write rows as CSV (TSV by suffix), atomically. Raises InputError where the disk refuses.

    ``columns``: which, in what order; by default all that occur. A cell that a row lacks is blank. Floats are written
    in full, or with so many significant ``digits``. ``head``: a comment line before the names of the columns.
    """
    rows = list(rows)
    names = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else columns
    tab = Path(path).suffix.lower() == ".tsv"
    out = io.StringIO(newline="")
    out.write(head)
    writer = csv.DictWriter(
        out, names, restval="", extrasaction="ignore", delimiter="\t" if tab else ",", lineterminator="\n"
    )
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.{digits}g}" if digits and isinstance(v, float) else v for k, v in row.items()})
    write_text(path, out.getvalue())


def misspelt(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    """One line for each column that is unknown, but nearly a known one that is missing: a typing error."""
    missing = [k for k in known if k not in columns]
    lines = []
    for column in columns:
        close = difflib.get_close_matches(column.lower(), missing, n=1, cutoff=0.75)
        if column not in known and close:
            lines.append(f"column {column!r} is not known (did you mean {close[0]!r}?)")
    return lines
