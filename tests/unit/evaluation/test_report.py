"""The report: one file that needs nothing else, and says what the tables say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from anatomark.core.landmarks import Landmarks, Status
from anatomark.evaluation.metrics import compare
from anatomark.evaluation.report import CasePicture, render
from anatomark.evaluation.result import EvaluationResult

NAMES = ("left <eye>", "nose")


def result(cases: int, **more: object) -> EvaluationResult:
    rng = np.random.default_rng(0)
    truth = {f"case{i}": Landmarks(NAMES, rng.normal(size=(2, 3))) for i in range(cases)}
    guess = {
        c: Landmarks(NAMES, t.points + rng.normal(size=(2, 3)), score=np.ones(2), radius90=np.ones(2))
        for c, t in truth.items()
    }
    errors = compare(truth, guess, NAMES)
    return EvaluationResult("my & model", "cases.csv", "test", "senior", errors, **more)  # type: ignore[arg-type]


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("cases", [1, 2, 7])
def test_self_contained_and_well_formed(cases: int) -> None:
    found = result(cases)
    picture = CasePicture("Best", 0, b"\x89PNG", ["nose"])
    page = render(found, [picture], version="9.9")
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.sources and all(s.startswith("data:image/png;base64,") for s in checker.sources)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "for research, not a medical device" in page and "truth: senior" in page and "9.9" in page


def test_names_are_escaped_and_figures_stand_there() -> None:
    found = result(5, notes=["look <here>"])
    page = render(found)
    assert "left &lt;eye&gt;" in page and "<eye>" not in page and "my &amp; model" in page
    assert "look &lt;here&gt;" in page
    assert found.overall.mre_mm is not None
    assert f"<b>{found.overall.mre_mm:.2f} mm</b>" in page


def test_nothing_found_at_all_still_gives_a_report() -> None:
    truth = {"a": Landmarks(NAMES, np.zeros((2, 2))), "b": Landmarks(NAMES, np.zeros((2, 2)))}
    errors = compare(truth, {"a": None, "b": None}, NAMES)
    page = render(EvaluationResult("m", "c.csv", "val", "landmark files", errors))
    assert "of 4 points" in page
    none = Landmarks(NAMES, np.full((2, 2), np.nan), (Status.ABSENT, Status.UNANNOTATED))
    assert render(EvaluationResult("m", "c.csv", "val", "landmark files", compare({"a": none}, {"a": none}, NAMES)))


def test_best_median_worst() -> None:
    found = result(7)
    order = np.argsort(found.errors.case_error)
    assert found.highlights() == [("Best", order[0]), ("Median", order[3]), ("Worst", order[6])]
    assert [w for w, _ in result(2).highlights()] == ["Best", "Worst"]
    assert result(1).highlights() == [("Only", 0)]
    case = int(order[6])
    assert found.worst(case, 1) == [NAMES[int(found.errors.error[case].argmax())]]


def test_tables_name_the_truth() -> None:
    found = result(3)
    assert {r["truth"] for rows in (found.error_rows(), found.landmark_rows(), found.case_rows()) for r in rows} == {
        "senior"
    }
    assert found.summary()["truth"] == "senior"
