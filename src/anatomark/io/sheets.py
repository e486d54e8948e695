"""CSV and TSV files as rows with their line numbers: what tables and manifests stand on."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from anatomark.errors import InputError
from anatomark.io.atomic import Where, atomic_path, read_text

# columns that are known whatever their capitals
COLUMNS = (
    "case", "image", "landmarks", "split", "spacing", "form", "label", "observer", "status", "description", "score",
    "radius90", "x", "y", "z", "x_mm", "y_mm", "z_mm", "x_px", "y_px",
)  # fmt: skip
MOST_ROWS, MOST_COLUMNS, MOST_CELLS = 1_000_000, 20_000, 5_000_000
COMMENT = re.compile(r'[\s",;]*#')
SEP = re.compile(r'"?sep=(.)"?[\s,;]*\Z', re.IGNORECASE)  # how Excel is told the delimiter


@dataclass(frozen=True)
class Sheet:
    """A CSV or TSV file: facts of its leading comment lines, column names, and (line number, cells) per row."""

    path: Path
    facts: dict[str, str]
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    delimiter: str = ","
    notes: tuple[str, ...] = ()


def read_sheet(path: Where) -> Sheet:
    """Read a CSV (comma, or semicolon where the header has no comma or ``sep=;`` says so) or TSV file. ``# key=value``
    lines before the header give ``facts``; cells are stripped; empty rows are skipped, so are blank cells behind the
    last column. Columns of ``COLUMNS`` are known in capitals, too. Raises InputError, naming the row."""
    path = Path(path)
    lines = split_lines(read_text(path, newlines=False))
    head, sep = 0, None
    while head < len(lines) and (
        COMMENT.match(lines[head]) or SEP.match(lines[head]) or not lines[head].strip(" ,;\t\r\n")
    ):
        sep = SEP.match(lines[head]) or sep
        head += 1
    facts = {k.lower(): v for k, v in re.findall(r'\b(\w{1,40})\s*=\s*([^\s,;"]+)', " ".join(lines[:head])[:10_000])}
    facts.pop("sep", None)
    if head == len(lines):
        raise InputError(f"{path}: has no rows")
    delimiter = sep[1] if sep else _delimiter(path, lines[head])
    records = read_records(lines[head:], delimiter, path, first=head + 1)
    row, names = next(records)
    columns = _columns(names, f"{path}: row {row}")
    sheet = Sheet(path, facts, columns, delimiter=delimiter)
    for row, cells in records:
        if len(cells) > len(columns) and any(c.strip() for c in cells[len(columns) :]):
            raise InputError(
                f"{path}: row {row}: has {len(cells)} cells for {len(columns)} columns; quote text with commas"
            )
        cells = [*map(str.strip, cells), *[""] * (len(columns) - len(cells))]
        sheet.rows.append((row, dict(zip(columns, cells, strict=False))))
        if len(sheet.rows) > MOST_ROWS or len(sheet.rows) * len(columns) > MOST_CELLS:
            raise InputError(f"{path}: has more than {len(sheet.rows) - 1} rows; take it apart")
    if not sheet.rows:
        raise InputError(f"{path}: has a header but no rows")
    return sheet


def _delimiter(path: Path, header: str) -> str:
    if path.suffix.lower() == ".tsv" or ("\t" in header and "," not in header):
        return "\t"
    return ";" if "," not in header and ";" in header else ","


def _columns(names: Sequence[str], where: str) -> list[str]:
    """The names of the columns, the known ones in small letters, without blank ones at the end."""
    columns = [c.strip() for c in names]
    while columns and not columns[-1]:
        columns.pop()
    if len(columns) > MOST_COLUMNS:
        raise InputError(f"{where}: has {len(columns)} columns; at most {MOST_COLUMNS} are read")
    columns = [c.lower() if c.lower() in COLUMNS else c for c in columns]
    twice = [c for c, n in Counter(columns).items() if c and n > 1]
    if twice:
        raise InputError(f"{where}: column {twice[0]!r} appears twice")
    return columns


def split_lines(text: str) -> list[str]:
    """Lines with their ends (and no other characters than those of CSV end one)."""
    return list(io.StringIO(text, newline=""))


def read_records(
    lines: Iterable[str],
    delimiter: str,
    path: Path,
    *,
    first: int = 1,
    skip: Callable[[str], object] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each record that is not blank; ``first`` is the number of the first line; lines that
    ``skip`` chooses are none. Raises InputError, naming the row, where a quote is not closed, or closed so much later
    that it swallowed rows."""
    start, within, several, width = first, False, False, 0

    def feed() -> Iterator[str]:
        nonlocal start, within, several
        for number, line in enumerate(lines, first):
            if not within and skip is not None and skip(line):
                continue
            several = within
            if not within:
                start, within = number, True
            yield line

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        within = False
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            odd = "expected after" in str(error)
            what = "text stands behind a closing quote" if odd else "a quote that opens here is never closed"
            raise InputError(f'{path}: row {start}: {what}; write " in text as "", and the text in quotes') from None
        width = width or len(cells)
        tall = [cell for cell in cells if "\n" in cell or "\r" in cell] if several else []
        if any(line.count(delimiter) >= max(width - 1, 1) for cell in tall for line in cell.splitlines()[1:]):
            raise InputError(f"{path}: row {start}: a quote that opens here is closed so late that it swallows rows")
        if any(map(str.strip, cells)):
            yield start, cells


class Lines:
    """What a csv.writer writes to, so that lines end in ``\\n`` and cells with any end of a line are quoted."""

    END = "\r\n"

    def __init__(self, out: TextIO):
        self.out = out

    def write(self, line: str) -> int:
        return self.out.write(line.removesuffix(self.END) + "\n")


def write_csv(
    path: Where,
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    digits: int | None = None,
    head: str = "",
) -> None:
    """Write rows as CSV (TSV by suffix), atomically. Raises InputError where the disk refuses.

    ``columns``: which, in what order, and each row is written as it comes; by default all that occur. A cell that a
    row lacks is blank. Floats are written in full, or with so many significant ``digits``. ``head``: a comment line
    before the names of the columns.
    """
    if columns is None:
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
    tab = Path(path).suffix.lower() == ".tsv"
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with atomic_path(path) as temporary, open(temporary, "w", **how) as out:
        out.write(head)
        writer = csv.DictWriter(
            Lines(out), columns, restval="", extrasaction="ignore", delimiter="\t" if tab else ",",
            lineterminator=Lines.END,
        )  # fmt: skip
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.{digits}g}" if digits and isinstance(v, float) else v for k, v in row.items()})


def misspelt(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    """One line for each column that is unknown, but nearly a known one that is missing: a typing error."""
    missing = [k for k in known if k not in columns]
    lines = []
    for column in columns:
        close = difflib.get_close_matches(column.lower(), missing, n=1, cutoff=0.75)
        if column not in known and close:
            lines.append(f"column {column!r} is not known (did you mean {close[0]!r}?)")
    return lines
