"""What ``anatomark plan`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from shlex import quote
from typing import Any

from rich.console import RenderableType
from rich.table import Column, Table

from anatomark.errors import counted, listed

ROWS_SHOWN = 60  # landmarks in the printed table; the report holds all
SUSPECTS_SHOWN = 80  # lines; the report holds all
COLUMNS = (  # of the landmarks
    "marked", "absent", "not\nannotated", "outside\nimage", "from mean\nposition", "from mean\nshape",
    "from where the\nother points\nput it",
)  # fmt: skip
# how plan_suspects.html begins, by which plan knows its own
TITLE = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Suspect annotations</title>'


def page(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The facts as text and tables."""
    yield f"Plan for {facts['manifest']}"
    yield _table(_overview(facts), show_header=False, padding=(0, 2), collapse_padding=True)
    yield ""
    yield _table(
        _landmark_rows(facts["landmarks"]),
        "label",
        *(Column(name, justify="right") for name in COLUMNS),
        title="landmarks: number of cases, then mean distance in mm",
    )
    yield ""
    yield from (f"note: {line}" for line in facts["cautions"])
    if suspects := facts["suspects"]:
        drawn = "" if facts["files"] else " (with `out` DIR, as pictures)"
        yield f"{counted(len(suspects), 'suspect annotation')}: look at these before training{drawn}"
        shown = list(by_case(suspects))
        rows = [(_case(one), one["kind"], one["message"]) for one in shown[:SUSPECTS_SHOWN]]
        if len(shown) > SUSPECTS_SHOWN:
            rows.append(("", "", f"and {len(shown) - SUSPECTS_SHOWN} more in the report"))
        yield _table(rows, show_header=False)
    elif not facts["suspects_note"]:
        yield "no suspect annotations" + (", apart from what the notes say" if facts["cautions"] else "")
    yield ""
    rows = [(row["key"], _value(row["value"]), row["reason"]) for row in facts["suggestions"]]
    yield _table(rows, "suggested", "value", "because", title="config.yaml")


def what_next(facts: Mapping[str, Any]) -> Iterator[str]:
    """What was written, and the command that goes on from there."""
    given = " ".join(map(quote, facts["manifests"]))
    taught = " `teacher` MODEL" * bool(facts["cases"]["without landmarks"])
    if facts["suspects"] and len(facts["manifests"]) == 1:
        yield f"to see and correct what is suspect: anatomark review {given} `out` CORRECTED"
    if facts["files"]:
        yield "written: " + ", ".join(facts["files"])
        yield f"next: anatomark fit {given}{taught} `config` {quote(facts['files'][0])} `out` RUN"
    elif facts["config"]["landmarks"]:
        yield f"next: anatomark plan {given} `out` DIR writes the config, which names the landmarks to learn"
    else:
        yield f"next: anatomark fit {given}{taught} `minutes` {facts['config']['minutes']:g} `out` RUN"
        yield "      (or, to change settings first, this command with `out` DIR, which writes config.yaml)"


def _case(suspect: Mapping[str, Any]) -> str:
    split = suspect["split"]
    return f"{suspect['case']} ({split})" if split in ("val", "test") else suspect["case"] or "all"


def by_case(suspects: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The same, with several points of a case, and several pairs at one place, in one line; by what is farthest off."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for number, one in enumerate(suspects):
        alike = one["case"] and one["kind"] in ("point", "duplicate")
        groups.setdefault((one["case"], one["kind"] if alike else f"{one['kind']} {number}"), []).append(one)
    for ones in sorted(groups.values(), key=_importance, reverse=True):
        if len(ones) == 1:
            yield ones[0]
            continue
        labels, kind = list(dict.fromkeys(label for one in ones for label in one["labels"])), ones[0]["kind"]
        text = f"{len(ones)} pairs among {listed(labels)} lie nearly at one place"
        if kind == "point":
            far = [one["found_mm"] for one in ones]
            text = f"{listed(labels)} lie {min(far):.3g} to {max(far):.3g} mm from where the other points put them"
        yield {**ones[0], "labels": labels, "message": text}


def _importance(ones: Sequence[Mapping[str, Any]]) -> float:
    """How many times the usual distance a point is off; what is no point comes first."""
    off = [one["found_mm"] / one["typical_mm"] for one in ones if one["kind"] == "point"]
    return max(off, default=math.inf)


def _table(rows: Iterable[Sequence[str]], *columns: str | Column, **style: Any) -> Table:
    table = Table(*columns, title_justify="left", box=None, pad_edge=False, **style)
    for row in rows:
        table.add_row(*row)
    return table


def _overview(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the cases have in common, as names and texts."""
    images, poses, cases = facts["images"], facts["poses"], facts["cases"]
    axes, points = ("x, y, z", "voxels") if facts["dimension"] == 3 else ("x, y", "pixels")
    yield "cases", ", ".join(f"{n} {split}" for split, n in cases.items() if n)
    yield "training images", f"{facts['dimension']}D {facts['modality']}, {_counts(facts['image_formats'])}"
    yield "orientation", _counts(images["orientations"])
    for key, what in (("spacing_mm", "spacing, mm"), ("extent_mm", "extent, mm"), ("size", f"size, {points}")):
        low, middle, high = (numbers(images[key][k]) for k in ("min", "median", "max"))
        same = images[key]["min"] == images[key]["max"]
        yield f"{what} ({axes})", middle if same else f"{middle} ({low} to {high})"
    formats = facts["landmark_formats"]
    of = [f"{ending} files" + f" ({counted(n, 'case')})" * (len(formats) > 1) for ending, n in formats.items()]
    yield "landmarks", f"{len(facts['names'])}, from {', '.join(of)}"
    if cases["train"] > 1:
        turned = poses["rotation_deg"]
        text = f"turned by {turned['median']:.0f} degrees (median) to {turned['max']:.0f} ({poses['most_turned']})"
        yield "poses", f"{text}, size varies by {poses['scale_sd']:.1%}"
        world, aligned = (_average(facts["landmarks"], key) for key in ("world_mm", "aligned_mm"))
        yield "mean shape", f"{world} mm off as the images lie, {aligned} mm after a perfect similarity"
    if facts["observers"]["cases"]:
        apart = facts["observers"]["mean_distance_mm"].values()
        yield "observers", f"{sum(apart) / max(1, len(apart)):.3g} mm apart on average"


def _landmark_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for row in rows[:ROWS_SHOWN]:
        counts = [str(row[k] or "") for k in ("defined", "absent", "unannotated", "outside")]
        spread = ["" if row[k] is None else f"{row[k]:.2f}" for k in ("world_mm", "aligned_mm", "predicted_mm")]
        yield [row["name"], *counts, *spread]
    if len(rows) > ROWS_SHOWN:
        yield [f"and {len(rows) - ROWS_SHOWN} more in the report"]


def _value(value: Any) -> str:
    return "all" if value is None else f"{len(value)} named" if isinstance(value, list) else str(value)


def _average(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    return f"{sum(values) / len(values):.3g}" if values else "?"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {what}" for what, n in counts.items())


def numbers(values: Sequence[float]) -> str:
    """``0.5 x 0.5 x 2``."""
    return " x ".join(f"{v:.4g}" for v in values)
