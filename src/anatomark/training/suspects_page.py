"""A page with a picture of each case that has suspect annotations: one HTML file that refers to nothing outside."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from anatomark.cases.case import Case
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError, counted
from anatomark.pictures.overlay import ANNOTATED, case_picture
from anatomark.progress import Reporter
from anatomark.training.plan_page import TITLE, by_case

DRAWN = 20  # cases with a picture
ZOOMS = 6  # landmarks shown from near in each
STYLE = """<style>body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1e293b}
img{max-width:100%;height:auto}h2{margin:2.5rem 0 .3rem}li{margin:.2rem 0}</style>
"""


def suspects_page(facts: Mapping[str, Any], cases: Sequence[Case], report: Reporter) -> str:
    """The ``suspects`` of a plan's ``facts`` as HTML text, the oddest case first, with pictures of the ``cases`` they
    are in: rings where points are, crosses where the other cases put them. An image that cannot be read has none."""
    suspects, known = facts["suspects"], {case.id: case for case in cases}
    lines: dict[str, list[str]] = {}
    for one in by_case(suspects):
        lines.setdefault(one["case"], []).append(one["message"])
    names = [case for case in lines if case]
    what = f"{counted(len(suspects), 'suspect annotation')} in {counted(len(names), 'case')}"
    parts = [TITLE, STYLE, f"<h1>{escape(facts['manifest'])}</h1>"]
    parts.append(
        f"<p>{what}. They may be right: look, and correct those that are not before training. A ring is a point as it "
        "was annotated, a cross where the other points and cases put it.</p>"
    )
    parts += _listed(lines.get("", []))
    with report.bar("drawing suspects", min(len(names), DRAWN)) as bar:
        for number, name in enumerate(names):
            parts += [f"<h2>{escape(name)}</h2>", *_listed(lines[name])]
            if number >= DRAWN:
                continue
            if (picture := _picture(known[name], [s for s in suspects if s["case"] == name])) is not None:
                shown = base64.b64encode(picture).decode()
                parts.append(f'<img alt="{escape(name)}" src="data:image/png;base64,{shown}">')
            bar.update(number + 1)
    return "\n".join(parts) + "\n"


def _listed(lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _picture(case: Case, suspects: Sequence[Mapping[str, Any]]) -> bytes | None:
    """The landmarks that the ``suspects`` of a case name; None where they name none, or the image cannot be read."""
    marked = case.landmarks
    expected = np.full_like(marked.points, np.nan)
    for one in suspects:
        if one["kind"] == "point" and one["expected"] is not None:
            expected[marked.names.index(one["labels"][0])] = one["expected"]
    labels = dict.fromkeys(label for one in suspects for label in one["labels"])
    names = [n for n in labels if n in marked.names and marked.defined[marked.names.index(n)]][:ZOOMS]
    if not names:
        return None
    try:
        return case_picture(case.image(), Landmarks(marked.names, expected), marked, names, case.id, ANNOTATED, dpi=100)
    except InputError:
        return None
