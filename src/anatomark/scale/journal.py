"""The journal of a shard: a file of JSON lines that is only ever appended to, a row for each case and each run."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anatomark.errors import InputError
from anatomark.io.atomic import write_text
from anatomark.io.claim import PARTS, open_regular
from anatomark.io.parts import part_file
from anatomark.scale.shard import MOST, Shard

if TYPE_CHECKING:  # ``status`` needs no model
    from anatomark.model.predict import Predicted

DONE, FAILED = "done", "failed"
SYNC_S = 2.0  # rows of so long may be lost with the machine's power, never with the process

T = TypeVar("T", "Row", "Run")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a case: ``state`` done or failed, with the ``reason``; ``seconds`` of the prediction; whether it
    is ``flagged`` for review; hash of the ``model``, ``key`` of the image, and when (``at``, seconds since 1970)."""

    case: str
    state: str
    reason: str = ""
    seconds: float = 0.0
    flagged: bool = False
    model: str = ""
    key: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class Run:
    """A run of a shard that began: its ``cases`` of the ``total`` in all shards, whose sorted names hash to ``listed``;
    by which ``model``, of which name, on which ``host``, with how many ``workers``, when (``at``)."""

    shard: int
    of: int
    cases: int
    total: int
    listed: str
    model: str
    model_name: str
    host: str
    process: int
    workers: int
    at: float


@dataclass(frozen=True)
class End:
    """The last run of the journal came to its end."""


def row_of(made: Predicted, model: str, key: str) -> Row:
    """The row of what the model of this hash made of a case whose image has this ``key``."""
    if made.state == FAILED:
        return failed_row(made.stem, made.reason, model, key)
    return Row(made.stem, DONE, "", round(made.seconds, 4), bool(made.flags), model, key, time.time())


def failed_row(case: str, reason: str, model: str, key: str = "") -> Row:
    """The row of a case that failed."""
    return Row(case, FAILED, reason, model=model, key=key, at=time.time())


def adopted_row(case: str, key: str, facts: Mapping[str, object]) -> Row:
    """The row of a case that was finished before there was a journal, by the ``facts`` of its JSON."""
    seconds = facts.get("seconds")
    took = float(seconds) if isinstance(seconds, int | float) else 0.0
    return Row(case, DONE, "", took, facts.get("flagged") is True, str(facts.get("model")), key, time.time())


class Journal:
    """Appends to the journal of a shard of the folder ``out``; a line that a kill tore is closed first. Raises
    InputError where the disk refuses."""

    def __init__(self, out: Path, shard: Shard):
        self.path = part_file(out, shard.number, shard.of, "jsonl")
        try:
            self.handle = open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            size = os.fstat(self.handle).st_size
            torn = size and os.pread(self.handle, 1, size - 1) != b"\n"
        except OSError as error:
            raise self._refused(error) from None
        self.synced = time.monotonic()
        if torn:
            self._write(b"\n")

    def add(self, row: Row) -> None:
        """A case is done or failed."""
        self._append({k: v for k, v in asdict(row).items() if k != "reason" or v})

    def begin(self, run: Run) -> None:
        self._append({"run": asdict(run)})

    def end(self) -> None:
        self._append({"end": time.time()})

    def close(self) -> None:
        """Bring everything to the disk."""
        with suppress(OSError):
            os.fsync(self.handle)
        os.close(self.handle)

    def _append(self, entry: dict[str, Any]) -> None:
        self._write(json.dumps(entry).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self.handle, data) :]
            if time.monotonic() - self.synced > SYNC_S:
                os.fsync(self.handle)
                self.synced = time.monotonic()
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: the journal cannot be written: {error.strerror or error}")


def journals(out: Path) -> list[Path]:
    """The journals in a folder of predictions."""
    return sorted((out / PARTS).glob("shard-*-of-*.jsonl"))


def merge(rows: dict[str, Row], own: Mapping[str, Row]) -> None:
    """Add a journal's last row of each case to those of other journals: the later counts."""
    for case, row in own.items():
        if case not in rows or rows[case].at <= row.at:
            rows[case] = row


def digest_of(names: Sequence[str]) -> str:
    """By which a run tells its list of cases, sorted, from others."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_list(out: Path, names: Sequence[str]) -> None:
    """Keep a list of cases, sorted, beside the journals; what an earlier run with the same list kept stays."""
    if read_list(out, listed := digest_of(names)) is None:
        write_text(_list_file(out, listed), json.dumps(names))


def read_list(out: Path, listed: str) -> set[str] | None:
    """The names that hash to ``listed``; None where they are not there (earlier versions kept none)."""
    try:
        with open(open_regular(_list_file(out, listed), os.O_RDONLY), "rb") as file:
            names = json.load(file)
        return set(names) if digest_of(names) == listed else None
    except (OSError, InputError, ValueError, TypeError, RecursionError):
        return None


def _list_file(out: Path, listed: str) -> Path:
    return out / PARTS / f"cases-{listed}.json"


def read_journal(path: Path) -> Iterator[Row | Run | End]:
    """The entries of a journal in order; lines that were not written whole, or are none of ours, are left out. Raises
    InputError where it cannot be read."""
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(entry, dict) and (made := _entry(entry)) is not None:
                    yield made
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _entry(entry: dict[str, Any]) -> Row | Run | End | None:
    if "end" in entry:
        return End()
    if "run" in entry:
        run = _made(Run, entry["run"])
        return run if run and 1 <= run.shard <= run.of <= MOST and 0 <= run.cases <= run.total else None
    row = _made(Row, entry)
    return row if row is not None and row.state in (DONE, FAILED) else None


def _made(kind: type[T], facts: Any) -> T | None:
    """An entry whose every fact is of its type, and finite; a whole number is a float, too."""
    if not isinstance(facts, dict):
        return None
    known = {f.name: str(f.type) for f in fields(kind)}
    given = {name: value for name, value in facts.items() if name in known}
    kinds: dict[str, Any] = {"str": str, "bool": bool, "int": int, "float": (int, float)}
    if not all(isinstance(value, kinds[known[name]]) for name, value in given.items()):
        return None
    try:
        sound = all(math.isfinite(value) for name, value in given.items() if known[name] == "float")
        return kind(**given) if sound else None
    except (TypeError, OverflowError):  # a fact is missing; a whole number that is no float
        return None
