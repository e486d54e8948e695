"""``anatomark predict`` for many images: what the journals leave to do, done by workers, a row for each case."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anatomark.cases.case import Case
from anatomark.cases.find import find_images_as_cases, sources_of
from anatomark.engine.base import MOST_WORKERS, Engine
from anatomark.engine.local import Processes
from anatomark.errors import InputError, check_range, nearest, reason_of
from anatomark.io.claim import Claim, check_sources
from anatomark.io.parts import claimed_part
from anatomark.model.device import MOST_THREADS, find_device
from anatomark.model.model import Spacing
from anatomark.model.predict import (
    STRANGE,
    AnyModel,
    Left,
    check_strange,
    facts_of,
    key_of,
    left_to_do,
    load,
    run_files,
    told_of,
)
from anatomark.model.prediction import FORMATS, endings
from anatomark.model.worker import Task, Work, outcome_of
from anatomark.progress import Reporter
from anatomark.scale.journal import (
    DONE,
    FAILED,
    Journal,
    Row,
    Run,
    adopted_row,
    digest_of,
    failed_row,
    journals,
    merge,
    read_journal,
    row_of,
    write_list,
)
from anatomark.scale.shard import Shard

MOST_NOTES = 50  # that are said


@dataclass
class Cohort:
    """What became of the cases of a shard: how many were ``written``, ``skipped`` (finished before) and are ``flagged``
    for review; which ``failed``, with the reason, also in an earlier run."""

    shard: Shard
    cases: int = 0
    written: int = 0
    skipped: int = 0
    flagged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, row: Row, *, before: bool = False) -> None:
        """Count a case; ``before``: it was finished already."""
        if row.state == FAILED:
            self.failed.append((row.case, row.reason))
            return
        self.flagged += row.flagged
        self.skipped += before
        self.written += not before

    def summary(self) -> dict[str, object]:
        """Plain data."""
        failed = [{"case": case, "reason": reason} for case, reason in self.failed]
        counts = {name: getattr(self, name) for name in ("cases", "written", "skipped", "flagged")}
        return {"shard": str(self.shard), **counts, "failed": failed}


def predict_cohort(
    model: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    shard: Shard | None = None,
    workers: int = 1,
    engine: Engine | None = None,
    retry_failed: bool = False,
    spacing: Spacing = None,
    form: str | None = None,
    pictures: bool = False,
    format: str = "mrk.json",
    overwrite: bool = False,
    device: str | None = None,
    threads: int | None = None,
    tta: int = 1,
    report: Reporter | None = None,
) -> Cohort:
    """As :func:`anatomark.model.predict.predict`, the same files, for many images: the cases of one ``shard`` (default
    all), in ``workers`` processes of so many ``threads`` (default 1), or by another ``engine``.

    Journals in ``out`` hold a row for each case. A case that is done, or failed before, is known from there alone, and
    done again where its files are gone, with ``retry_failed`` where it failed, and where model or image are others. Any
    error of a case is its failed row; so is a file in its way that is not ours. Raises InputError before any work as
    ``predict``, where a finished case of the shard is another model's, and where no worker can do anything.
    """
    out, report, shard = Path(out), report or Reporter(quiet=True), shard or Shard()
    if format not in FORMATS:
        raise InputError(f"`format` {format!r} is unknown{nearest(format, FORMATS)}; it is {', '.join(FORMATS)}")
    check_range("workers", workers, 1, MOST_WORKERS)
    spread = engine or Processes(workers)
    check_range("threads", threads or 1, 1, MOST_THREADS)
    if not getattr(spread, "address", None):  # other machines may have other devices
        find_device(device)
    with claimed_part(out, shard.number, shard.of) as claim:
        used = load(model, "cpu", tta=tta)
        for line in told_of(used):
            report.say(line)
        everything = find_images_as_cases(images, spacing=spacing, form=form)
        plan = Plan(out, used, endings(used.ndim, format, pictures), overwrite, retry_failed)
        cohort, mine = Cohort(shard), shard.pick(everything)
        cohort.cases = len(mine)
        plan.decide(mine, claim)
        claim.written.clear()  # what is to be done is decided
        if plan.tasks:
            kept = [*sources_of(everything, [p for p in map(Path, images) if p.is_file()]), *run_files(out)]
            files = (out / f"{task.case.id}.{ending}" for task in plan.tasks for ending in task.left.endings)
            check_sources([out, *files], kept, "predict")
        work = Work(os.fspath(model), out, claim.lock, device, threads or 1, tta)
        run = _run(shard, everything, len(mine), used, spread.workers)
        notes: set[str] = set()
        journal = Journal(out, shard)
        try:
            for row in plan.learned:  # before the run begins: they tell nothing of its rate
                journal.add(row)
            for row in (*plan.before, *plan.learned):
                cohort.add(row, before=True)
            write_list(out, sorted(case.id for case in everything))
            journal.begin(run)
            with report.bar("predict", len(mine), len(mine) - len(plan.tasks)) as bar:
                done = len(mine) - len(plan.tasks)
                for task, answer in spread(work.start, plan.tasks, work.threads):
                    made = outcome_of(task, answer)
                    row = row_of(made, used.hash, task.key)
                    journal.add(row)
                    cohort.add(row)
                    done += 1
                    if row.state == FAILED:
                        report.say(f"failed: {row.reason}")
                    for note in made.notes:
                        if note not in notes and len(notes) < MOST_NOTES:
                            notes.add(note)
                            report.say(f"note: {row.case}: {note}")
                    bar.update(done, f"{row.case}{f'  {len(cohort.failed)} failed' if cohort.failed else ''}")
            journal.end()
        finally:
            journal.close()
    return cohort


class Plan:
    """What of a shard is left to do: ``tasks``; ``before``: rows of the journals that stand; ``learned``: rows that no
    journal has yet. ``which``: endings of the files that were asked for."""

    def __init__(self, out: Path, model: AnyModel, which: Sequence[str], overwrite: bool, retry_failed: bool):
        self.out, self.model, self.which = out, model, which
        self.overwrite, self.retry_failed = overwrite, retry_failed
        self.tasks: list[Task] = []
        self.before: list[Row] = []
        self.learned: list[Row] = []
        self._others: list[Left] = []

    def decide(self, cases: Sequence[Case], claim: Claim) -> None:
        """Look at the journals and the names in the folder, and into results that no journal knows. Raises InputError
        where a result is another model's."""
        known = {} if self.overwrite else _known(self.out, {case.id for case in cases})
        with os.scandir(self.out) as entries:
            names = {entry.name for entry in entries}
        for case in cases:
            try:
                self._decide(case, known.get(case.id), names, claim)
            except Exception as error:
                self.learned.append(failed_row(case.id, reason_of(error), self.model.hash))
        check_strange(self._others)

    def _decide(self, case: Case, row: Row | None, names: set[str], claim: Claim) -> None:
        key = key_of(case)
        if row is not None and (row.model, row.key) == (self.model.hash, key):
            if row.state == DONE and all(f"{case.id}.{ending}" in names for ending in self.which):
                self.before.append(row)
                return
            if row.state == FAILED and not self.retry_failed and f"{case.id}.json" not in names:
                self.before.append(row)
                return
        left = Left(self.which) if self.overwrite else left_to_do(case, key, self.out, self.model, self.which, claim)
        record = self.out / f"{case.id}.json"
        if left.strange is not None:
            other = facts_of(record).get("model") if record.name in names else None
            if other is not None and other != self.model.hash:
                self._others.append(left)
            self.learned.append(failed_row(case.id, f"{left.strange}: {STRANGE}", self.model.hash, key))
        elif left.endings:
            self.tasks.append(Task(case, key, left))
        else:
            self.learned.append(adopted_row(case.id, key, facts_of(record)))


def _known(out: Path, cases: set[str]) -> dict[str, Row]:
    """The last row of each of the ``cases`` in all journals: a case may have been another shard's."""
    known: dict[str, Row] = {}
    for path in journals(out):
        # the lines of one journal stand in order, whatever the clock said
        rows = (entry for entry in read_journal(path) if isinstance(entry, Row))
        merge(known, {row.case: row for row in rows if row.case in cases})
    return known


def _run(shard: Shard, everything: Sequence[Case], mine: int, model: AnyModel, workers: int) -> Run:
    listed = digest_of(sorted(case.id for case in everything))
    return Run(
        shard.number, shard.of, mine, len(everything), listed, model.hash, model.name,
        socket.gethostname(), os.getpid(), workers, time.time(),
    )  # fmt: skip
