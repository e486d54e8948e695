"""``anatomark status``: how far a cohort is, by its journals and the names in its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from anatomark.errors import InputError, counted, listed
from anatomark.io.atomic import read_json
from anatomark.io.parts import is_held, part_file
from anatomark.progress import clock
from anatomark.scale.journal import DONE, FAILED, End, Row, Run, journals, merge, read_journal, read_list

MOST_SHOWN = 50  # failed cases in the text


@dataclass
class Part:
    """A shard: its last ``run``, None where it never began; whether that ``ended``, or is ``running`` now; the rows
    that it wrote (``rows``), the last of them ``at``."""

    run: Run | None = None
    ended: bool = False
    running: bool = False
    rows: int = 0
    at: float = 0.0

    @property
    def state(self) -> str:
        """``ended``, ``running``, ``stopped`` or ``missing``."""
        if self.run is None:
            return "missing"
        return "ended" if self.ended else "running" if self.running else "stopped"


@dataclass
class Status:
    """Of ``cases`` by the model ``model_name``: how many are ``done`` and ``flagged``, which ``failed`` with the
    reason; the state of each shard by its number; cases ``per_second`` of the shards that run, None where none does.
    ``accept_failed``: failed cases count as finished."""

    cases: int
    model_name: str
    done: int = 0
    flagged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    shards: dict[int, str] = field(default_factory=dict)
    per_second: float | None = None
    accept_failed: bool = False

    @property
    def left(self) -> int:
        """Cases of which nothing is known yet."""
        return max(0, self.cases - self.done - len(self.failed))

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None where it is not known."""
        return self.left / self.per_second if self.per_second else None

    @property
    def complete(self) -> bool:
        """Whether every shard came to its end, and every case is done (or failed, where that is accepted)."""
        ended = all(state == "ended" for state in self.shards.values())
        return ended and not self.left and (self.accept_failed or not self.failed)

    def of_state(self, state: str) -> list[int]:
        """The numbers of the shards in this state."""
        return [number for number, its in self.shards.items() if its == state]

    def summary(self) -> dict[str, object]:
        """Plain data."""
        return {
            "model": self.model_name, "cases": self.cases, "done": self.done, "left": self.left,
            "flagged": self.flagged, "complete": self.complete,
            "failed": [{"case": case, "reason": reason} for case, reason in self.failed],
            "shards": {state: self.of_state(state) for state in ("ended", "running", "stopped", "missing")},
            "per_second": self.per_second, "seconds_left": self.seconds_left,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Text."""
        counts = f"{self.done} done, {len(self.failed)} failed, {self.left} left"
        lines = [f"{counted(self.cases, 'case')} by {self.model_name}: {counts}; {self.flagged} are flagged for review"]
        if len(self.shards) > 1 or not self.of_state("ended"):
            states = ((state, self.of_state(state)) for state in ("running", "stopped", "missing"))
            ended = f"{len(self.of_state('ended'))} of {len(self.shards)} ended"
            others = (f"{state}: {listed([*map(str, numbers)])}" for state, numbers in states if numbers)
            lines.append("shards: " + "; ".join([ended, *others]))
        if self.per_second:
            lines.append(f"{self.per_second:.3g} cases/s, {clock(self.seconds_left or 0)} left")
        if self.failed:
            shown = self.failed[:MOST_SHOWN]
            width = max(len("failed"), *(len(case) for case, _ in shown))
            lines += [f"{'failed':<{width}}  reason", *(f"{case:<{width}}  {reason}" for case, reason in shown)]
            if more := len(self.failed) - len(shown):
                lines.append(f"and {more} more; `json` lists all")
        return lines


def status(out: str | os.PathLike[str], *, accept_failed: bool = False) -> Status:
    """How far the cohort in the folder ``out`` is, without opening a result; where a case's result is gone, it is left
    to do. Counted is by the last run that began: its model, its list of cases, and into how many shards it divides
    them. Raises InputError where there is no journal."""
    out = Path(out)
    parts: dict[Path, Part] = {}
    rows: dict[str, Row] = {}
    for path in journals(out):
        part = parts[path] = Part()
        own: dict[str, Row] = {}  # its lines stand in order, whatever the clock said
        for entry in read_journal(path):
            if isinstance(entry, Run):
                part.run, part.ended, part.rows, part.at = entry, False, 0, entry.at
            elif isinstance(entry, End):
                part.ended = True
            else:
                part.rows, part.at = part.rows + 1, entry.at
                own[entry.case] = entry
        merge(rows, own)
    runs = [part.run for part in parts.values() if part.run is not None]
    if not runs:
        raise InputError(
            f"{out}: {_seen(out)}there is nothing to follow: only the command predict with `shard`, `workers`, "
            f"`engine` or `retry_failed` keeps a record of how many images there are and how far it is"
        )
    return _counted(out, max(runs, key=lambda run: run.at), parts, rows, accept_failed)


def _seen(out: Path) -> str:
    """What a folder without a journal shows: predictions and how many of them are flagged; empty where none is."""
    flags = []
    for file in (f for f in out.glob("*.json") if not f.name.endswith(".mrk.json")):
        with suppress(InputError):  # what is no file of predict's
            facts = read_json(file)
            if isinstance(facts, dict) and {"flagged", "landmarks"} <= {*facts}:
                flags.append(facts["flagged"] is True)
    return f"holds {counted(len(flags), 'prediction')}, {sum(flags)} flagged for review; " if flags else ""


def _counted(out: Path, last: Run, parts: dict[Path, Part], rows: dict[str, Row], accept_failed: bool) -> Status:
    with os.scandir(out) as entries:
        names = {entry.name for entry in entries if entry.name.endswith(".json")}
    found = Status(last.total, last.model_name, accept_failed=accept_failed)
    listed_cases = read_list(out, last.listed)
    for row in rows.values():
        if listed_cases is not None and row.case not in listed_cases:
            continue  # of an earlier list of cases
        if row.model == last.model and row.state == DONE and f"{row.case}.json" in names:
            found.done += 1
            found.flagged += row.flagged
        elif row.model == last.model and row.state == FAILED:
            found.failed.append((row.case, row.reason))
    found.failed.sort()
    running = []
    for number in range(1, last.of + 1):
        part = parts.get(part_file(out, number, last.of, "jsonl"), Part())
        if part.run is not None and (part.run.model, part.run.listed) != (last.model, last.listed):
            part.run = None  # of another list of cases, or by another model
        if part.run is not None and not part.ended:
            part.running = is_held(part_file(out, number, last.of, "lock"))
            running += [part] if part.running else []
        found.shards[number] = part.state
    found.per_second = _rate(running)
    return found


def _rate(running: Sequence[Part]) -> float | None:
    """Cases per second of all shards that run; what was known when they began came at once, and does not count."""
    rates = [part.rows / (part.at - part.run.at) for part in running if part.run is not None and part.at > part.run.at]
    return sum(rates) or None
