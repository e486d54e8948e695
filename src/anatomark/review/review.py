"""A review: a folder of corrections for a set of cases and their predictions."""

from __future__ import annotations

import itertools
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

import numpy as np

from anatomark.cases.case import Case, of_dimension
from anatomark.cases.find import landmark_stem, sources_of
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, nearest
from anatomark.io.claim import Claim, check_sources, claimed
from anatomark.progress import Reporter
from anatomark.review import files
from anatomark.review.decide import changed, check_person, finished, reopened, skipped
from anatomark.review.predicted import Predicted, begun, is_of, merged, read_predicted
from anatomark.review.record import CaseReview, Conflict, now
from anatomark.review.summary import Tally, summary, tally

KEPT_OPEN = 16  # cases whose points stay in memory
ORDERS, STATES = ("suspicion", "name"), ("open", "done", "skipped")


@dataclass(frozen=True)
class Row:
    """What the queue says of a case; its points are read when they are asked for."""

    case: Case
    flags: tuple[str, ...]
    suspicion: float | None
    state: str
    tally: Tally
    saved: bool
    reason: str = ""  # why its image cannot be shown

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.case.id,
            "state": self.state,
            "flags": list(self.flags),
            "suspicion": self.suspicion if self.suspicion is not None and math.isfinite(self.suspicion) else None,
            "flagged": bool(self.flags),
            "decided": self.tally.decided,
            "points": self.tally.points,
            "reason": self.reason,
        }

    @property
    def order(self) -> tuple[bool, float]:
        """Flagged cases first, then by how unusual they are; what no measure is known of, last."""
        return not self.flags, math.inf if self.suspicion is None else -self.suspicion


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
        self._lock, self._stack = RLock(), ExitStack()
        self._open: OrderedDict[str, tuple[CaseReview, Predicted]] = OrderedDict()
        self._rows: dict[str, Row] = {}
        with ExitStack() as stack:
            claim = stack.enter_context(claimed(self.out))
            self._check(cases, claim)
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
        if order not in ORDERS:
            raise InputError(
                f"order {str(order)[:40]!r} is not known{nearest(str(order), ORDERS)}; it is suspicion or name"
            )
        if state is not None and state not in STATES:
            raise InputError(
                f"state {str(state)[:40]!r} is not known{nearest(str(state), STATES)}; it is open, done or skipped"
            )
        with self._lock:
            rows = [row for row in self._rows.values() if state in (None, row.state)]
        return [row.facts() for row in sorted(rows, key=lambda r: r.order if order == "suspicion" else r.case.id)]

    def figures(self) -> dict[str, Any]:
        """Of all cases: ``done``, ``open``, ``skipped``; ``moved``, the points that a person moved, their
        ``mean_moved_mm``, and how many lay ``outside_radius``, the 90 % of the model."""
        with self._lock:
            rows = list(self._rows.values())
        total = sum((row.tally for row in rows), Tally())
        counts = {state: sum(row.state == state for row in rows) for state in ("done", "open", "skipped")}
        return {**counts, **total.figures()}

    def summary(self) -> dict[str, Any]:
        """The :meth:`figures`, and for each model and landmark how far the model's points lay from the person's
        (:func:`~anatomark.review.summary.summary`)."""
        with self._lock:
            saved = [id for id, row in self._rows.items() if row.saved]
            return {**self.figures(), **summary(files.read_review(files.review_file(self.out, id)) for id in saved)}

    def case(self, id: str) -> CaseReview:
        """The review of a case as it stands. Raises InputError for an unknown one."""
        with self._lock:
            return self._opened(id)[0]

    def document(self, id: str) -> dict[str, Any]:
        """The case as plain data, for the page. Raises InputError for an unknown one."""
        with self._lock:
            review, row = self._opened(id)[0], self._rows[id]
        facts = row.facts()
        points = [
            {
                "name": p.name, "state": str(p.state),
                "position": None if p.position is None else list(p.position),
                "predicted": None if p.predicted is None else list(p.predicted),
                "moved_mm": p.moved_mm, "score": p.score, "radius90": p.radius90,
                "definition": self.definitions.get(p.name, ""),
            }
            for p in review.points
        ]  # fmt: skip
        return {
            "case": id,
            "frame": "LPS" if self.ndim == 3 else "image",
            "unit": "mm",
            "state": review.state,
            "person": review.person,
            "points": points,
            "flags": facts["flags"],
            "suspicion": facts["suspicion"],
        }

    def markups(self, id: str) -> dict[str, Any]:
        """The case as a document of 3D Slicer, as ``<case>.mrk.json`` holds it."""
        with self._lock:
            review, predicted = self._opened(id)
            return files.markups(review, self._landmarks(review), self._base(review, predicted))

    def image(self, id: str) -> Image:
        """The image of a case. Raises InputError for an unknown case, or where the image cannot be read."""
        case = self._row(id).case
        try:
            return self._image(case)
        except InputError as error:
            with self._lock:
                self._rows[id] = replace(self._rows[id], reason=str(error))
            raise

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
            return self._save(changed(review, points, person, self.ndim, self._box(id)))

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

    # ------------------------------------------------------------------ inside

    def _check(self, cases: Sequence[Case], claim: Claim) -> None:
        """Raises InputError where the files of the review would replace others."""
        ids = [c.id for c in cases]
        made = [self.out / files.CASES]
        made += [f(self.out, i) for i in ids for f in (files.markups_file, files.review_file, files.truth_file)]
        check_sources(made, sources_of(cases, [self.predictions]), "review")
        self._others = files.other_rows(self.out, ids)
        for file in made[1:]:
            owner = file.name.removesuffix(".review.json").removesuffix(".mrk.json").removesuffix(".csv")
            ours = files.review_file(self.out, owner).exists() or claim.unfinished(file)
            if os.path.lexists(file) and not ours:
                raise InputError(f"{file}: exists already and is of no review; choose another `out`")

    def _read(self, cases: Sequence[Case]) -> None:
        bare = [replace(c, source=None, given=None) for c in cases]
        made: dict[str, Predicted] = {}
        with self.report.bar("predictions", len(bare)) as bar:
            for i, case in enumerate(bare):
                made[case.id] = read_predicted(case, self.predictions)
                bar.update(i + 1, case.id)
        flat = {p.ndim for p in made.values() if p.ndim is not None}
        if len(flat) != 1:
            some = bare[0].id if bare else "CASE"
            what = "are 2D and 3D" if flat else f"are of none of the cases, such as {some}.json"
            raise InputError(f"{self.predictions}: its predictions {what}")
        self.ndim = flat.pop()
        self.names = tuple(dict.fromkeys(n for p in made.values() for n in p.names))
        self.definitions = dict(d for p in made.values() for d in p.definitions)
        for case in bare:
            predicted = made[case.id]
            missing = "" if case.path is None or case.path.exists() else f"{case.path}: no such file"
            self._rows[case.id] = Row(case, predicted.flags, predicted.suspicion, "open", Tally(), False, missing)
            file = files.review_file(self.out, case.id)
            review = files.read_review(file) if file.exists() else begun(case, predicted, self.names, None)
            self._note(review, file.exists())
            if file.exists() and not is_of(review, predicted):
                self._save(merged(review, predicted), predicted)
        self._write_manifest()

    def _row(self, id: str) -> Row:
        try:
            return self._rows[id]
        except KeyError:
            raise InputError(f"no case is called {str(id)[:60]!r}{nearest(str(id), list(self._rows))}") from None

    def _opened(self, id: str) -> tuple[CaseReview, Predicted]:
        """The case and its prediction, read where they are not in memory."""
        row = self._row(id)
        if id not in self._open:
            predicted = read_predicted(row.case, self.predictions)
            file = files.review_file(self.out, id)
            review = files.read_review(file) if row.saved else begun(row.case, predicted, self.names, now())
            self._keep(review, predicted)
        self._open.move_to_end(id)
        return self._open[id]

    def _keep(self, review: CaseReview, predicted: Predicted) -> None:
        self._open[review.case] = review, predicted
        self._open.move_to_end(review.case)
        while len(self._open) > KEPT_OPEN:
            self._open.popitem(last=False)

    def _current(self, id: str, etag: str | None) -> CaseReview:
        review = self._opened(id)[0]
        if etag is not None and etag != review.etag:
            raise Conflict(review)
        return review

    def _box(self, id: str) -> Array:
        """(2, D) least and greatest world mm of the image's corners; where its header cannot be read, of the points."""
        case = self._rows[id].case
        try:
            grid = case.grid(self.ndim)
            corners = itertools.product(*((-0.5, n - 0.5) for n in grid.shape))
            places = grid.to_world(np.array(list(corners)))
        except InputError:
            review = self._opened(id)[0]
            known = [at for p in review.points for at in (p.position, p.predicted) if at is not None]
            places = np.array(known) if known else np.zeros((1, self.ndim))
        return np.stack([places.min(0), places.max(0)])

    def _save(self, review: CaseReview, predicted: Predicted | None = None) -> CaseReview:
        """Write a case. ``<case>.review.json`` is the truth of the review and comes behind what is made from it, so
        that a process that is killed loses this action alone: the next one makes the others anew."""
        predicted = predicted or self._opened(review.case)[1]
        truth = files.truth_of(review, self.ndim, self.definitions)
        if review.finished and (truth.defined | truth.absent).any():
            files.write_truth(review, truth, self.out)
        document = files.markups(review, self._landmarks(review), self._base(review, predicted))
        files.write_markups(document, review.case, self.out)
        files.write_review(review, self.out)
        was = self._rows[review.case]
        self._note(review, True)
        self._keep(review, predicted)
        if "done" in (was.state, review.state):
            self._write_manifest()
        return review

    def _note(self, review: CaseReview, saved: bool) -> None:
        row = self._rows[review.case]
        self._rows[review.case] = replace(row, state=review.state, tally=tally(review), saved=saved)

    def _landmarks(self, review: CaseReview) -> Landmarks:
        return files.landmarks_of(review, self.ndim, self.definitions)

    def _base(self, review: CaseReview, predicted: Predicted) -> tuple[Mapping[str, Any], int]:
        """The markups document that the case's is made from: its own, else the prediction's."""
        there = [files.markups_file(self.out, review.case)]
        if predicted.file is not None:
            there.append(predicted.file.with_name(f"{landmark_stem(predicted.file)}.mrk.json"))
        return files.base_document(there)

    def _write_manifest(self) -> None:
        rows = [
            files.manifest_row(r.case, self.out) for r in self._rows.values() if r.state == "done" and r.tally.decided
        ]
        if rows or self._others or (self.out / files.CASES).exists():
            files.write_manifest([*self._others, *rows], self.out)
