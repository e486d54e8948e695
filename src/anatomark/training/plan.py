"""``anatomark plan``: look at the data, say what stands out, suggest a config."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from anatomark.cases.division import HELD_OUT_FROM
from anatomark.cases.look.fingerprint import Fingerprint, fingerprint
from anatomark.cases.manifest import read_manifest
from anatomark.errors import listed
from anatomark.io.atomic import write_json
from anatomark.model.config import AUTO, RunConfig, checked, completed, merged, write_config
from anatomark.training.auto import ANY_POSE_DEG, Choice, applied, choose, task_of_fingerprint, usual_minutes

SCHEMA = 1
ROWS_SHOWN = 60  # landmarks in the printed table; the report holds all
SUSPECTS_SHOWN = 40
WIDTH = 110


@dataclass(frozen=True)
class Planned:
    """The outcome of :func:`plan`: ``facts`` (plain JSON, what ``plan_report.json`` holds) and the ``config``."""

    facts: dict[str, Any]
    config: RunConfig

    def summary(self) -> dict[str, Any]:
        return self.facts

    def lines(self) -> list[str]:
        """The same as :func:`render` shows, as plain text."""
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
        with console.capture() as shown:
            console.print(render(self.facts))
        return [line.rstrip() for line in shown.get().splitlines()]


def plan(
    manifest_path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    method: str = AUTO,
    preset: str = "recommended",
    minutes: float | None = None,
    frame: str | None = None,
    unit: str | None = None,
) -> Planned:
    """Fingerprint of the training cases, suspect annotations, and a config for ``fit``, each choice with its
    reason.

    ``out``: a folder for ``config.yaml`` and ``plan_report.json``, or the config's own name (``*.yaml``); None writes
    nothing. ``method``: by default the one that suits (``engine/auto.py``), given ``minutes`` of training or a usual
    time. ``frame`` and ``unit`` as in ``read_landmarks``. Raises InputError for anything wrong with the manifest.
    """
    manifest = read_manifest(manifest_path, frame=frame, unit=unit)
    print_ = fingerprint(manifest)
    others = _choices(print_)
    given: dict[str, Any] = {key: value for key, value, _ in others}
    choice = _method(print_, method, preset, minutes, given["landmarks"])
    where = str(manifest_path)
    if method == AUTO:
        config = applied(checked(RunConfig, given, where), choice)
    else:
        config = completed(checked(RunConfig, merged(given, choice.settings), where))
    facts = {
        "schema": SCHEMA,
        "manifest": str(manifest_path),
        **print_.to_json(),
        "cautions": [*manifest.notes, *_cautions(print_)],
        "suggestions": [{"key": k, "value": v, "reason": r} for k, v, r in (*choice.rows, *others)],
        "config": config.model_dump(mode="json"),
        "files": [],
    }
    if out is not None:
        place = Path(out)
        target = place if place.suffix.lower() in (".yaml", ".yml") else place / "config.yaml"
        report = target.with_name("plan_report.json")
        facts["files"] = [str(target), str(report)]
        write_json(report, facts)
        write_config(target, config)
    return Planned(facts, config)


def _method(found: Fingerprint, method: str, preset: str, minutes: float | None, landmarks: list[str] | None) -> Choice:
    """The method, all that follows from it, and the training time."""
    facts, count = found.facts, found.facts["cases"]["train"]
    time, why = usual_minutes(count, facts["dimension"]) if minutes is None else (minutes, "as asked")
    last = ("minutes", time, why)
    if method == AUTO:
        return Choice((*choose(task_of_fingerprint(found, len(landmarks) if landmarks else None), time).rows, last))
    turned = facts["poses"]["rotation_deg"]["max"]
    if count < 2:
        pose = "with one training case the spread of poses is unknown"
    elif turned > ANY_POSE_DEG:
        pose = f"cases are turned by up to {turned:.0f} degrees, so the pose is sought over all rotations"
    else:
        pose = f"cases are turned by up to {turned:.0f} degrees, which the method widens by half"
    name = (("method.name", method, f"preset {preset}; {pose}"), ("method.preset", preset, "as asked"))
    return Choice((*name, last))


def _choices(found: Fingerprint) -> list[tuple[str, Any, str]]:
    """(key, value, one sentence why) for every other setting that the data decide."""
    facts = found.facts
    return [
        ("modality", facts["modality"], _why_modality(facts)),
        ("landmarks", *_wanted(found)),
        ("val_fraction", 0.2, _why_validation(facts["cases"])),
        ("cache_mb", *_cache(facts["images"]["megabytes"])),
    ]


def _why_modality(facts: Mapping[str, Any]) -> str:
    reasons = {
        "xray": "the images are 2D",
        "ct": "air lies near -1000, as in Hounsfield units, so one window serves all images",
        "mr": "the values have no fixed scale, so each image is normalised by its own percentiles",
    }
    return f"{reasons.get(facts['modality'], 'guessed from the images')}; set it where this is wrong"


def _wanted(found: Fingerprint) -> tuple[list[str] | None, str]:
    """The landmarks to learn: all, unless some were never marked or cases differ in names."""
    rows, extra = found.facts["landmarks"], found.facts["extra_names"]
    never = [row["name"] for row in rows if row["defined"] == 0]
    if not never and not extra:
        return None, f"all {len(rows)} landmarks of the first training case"
    kept = [row["name"] for row in rows if row["defined"]]
    parts = [f"never marked: {listed(never)}"] if never else []
    parts += [f"not in the first training case: {listed(extra)}"] if extra else []
    return kept, "; ".join(parts) + "; these are left out"


def _why_validation(cases: Mapping[str, int]) -> str:
    if cases["val"]:
        return f"not used: the manifest has {cases['val']} validation cases"
    if cases["train"] < HELD_OUT_FROM:
        return "too few cases to spare one: validated on augmented copies, so no independent validation"
    held = max(1, round(0.2 * cases["train"]))
    return f"{held} of {cases['train']} training cases are held out; `folds` K would use all of them"


def _cache(megabytes: float) -> tuple[int, str]:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    except (ValueError, OSError, AttributeError):  # not every system tells
        memory = 8192.0
    wanted, most = 256 * math.ceil(max(512.0, 1.5 * megabytes) / 256), int(max(512.0, memory / 4))
    if wanted <= most:
        return wanted, f"all training images together take {megabytes:.0f} MB as float32"
    return most, f"a quarter of this machine's memory; the images take {megabytes:.0f} MB and are read by parts"


def _cautions(found: Fingerprint) -> Iterator[str]:
    """What a person should know before training, a sentence each."""
    facts, images, rows = found.facts, found.facts["images"], found.facts["landmarks"]
    span = 2 * facts["poses"]["radius_mm"]
    if len(found.names) > 1 and not 0.1 <= span <= 4000:
        yield f"the landmarks span about {span:.3g} mm: check spacing and unit"
    outside = [f"{r['name']} ({r['outside']})" for r in rows if r["outside"]]
    if outside:
        yield f"landmarks outside their image, with the number of cases: {listed(outside)}"
    few = [f"{r['name']} ({r['defined']})" for r in rows if 0 < r["defined"] < 0.5 * facts["cases"]["train"]]
    if few:
        yield f"landmarks marked in fewer than half of the cases: {listed(few)}"
    if images["anisotropy"] > 3:
        yield f"voxels are up to {images['anisotropy']:.1f} times longer than wide; expect larger errors that way"
    low, high = images["spacing_mm"]["min"], images["spacing_mm"]["max"]
    if any(h > 2 * a for a, h in zip(low, high, strict=True)):
        yield f"spacings differ between cases: {_numbers(low)} to {_numbers(high)} mm"
    oblique = sum(n for code, n in images["orientations"].items() if code.endswith("oblique"))
    if oblique:
        yield f"{oblique} images lie obliquely in world; that is handled, but check that their landmarks do too"
    if found.note:
        yield found.note


def render(facts: Mapping[str, Any]) -> RenderableType:
    """A readable page of ``Planned.facts``."""
    parts: list[RenderableType] = [Text(f"Plan for {facts['manifest']}", style="bold"), _overview(facts), Text()]
    parts += [_landmark_table(facts), Text()]
    parts += list(_findings(facts))
    table = Table("suggested", "value", "because", title="config.yaml", title_justify="left", box=None, pad_edge=False)
    for row in facts["suggestions"]:
        value = row["value"]
        shown = "all" if value is None else f"{len(value)} named" if isinstance(value, list) else str(value)
        table.add_row(row["key"], Text(shown), Text(row["reason"]))
    parts += [table, Text()]
    if facts["files"]:
        parts.append(Text("written: " + ", ".join(facts["files"])))
        parts.append(Text(f"next: anatomark fit {facts['manifest']} `config` {facts['files'][0]} `out` RUN"))
    else:
        parts.append(Text("`out` DIR writes config.yaml and plan_report.json"))
    return Group(*parts)


def _overview(facts: Mapping[str, Any]) -> Table:
    images, poses, cases = facts["images"], facts["poses"], facts["cases"]
    axes = "x, y, z" if facts["dimension"] == 3 else "x, y"
    table = Table.grid(padding=(0, 2))
    rows = [("cases", ", ".join(f"{n} {split}" for split, n in cases.items() if n))]
    rows += [("images", f"{facts['dimension']}D {facts['modality']}, {_counts(facts['image_formats'])}")]
    rows += [("orientation", _counts(images["orientations"]))]
    for key, what in (("spacing_mm", "spacing, mm"), ("extent_mm", "extent, mm"), ("size", "size, voxels")):
        low, middle, high = (images[key][k] for k in ("min", "median", "max"))
        same = low == high
        text = _numbers(middle) if same else f"{_numbers(middle)} ({_numbers(low)} to {_numbers(high)})"
        rows.append((f"{what} ({axes})", text))
    rows.append(("landmarks", f"{len(facts['names'])} in {_counts(facts['landmark_formats'])}"))
    if cases["train"] > 1:
        turned = poses["rotation_deg"]
        text = f"turned by {turned['median']:.0f} degrees (median) to {turned['max']:.0f} ({poses['most_turned']})"
        rows.append(("poses", f"{text}, size varies by {poses['scale_sd']:.1%}"))
        world, aligned = _average(facts, "world_mm"), _average(facts, "aligned_mm")
        rows.append(("mean shape", f"{world} mm off as the images lie, {aligned} mm after a perfect similarity"))
    if facts["observers"]["cases"]:
        apart = facts["observers"]["mean_distance_mm"].values()
        rows.append(("observers", f"{sum(apart) / max(1, len(apart)):.3g} mm apart on average"))
    for key, value in rows:
        table.add_row(Text(key, style="dim"), Text(value))
    return table


def _landmark_table(facts: Mapping[str, Any]) -> Table:
    rows = facts["landmarks"]
    table = Table(title="landmarks", title_justify="left", box=None, pad_edge=False)
    table.caption = "mean mm to the mean position, to the mean shape, and to where the case's other points put it"
    table.caption_justify = "left"
    for name in ("label", "marked", "absent", "unknown", "outside", "world", "aligned", "predicted"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for row in rows[:ROWS_SHOWN]:
        counts = [str(row[k] or "") for k in ("defined", "absent", "unannotated", "outside")]
        spread = ["" if row[k] is None else f"{row[k]:.2f}" for k in ("world_mm", "aligned_mm", "predicted_mm")]
        table.add_row(Text(row["name"]), *counts, *spread)
    if len(rows) > ROWS_SHOWN:
        table.add_row(Text(f"and {len(rows) - ROWS_SHOWN} more"))
    return table


def _findings(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    for line in facts["cautions"]:
        yield Text(f"note: {line}", style="yellow")
    found = facts["suspects"]
    if found:
        title = f"{len(found)} suspect annotation{'s' * (len(found) != 1)}: look at these before training"
        yield Text(title, style="bold")
        table = Table("case", "kind", "what", box=None, pad_edge=False, show_header=False)
        for one in found[:SUSPECTS_SHOWN]:
            table.add_row(Text(one["case"] or "all"), Text(one["kind"], style="red"), Text(one["message"]))
        if len(found) > SUSPECTS_SHOWN:
            table.add_row("", "", f"and {len(found) - SUSPECTS_SHOWN} more in the report")
        yield table
    elif not facts["suspects_note"]:
        yield Text("no suspect annotations", style="green")
    yield Text()


def _average(facts: Mapping[str, Any], key: str) -> str:
    values = [row[key] for row in facts["landmarks"] if row[key] is not None]
    return f"{sum(values) / len(values):.3g}" if values else "?"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {what}" for what, n in counts.items())


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{v:.4g}" for v in values)
