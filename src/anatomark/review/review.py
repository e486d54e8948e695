"""A review: a folder of corrections for a set of cases and their predictions."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

from anatomark.cases.case import Case, of_dimension
from anatomark.cases.find import landmark_stem, sources_of
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, nearest
from anatomark.io.claim import check_sources, claimed
from anatomark.progress import Reporter
from anatomark.review import files
from anatomark.review.decide import changed, check_person, finished, image_box, reopened, skipped
from anatomark.review.predicted import Glance, Predicted, begun, glance, is_of, merged, read_predicted
from anatomark.review.queue import STATES, Row, document_of, in_order
from anatomark.review.record import CaseReview, Conflict, now
from anatomark.review.summary import Tally, lines, summary, tally

KEPT_OPEN = 16  # cases whose points stay in memory


class Review:
    """The corrections in the folder ``out`` of the predictions in ``predictions``, of these ``cases``.

    What lies in ``out`` is gone on with; where a case was predicted by another model since, what a person decided
    stays. ``out`` has one writer: it is held until :meth:`close`. Safe to use from several threads. ``names``: the
    landmarks of all predictions; ``ndim``: 2 or 3; ``definitions``: by landmark. World mm: LPS in 3D; x right, y down
    in 2D. Raises InputError, before anything is written, where ``out`` is held by another process, a file there is not
    of a review, or would replace what is read here, and where no case has a prediction.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        cases: Sequence[Case],
        predictions: str | os.PathLike[str],
        report: Reporter | None = None,
    ):
        self.out, self.predictions = Path(out), Path(predictions)
        self.report = report or Reporter(quiet=True)
        if not self.predictions.is_dir():
            raise InputError(f"{self.predictions}: is no folder of predictions; predict writes one")
        self._lock, self._stack = RLock(), ExitStack()
        self._open: OrderedDict[str, tuple[CaseReview, files.Markups]] = OrderedDict()
        self._rows: dict[str, Row] = {}
        self._glances: dict[str, Glance] = {}
        with ExitStack() as stack:
            self._claim = stack.enter_context(claimed(self.out))
            self._check(cases)
            self._read(cases)
            self._stack = stack.pop_all()

    def __enter__(self) -> Review:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        with self._lock:
            self._stack.close()

    # ------------------------------------------------------------------ what there is

    def queue(self, order: str = "suspicion", state: str | None = None) -> list[dict[str, Any]]:
        """A row for each case: ``id, state, flags, suspicion, flagged, decided, points, reason``. ``order``:
        ``suspicion`` (the most unusual first) or ``name``. ``suspicion`` is None beyond measure, and, of a case that is
        not flagged, where nothing is known. Raises InputError for an unknown order or state."""
        with self._lock:
            rows = list(self._rows.values())
        return [row.facts() for row in in_order(rows, order, state)]

    def figures(self) -> dict[str, Any]:
        """Of all cases: ``done``, ``open``, ``skipped``; ``moved``, the points that a person moved, their
        ``mean_moved_mm``, and how many lay ``outside_radius``, the 90 % of the model."""
        with self._lock:
            rows = list(self._rows.values())
        total = sum((row.tally for row in rows), Tally())
        counts = {state: sum(row.state == state for row in rows) for state in STATES}
        return {**counts, **total.figures()}

    def summary(self) -> dict[str, Any]:
        """The :meth:`figures`, and for each model and landmark how far the model's points lay from the person's
        (:func:`~anatomark.review.summary.summary`)."""
        with self._lock:
            saved = [id for id, row in self._rows.items() if row.saved]
            return {**self.figures(), **summary(files.read_review(files.review_file(self.out, id)) for id in saved)}

    def lines(self) -> list[str]:
        """The summary as text."""
        return lines(self.summary())

    def case(self, id: str) -> CaseReview:
        """The review of a case as it stands. Raises InputError for an unknown one."""
        with self._lock:
            return self._opened(id)[0]

    def document(self, id: str) -> dict[str, Any]:
        """The case as plain data, for the page. Raises InputError for an unknown one."""
        with self._lock:
            review, row = self._opened(id)[0], self._rows[id]
        return document_of(review, row, self.ndim, self.definitions)

    def markups(self, id: str) -> dict[str, Any]:
        """The case as a document of 3D Slicer, as ``<case>.mrk.json`` holds it."""
        with self._lock:
            review, document = self._opened(id)
            made: dict[str, Any] = json.loads(document.text(review))
            return made

    def image(self, id: str) -> Image:
        """The image of a case. Raises InputError for an unknown case, or where the image cannot be read."""
        case = self._row(id).case
        try:
            image = self._image(case)
        except InputError as error:
            self.note_image(id, str(error))
            raise
        self.note_image(id)
        return image

    def note_image(self, id: str, reason: str = "") -> None:
        """Note for the queue that a case's image can be shown, or why it cannot."""
        with self._lock:
            self._rows[id] = replace(self._row(id), reason=reason)

    def _image(self, case: Case) -> Image:
        image = of_dimension(case.image(), self.ndim)
        if image.ndim != self.ndim:
            raise InputError(f"{case.path}: is {image.ndim}D, the predictions are {self.ndim}D")
        return image

    # ------------------------------------------------------------------ what a person does

    def change(self, id: str, points: Sequence[Mapping[str, Any]], person: str, etag: str | None = None) -> CaseReview:
        """Put ``points`` into the states, and at the positions, that they name; the others stay. It is on disk when
        this returns. ``etag``: of the case as it was read. Raises Conflict where somebody changed it since, InputError
        for an unknown case, name or state, and for a position that cannot be one."""
        person = check_person(person)
        with self._lock:
            review = self._current(id, etag)
            box = image_box(self._row(id).case, review, self.ndim)
            return self._save(changed(review, points, person, box))

    def done(self, id: str, person: str, confirm_all: bool = True, etag: str | None = None) -> CaseReview:
        """The case is finished: what a person decided is truth. ``confirm_all``: so is what is still the model's.
        Raises as :meth:`change`."""
        person = check_person(person)
        with self._lock:
            return self._save(finished(self._current(id, etag), person, confirm_all))

    def skip(self, id: str, person: str, etag: str | None = None) -> CaseReview:
        """The case is left out. Raises as :meth:`change`."""
        person = check_person(person)
        with self._lock:
            return self._save(skipped(self._current(id, etag), person))

    def reopen(self, id: str, person: str, etag: str | None = None) -> CaseReview:
        """The case is open again. Raises as :meth:`change`."""
        person = check_person(person)
        with self._lock:
            return self._save(reopened(self._current(id, etag), person))

    def refresh(self, id: str) -> CaseReview:
        """The case after a model predicted it anew into the folder of predictions: what a person decided stays, the
        rest is as the model says now. Raises InputError for an unknown one."""
        with self._lock:
            case = self._row(id).case
            self._glances[id] = glance(case, self.predictions)
            self._take_up(case)
            return self._opened(id)[0]

    # ------------------------------------------------------------------ inside

    def _check(self, cases: Sequence[Case]) -> None:
        """Raises InputError where the files of the review would replace others."""
        for case in cases:
            files.check_name(case)
        made = {c.id: [f(self.out, c.id) for f in (files.markups_file, files.truth_file)] for c in cases}
        reviews = [files.review_file(self.out, id) for id in made]
        every = [self.out / files.CASES, *reviews, *(file for two in made.values() for file in two)]
        check_sources(every, sources_of(cases, [self.predictions]), "review")
        self._listed = files.manifest_rows(self.out)
        alone = [f for two, review in zip(made.values(), reviews, strict=True) if not review.exists() for f in two]
        alone = [file for file in alone if os.path.lexists(file)]
        if strange := next((file for file in alone if not self._claim.unfinished(file)), None):
            raise InputError(f"{strange}: exists already and is of no review; choose another `out`")
        for file in alone:  # of a process that was killed before its first action on the case was saved
            file.unlink()

    def _read(self, cases: Sequence[Case]) -> None:
        bare = [replace(c, source=None, given=None) for c in cases]
        with self.report.bar("predictions", len(bare)) as bar:
            for i, case in enumerate(bare):
                self._glances[case.id] = glance(case, self.predictions)
                bar.update(i + 1, case.id)
        flat = {g.ndim for g in self._glances.values() if g.ndim is not None}
        if len(flat) != 1:
            some = bare[0].id if bare else "CASE"
            what = "are 2D and 3D" if flat else f"are of none of the cases, such as {some}.json"
            raise InputError(f"{self.predictions}: its predictions {what}")
        self.ndim = flat.pop()
        self._learn_names(bare)
        for case in bare:
            self._take_up(case)
        self._write_manifest()

    def _take_up(self, case: Case) -> None:
        """Go on with what ``out`` holds of a case, or begin with its prediction."""
        seen = self._glances[case.id]
        review = files.saved_review(case, self.out, self.ndim)
        missing = "" if case.path is None or case.path.exists() else f"{case.path}: no such file"
        made = tally(review) if review else Tally(seen.count or len(self.names))
        state = review.state if review else "open"
        self._open.pop(case.id, None)
        self._rows[case.id] = Row(case, seen.flags, seen.suspicion, state, made, review is not None, missing)
        if review is not None:
            self._restore(review)
            if not is_of(review, seen):
                self._opened(case.id)
                self._save(merged(review, self._predicted(case.id)))

    def _learn_names(self, cases: Sequence[Case]) -> None:
        """The landmarks and their definitions: of one prediction of each model."""
        found: dict[str, Predicted] = {}
        for case in cases:
            seen = self._glances[case.id]
            if seen.file is not None and (isinstance(seen, Predicted) or seen.model not in found):
                found[case.id if isinstance(seen, Predicted) else seen.model] = self._predicted(case.id, case)
        self.names = tuple(dict.fromkeys(p.name for one in found.values() for p in one.points))
        self.definitions = dict(d for one in found.values() for d in one.definitions)

    def _predicted(self, id: str, case: Case | None = None) -> Predicted:
        seen = self._glances[id]
        return seen if isinstance(seen, Predicted) else read_predicted(case or self._rows[id].case, seen.file)

    def _restore(self, review: CaseReview) -> None:
        """Make anew what a process that was killed left ahead of ``<case>.review.json``, or behind; what somebody else
        changed is kept under another name."""
        written = files.review_file(self.out, review.case).stat().st_mtime_ns
        file = files.markups_file(self.out, review.case)
        if file.exists() and file.stat().st_mtime_ns <= written and not files.is_stale(review, self.out):
            return
        self._keep_others(review)
        self._write_derived(review)
        files.write_review(review, self.out)

    def _keep_others(self, review: CaseReview) -> None:
        truth = files.truth_of(review, self.ndim, self.definitions)
        for file, kept in files.keep_others(review.case, self.out, self._landmarks(review), truth, self._claim):
            self.report.say(
                f"{file} held other points than the review, perhaps corrected elsewhere: it is kept as {kept.name}"
            )

    def _row(self, id: str) -> Row:
        try:
            return self._rows[id]
        except KeyError:
            raise InputError(f"no case is called {str(id)[:60]!r}{nearest(str(id), list(self._rows))}") from None

    def _opened(self, id: str) -> tuple[CaseReview, files.Markups]:
        """The case and its markups document, read where they are not in memory."""
        row = self._row(id)
        if id not in self._open:
            if row.saved:
                review = files.read_review(files.review_file(self.out, id))
            else:
                predicted = self._predicted(id)
                self.definitions = {**dict(predicted.definitions), **self.definitions}
                review = begun(row.case, predicted, self.names, now())
            self._open[id] = review, self._markups(review)
            self._open[id][1].update(review)  # now, so that a change is quick
        self._open.move_to_end(id)
        while len(self._open) > KEPT_OPEN:
            self._open.popitem(last=False)
        return self._open[id]

    def _current(self, id: str, etag: str | None) -> CaseReview:
        review = self._opened(id)[0]
        if etag is not None and etag != review.etag:
            raise Conflict(review)
        return review

    def _save(self, review: CaseReview) -> CaseReview:
        """Write a case. ``<case>.review.json`` is the truth of the review and comes behind what is made from it, so
        that a process that is killed loses this action alone: the next one makes the others anew."""
        id, was = review.case, self._rows[review.case]
        now = replace(was, state=review.state, tally=tally(review), saved=True)
        relist = was.listed != now.listed
        if relist:
            self._read_manifest()  # first: where somebody has made something else of it, nothing is written
        self._keep_others(self._opened(id)[0])
        self._write_derived(review)
        files.write_review(review, self.out)
        self._open[id] = review, self._open[id][1]
        self._rows[id] = now
        if relist:
            self._write_manifest()
        return review

    def _write_derived(self, review: CaseReview) -> None:
        truth = files.truth_of(review, self.ndim, self.definitions)
        if review.finished and any(p.decided for p in review.points):
            files.write_truth(review, truth, self.out)
        files.write_markups(self._opened(review.case)[1].text(review), review.case, self.out)

    def _landmarks(self, review: CaseReview) -> Landmarks:
        return files.landmarks_of(review, self.ndim, self.definitions)

    def _markups(self, review: CaseReview) -> files.Markups:
        """The markups document of a case: goes on with its own, else with the prediction's."""
        there = [files.markups_file(self.out, review.case)]
        if (file := self._glances[review.case].file) is not None:
            there.append(file.with_name(f"{landmark_stem(file)}.mrk.json"))
        return files.Markups(files.base_document(there), self.ndim, self.definitions)

    def _read_manifest(self) -> dict[str, dict[str, str]]:
        """The rows of ``cases.csv`` as they are now; what somebody wrote into them counts from here on."""
        there = files.manifest_rows(self.out)
        self._listed |= there
        return there

    def _write_manifest(self) -> None:
        others = [row for id, row in self._read_manifest().items() if id not in self._rows]
        rows = [
            {**(listed := self._listed.get(id, {})), **files.manifest_row(row.case, self.out, listed.get("split", ""))}
            for id, row in self._rows.items()
            if row.listed
        ]
        files.write_manifest([*others, *rows], self.out)
